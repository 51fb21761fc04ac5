"""The real daemon as a subprocess, with directories, cgroups, a bridge and a subnet of its own, and what it leaves."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc

from cri_py.cgroups import detect
from cri_py.kernel import procfs
from tests.simulators.busybox import HOST
from tests.simulators.kubelet import Kubelet, wait_for

START_S: Final = 90.0  # an emulated machine compiles every module at the first start
SETTLE_S: Final = 20.0  # in a guest on a busy machine a tree of thousands of directories takes more than five to go
# As a shell's background job or nohup starts it; no container may notice. Python resets SIGPIPE by itself.
_IGNORING: Final = ("env", "--ignore-signal=QUIT,HUP,USR1,USR2,ALRM")
_PYTHON: Final = (sys.executable, "-m", "cri_py", "serve")


# One after the other from anywhere: by chance alone, one of a session's hundreds would meet another's now and then.
_SUBNETS: Final = itertools.count(secrets.randbelow(25_600))
_CAPABILITIES: Final = {"portmap": {"portMappings": True}, "bandwidth": {"bandwidth": True}}


class Daemon:
    """``start`` and ``destroy`` are the fixture's; between them a test may kill, stop and start it as it likes."""

    def __init__(self, mirror: str, settings: str = "", *, cni: Sequence[str] = (), driver: str = "cgroupfs") -> None:
        """``cni``: of Debian's CNI plugins, those that attach pods instead of the built-in bridge. ``driver``: what
        makes its cgroups; it is named, since in a guest with systemd auto would be systemd."""
        mark = secrets.token_hex(3)
        self.directory = Path(tempfile.mkdtemp(prefix=f"cri-{mark}-", dir="/tmp"))
        self.root, self.state = self.directory / "root", self.directory / "state"
        self.socket, self.metrics_socket = f"{self.state}/cri.sock", f"{self.state}/metrics.sock"
        self.log_file = self.directory / "log"
        self.driver = driver
        self.cgroup_parent = f"/cri_py_test_{mark}.slice" if driver == "systemd" else f"/cri_py-test-{mark}"
        self.bridge = f"crt{mark}"
        number = next(_SUBNETS) % 25_600
        self.subnet = f"10.{100 + number // 256}.{number % 256}.0/24"
        self.config_file = self.directory / "config.toml"
        self._has_cni = bool(cni)
        if cni:
            settings = f"{settings}\n{self._configure_cni(cni)}"
        self._registries = (
            f'[images.registries."{HOST}"]\nmirrors = ["{mirror}"]\n'
            f'[images.registries."{mirror.removeprefix("http://")}"]\ninsecure = true\n'
        )
        self.set(settings)
        self.kubelet = Kubelet(self.socket, self.directory / "logs", self.cgroup_parent)
        self._process: subprocess.Popen[bytes] | None = None
        self._descriptors: Counter[str] = Counter()
        self._told: set[str] = set()

    def set(self, settings: str) -> None:
        """Other settings from the next start on, instead of those that it was made with."""
        self.config_file.write_text(f"{settings}\n{self._registries}")

    def _configure_cni(self, chain: Sequence[str]) -> str:
        """The configuration that an add-on would write, and ours that names it; the same bridge, so the same traces."""
        ranges = [[{"subnet": self.subnet}], [{"subnet": "fd00:c41::/64"}]]
        ipam = {
            "type": "host-local",
            "dataDir": f"{self.directory}/ipam",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        first = {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": True, "hairpinMode": True}
        plugins = [{**first, "ipam": ipam}]
        plugins += [{"type": kind, "capabilities": _CAPABILITIES.get(kind, {})} for kind in chain if kind != "bridge"]
        (self.directory / "net.d").mkdir()
        document = {"cniVersion": "1.0.0", "name": self.bridge, "plugins": plugins}
        (self.directory / "net.d" / "10-debian.conflist").write_text(json.dumps(document))
        return f'[network]\nplugin = "cni"\ncni_conf_dir = "{self.directory}/net.d"\nnetns_dir = "{self.state}/netns"\n'

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def command(self) -> tuple[str, ...]:
        """What serves."""
        return (
            *_PYTHON,
            *("--config", str(self.config_file), "--root", str(self.root), "--state", str(self.state)),
            *("--cgroup-parent", self.cgroup_parent, "--bridge", self.bridge, "--subnet", self.subnet),
            *("--cgroup-driver", self.driver),
        )

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Until it answers."""
        assert self._process is None
        # The spawner and its monitors inherit nothing but PATH, by which they are told from other daemons' ones.
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{self.directory}"}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*_IGNORING, *self.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        self.kubelet.disconnect()
        wait_for(self._answers, bool, START_S)

    def try_another(self, *flags: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one with this one's config and cgroups, and other ``flags``, to its end: it must be refused."""
        arguments = ("--config", self.config_file, "--cgroup-parent", self.cgroup_parent, "--bridge", self.bridge)
        return subprocess.run(
            [*_PYTHON, *arguments, "--subnet", self.subnet, *flags],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=START_S,
        )

    def _answers(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        assert status is None, f"the daemon ended with status {status}:\n{self.log_since(0)[-4000:]}"
        if not os.path.exists(self.socket):
            return False
        try:
            self.kubelet.Version(deadline_s=1.0)
        except grpc.RpcError:
            self.kubelet.disconnect()
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, as the OOM killer would."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(timeout=START_S)
        self._process = None
        self.kubelet.disconnect()
        return status

    def crash(self) -> None:
        """As a power cut: everything that ran is gone, and what lay in memory."""
        self.kill()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(self.processes, lambda pids: not pids)
        self._remove_kernel_traces()
        shutil.rmtree(self.state)

    def destroy(self) -> None:
        """Whatever a test did, nothing of the daemon is left on the machine."""
        try:
            if self._process is None:
                self.start()
            self.kubelet.sweep()
        finally:
            if self._process is not None:
                self.kill()
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_for(self.processes, lambda pids: not pids)
            self._remove_traces()

    def make_cgroup_parent(self) -> None:
        """As a kubelet does. The daemon would keep one of its own for two seconds, which each test would wait for that
        looks for leaks in the whole machine."""
        for directory in detect().directories(self.cgroup_parent):
            os.makedirs(directory)

    def _remove_traces(self) -> None:
        self._remove_kernel_traces()
        shutil.rmtree(self.directory)

    def _remove_kernel_traces(self) -> None:
        for mount in reversed(self._mounts()):
            subprocess.run(["umount", "--lazy", mount], check=False)
        for directory in reversed(self.cgroups()):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        for interface in (*self._ports(), self.bridge):
            subprocess.run(["ip", "link", "del", interface], check=False, capture_output=True)
        name = f"cri_py_{self.bridge}"
        for table in (("ip", name), ("ip6", name), ("inet", name), ("inet", f"{name}_ports")):
            subprocess.run(["nft", "delete", "table", *table], check=False, capture_output=True)
        if self._has_cni:
            for program in ("iptables", "ip6tables"):
                self._remove_masquerading(program)

    def _remove_masquerading(self, program: str) -> None:
        """Debian's bridge plugin leaves its rules when DEL is told that the namespace is gone; a reboot takes them."""
        listed = subprocess.run([program, "-t", "nat", "-S", "POSTROUTING"], check=True, capture_output=True, text=True)
        rules = [shlex.split(line) for line in listed.stdout.splitlines() if f'\\"{self.bridge}\\"' in line]
        for rule in rules:
            chain = rule[-1]
            for command in (["-D", *rule[1:]], ["-F", chain], ["-X", chain]):
                subprocess.run([program, "-w", "-t", "nat", *command], check=False, capture_output=True)

    # --------------------------------------------------------------- looking

    def log_since(self, offset: int) -> str:
        return self.log_file.read_bytes()[offset:].decode(errors="replace")

    def metrics(self, page: str = "/metrics") -> str:
        """What Prometheus would read."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(self.metrics_socket)
            connection.sendall(f"GET {page} HTTP/1.0\r\nHost: test\r\n\r\n".encode())
            parts = list(iter(lambda: connection.recv(65536), b""))
        head, _, body = b"".join(parts).partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        return body.decode()

    def spawners(self) -> list[int]:
        return [pid for pid in self._marked() if _name(pid) == "cri-spawner"]

    def monitors(self) -> list[int]:
        return [pid for pid in self._marked() if _name(pid) == "cri-monitor"]

    def processes(self) -> list[int]:
        """Monitors and all that they started: holders, inits, programs, execs."""
        return sorted({*self.monitors(), *self._holders(), *self._members()})

    def cgroups(self) -> list[str]:
        """Directories of its own, parents first."""
        roots = [m.path for m in procfs.mountinfo() if m.fstype in {"cgroup", "cgroup2"}]
        found = [directory for root in roots for directory, _, _ in os.walk(root + self.cgroup_parent)]
        return sorted(set(found))

    def _marked(self) -> list[int]:
        """Processes with the daemon's directory in their PATH, itself aside."""
        mark, own = str(self.directory).encode(), self._process.pid if self._process else 0
        return [pid for pid in _pids() if pid != own and mark in _read(f"/proc/{pid}/environ")]

    def _holders(self) -> list[int]:
        return [pid for pid in _pids() if _link(f"/proc/{pid}/exe").removesuffix(" (deleted)") == f"{self.root}/holder"]

    def _members(self) -> list[int]:
        members = {pid for group in self.cgroups() for pid in _read(f"{group}/cgroup.procs").split()}
        return [int(pid) for pid in members if int(pid) != os.getpid()]

    def _mounts(self) -> list[str]:
        return [m.path for m in procfs.mountinfo() if m.path.startswith(f"{self.directory}/")]

    def _ports(self) -> list[str]:
        try:
            return os.listdir(f"/sys/class/net/{self.bridge}/brif")
        except FileNotFoundError:
            return []

    # ----------------------------------------------------------------- leaks

    def remember(self) -> None:
        """What it has open now is what it may have open when all pods are gone."""
        self._descriptors = self._open()

    def left_over(self) -> list[str]:
        """What is there though no pod is, once it had time to go; a line each, told but once."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            lines = [line for line in self._remains() if line not in self._told]
            if not lines or time.monotonic() > deadline:
                self._told.update(lines)
                return lines
            time.sleep(0.01)

    def _remains(self) -> list[str]:
        places = (self.state / "pods", self.state / "trash", self.state / "netns", self.root / "containers")
        entries = [entry for place in (*places, self.root / "trash") for entry in _entries(place)]
        return [
            *(f"process {pid} {_name(pid)}" for pid in self.processes()),
            *(f"mount {path}" for path in self._mounts()),
            *(f"cgroup {path}" for path in self.cgroups() if not path.endswith(self.cgroup_parent)),  # it may linger
            *(f"entry {path}" for path in entries),
            *(f"interface {name}" for name in self._ports()),
            *(f"{count} more open: {kind}" for kind, count in (self._open() - self._descriptors).items()),
        ]

    def _open(self) -> Counter[str]:
        """The daemon's descriptors by kind. Sockets may also be kept connections to a registry, so they aren't told."""
        if self._process is None:
            return Counter()
        links = [_link(f"/proc/{self.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.pid}/fd")]
        return Counter(link.split(":[")[0] for link in links if link)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _name(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode(errors="replace").strip()


def _read(path: str) -> bytes:
    """Empty for what has gone meanwhile, and for processes that may do more than this one: those are strangers."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENODEV):  # this of a cgroup
            raise
        return b""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []
