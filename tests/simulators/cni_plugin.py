"""A CNI plugin that keeps addresses in files and misbehaves on demand: a program of its own, and how a test tells it.

Below its directory: ``behaviour.json`` (what each command does, "versions"), ``journal`` (a line per call: what it was
told), ``leases/ADDRESS`` (whose an address is). It makes no interface, so it needs no root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VERSIONS = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
FLOOD_BYTES = 100 << 20


class PluginSimulator:
    """The test's end: installs the plugin as a program, chooses what it does, reads what it was told."""

    def __init__(self, directory: Path, kind: str = "fake") -> None:
        self.kind = kind
        self.directory = directory / kind
        self.bin_dir = directory / "bin"
        for made in (self.directory / "leases", self.bin_dir):
            made.mkdir(parents=True, exist_ok=True)
        self.program = self.bin_dir / kind
        self.install()
        self.behave()

    def install(self) -> None:
        """-S: an interpreter that starts in 15 ms."""
        source = f"#!{sys.executable} -IS\nimport sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        self.program.write_text(f"{source}import cni_plugin\ncni_plugin.main({str(self.directory)!r})\n")
        self.program.chmod(0o755)

    def vanish(self) -> None:
        self.program.unlink()

    def behave(self, versions: list[str] | None = None, **commands: str) -> None:
        """``ADD="hang"``; what isn't named goes well."""
        known = {"versions": versions or VERSIONS, **commands}
        new = self.directory / "behaviour.new"
        new.write_text(json.dumps(known))
        new.rename(self.directory / "behaviour.json")

    def calls(self) -> list[dict[str, Any]]:
        """What it was told so far, but for VERSION."""
        journal = self.directory / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [call for call in map(json.loads, lines) if call["command"] != "VERSION"]

    def commands(self) -> list[str]:
        return [call["command"] for call in self.calls()]

    def leases(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.directory / "leases").iterdir()}

    def configure(self, conf_dir: Path, file: str = "10-fake.conflist", **fields: Any) -> None:
        """Write a configuration with this plugin alone, as add-ons do: at once."""
        document = {
            "cniVersion": "1.1.0",
            "name": "fakenet",
            "plugins": [{"type": self.kind, **fields.pop("plugin", {})}],
            **fields,
        }
        conf_dir.mkdir(exist_ok=True)
        (conf_dir / "new").write_text(json.dumps(document))
        (conf_dir / "new").rename(conf_dir / file)


# ------------------------------------------------------------- the program


def main(directory: str) -> None:
    place, command = Path(directory), os.environ["CNI_COMMAND"]
    told = json.load(sys.stdin)
    environment = {key: value for key, value in os.environ.items() if key.startswith("CNI_")}
    with (place / "journal").open("a") as journal:
        journal.write(json.dumps({"command": command, "environment": environment, "config": told}) + "\n")
    behaviour = json.loads((place / "behaviour.json").read_text())
    if command == "VERSION":
        print(json.dumps({"cniVersion": told["cniVersion"], "supportedVersions": behaviour["versions"]}))
        return
    wanted = behaviour.get(command, "")
    if wanted in _MISBEHAVIOURS:
        _MISBEHAVIOURS[wanted](place, told)
    elif wanted.startswith("code "):
        code = int(wanted.split()[1])
        print(json.dumps({"cniVersion": told["cniVersion"], "code": code, "msg": "as told", "details": "by a test"}))
        sys.exit(1)
    else:
        _COMMANDS[command](place, told)


def _add(place: Path, told: dict[str, Any]) -> None:
    _answer(told, _lease(place, told.get("address", "10.77.0")))


def _answer(told: dict[str, Any], address: str) -> None:
    result = {
        "cniVersion": told["cniVersion"],
        "interfaces": [
            {"name": "fake0"},
            {"name": os.environ["CNI_IFNAME"], "sandbox": os.environ["CNI_NETNS"], "mac": "0a:00:00:00:00:01"},
        ],
        "ips": [{"address": f"{address}/24", "interface": 1}],
    }
    if told["cniVersion"].startswith("0."):
        result["ips"][0]["version"] = "4"
    print(json.dumps(result))


def _lease(place: Path, network: str = "10.77.0") -> str:
    for number in range(2, 250):
        try:
            with (place / "leases" / f"{network}.{number}").open("x") as lease:
                lease.write(os.environ["CNI_CONTAINERID"])
        except FileExistsError:
            continue
        return f"{network}.{number}"
    raise SystemExit("no address is left")


def _delete(place: Path, _: dict[str, Any]) -> None:
    _release(place, lambda owner: owner == os.environ["CNI_CONTAINERID"])


def _collect(place: Path, told: dict[str, Any]) -> None:
    valid = {kept["containerID"] for kept in told["cni.dev/valid-attachments"]}
    _release(place, lambda owner: owner not in valid)


def _release(place: Path, gone: Any) -> None:
    for lease in (place / "leases").iterdir():
        if gone(lease.read_text()):
            lease.unlink()


def _check(place: Path, told: dict[str, Any]) -> None:
    owners = [lease.read_text() for lease in (place / "leases").iterdir()]
    if os.environ["CNI_CONTAINERID"] not in owners:
        print(json.dumps({"cniVersion": told["cniVersion"], "code": 100, "msg": "its lease is gone"}))
        sys.exit(1)


def _hang(place: Path, _: dict[str, Any]) -> None:
    with subprocess.Popen(["sleep", "600"]):  # a plugin's own child must go with it
        (place / "hanging").write_text(str(os.getpid()))
        time.sleep(600)


def _crash(place: Path, _: dict[str, Any]) -> None:
    _lease(place)  # what it gave before stays
    os.kill(os.getpid(), signal.SIGSEGV)


def _flood(*_: Any) -> None:
    piece = b"x" * 65536
    for _number in range(FLOOD_BYTES // len(piece)):
        os.write(1, piece)


def _no_address(_: Path, told: dict[str, Any]) -> None:
    print(json.dumps({"cniVersion": told["cniVersion"], "interfaces": [{"name": "fake0"}]}))


def _no_interface(_: Path, told: dict[str, Any]) -> None:
    address = {"address": "10.77.0.2/24", "interface": 0}
    print(json.dumps({"cniVersion": told["cniVersion"], "interfaces": [{"name": "fake0"}], "ips": [address]}))


def _slowly(place: Path, _: dict[str, Any]) -> None:
    """It must not run twice at a time for one container."""
    busy = place / f"busy-{os.environ['CNI_CONTAINERID']}"
    with busy.open("x"):
        time.sleep(0.1)
    busy.unlink()


def _error_with_status_0(_: Path, told: dict[str, Any]) -> None:
    print(json.dumps({"cniVersion": told["cniVersion"], "code": 999, "msg": "no, but exit 0"}))


_COMMANDS = {"ADD": _add, "DEL": _delete, "CHECK": _check, "GC": _collect, "STATUS": lambda *_: None}
_MISBEHAVIOURS = {
    "hang": _hang,
    "crash": _crash,
    "flood": _flood,
    "garbage": lambda *_: print("{]} what?"),
    "silence": lambda *_: None,
    "no address": _no_address,
    "no interface": _no_interface,
    "slowly": _slowly,
    "error with status 0": _error_with_status_0,
    "duplicate": lambda _, told: _answer(told, "10.77.0.2"),
}
