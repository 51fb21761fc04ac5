"""Measure streaming: ours and containerd + runc, in turn in one run, by one client that speaks SPDY.

    .venv/bin/python -m tests.bench.streams [--only NAME] [--rounds 3] [--scale 1.0]
    .venv/bin/python -m tests.bench.streams --endpoint unix:///run/x.sock       a runtime that runs already

Prints medians, and in brackets which part of the peer's figure ours is. ``--scale`` shrinks what is transferred: 1.0 is
1 GiB out by exec, 256 MiB in, 1 GiB through one forwarded connection. Memory is what the runtime's processes grow by
for each session whose client never reads, PSS; what the kernel holds for sockets and pipes is not in it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cri_py.rpc.gen import api_pb2 as pb
from cri_py.wire import spdy_frames as frames
from critest import registry
from critest.images.catalogue import entries
from critest.images.make import push
from critest.images.programs import cache
from tests.bench.compare import BUSYBOX, installed, serving
from tests.bench.peers import PAUSE, remove_groups
from tests.simulators.kubelet import Kubelet, Pod, namespaces, wait_for
from tests.simulators.stream_client import StreamClient

NAMES: Final = ("cri_py", "runc")
_MIB: Final = 1 << 20
_UNIT_MIB: Final = 16  # the file that is sent over and over
_FRAME: Final = 32 << 10  # what clients of Kubernetes copy at once
_PATIENCE_S: Final = 300.0
_SETTLE_S: Final = 1.0
_STUCK: Final = 20
_RUNTIME: Final = ("cri-", "python", "containerd")  # how processes of a runtime are called

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A figure: its unit, and whether less is better."""

    label: str
    unit: str


ROWS: Final[Mapping[str, Row]] = {
    "out": Row("exec cat, to the client", "MB/s"),
    "in": Row("client to exec wc -c", "MB/s"),
    "forward": Row("one forwarded connection, to the client", "MB/s"),
    "many": Row("100 forwarded connections at once, 1 MiB each", "s"),
    "first": Row("first byte of exec true, from the Exec call", "ms"),
    "memory": Row("memory of a session whose client never reads", "MiB"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--endpoint", default="", metavar="unix://PATH", help="instead of starting any")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    taken: dict[str, list[Figures]] = {}
    if options.endpoint:
        taken["it"] = [measured(options.endpoint.removeprefix("unix://"), options.scale) for _ in range(options.rounds)]
    else:
        with registry.running(cache() / "registry") as address:
            push(address, [e for e in entries() if {BUSYBOX, PAUSE.partition("/")[2]} & set(e.names)], quiet=True)
            names = list(installed(options.only or NAMES))
            for name in names * options.rounds:
                with serving(name, address) as path:
                    taken.setdefault(name, []).append(measured(path, options.scale))
    print(table(taken))
    return 0


# ------------------------------------------------------------------ one round


def measured(path: str, scale: float) -> Figures:
    """``path``: of the CRI socket."""
    with tempfile.TemporaryDirectory(prefix="streams-") as directory:
        (Path(directory) / "unit").write_bytes(os.urandom(_UNIT_MIB * _MIB))
        mount = pb.Mount(container_path="/data", host_path=directory, readonly=True)
        with Kubelet(path, Path(directory) / "logs", "/cribench-streams") as kubelet:
            image = f"registry.k8s.io/{BUSYBOX}"
            kubelet.pull(image)
            pod = kubelet.run_pod()
            bench = _Bench(kubelet, pod, image, mount, max(1, round(1024 * scale / _UNIT_MIB)))
            try:
                return bench.all(max(1, round(256 * scale)))
            finally:
                kubelet.remove_pod(pod)
                remove_groups("/cribench-streams")


class _Bench:
    """A pod with one container to execute in and two that listen."""

    def __init__(self, kubelet: Kubelet, pod: Pod, image: str, mount: pb.Mount, units: int) -> None:
        self._kubelet, self._pod, self._units = kubelet, pod, units
        self._script = f"for i in $(seq {units}); do cat /data/unit; done"

        def run(name: str, *command: str) -> str:
            return kubelet.run(pod, *command, name=name, image=image, mounts=[mount])

        self._container = run("idle", "sleep", "100000")
        run("sender", "nc", "-ll", "-p", "9000", "-e", "sh", "-c", self._script)
        wait_for(self._listening, lambda shown: ":2328 " in shown, _PATIENCE_S)

    def _listening(self) -> str:
        return self._kubelet.shell(self._container, "cat /proc/net/tcp /proc/net/tcp6")

    def all(self, in_mib: int) -> Figures:
        first = [self._first_byte_s() for _ in range(100)]
        return {
            "first": statistics.median(first) * 1e3,
            "out": self._out(),
            "in": self._in(in_mib),
            "forward": self._forward(),
            "many": self._many(),
            "memory": self._stuck_mib(),
        }

    @contextmanager
    def _exec(self, *command: str, stdin: bool = False) -> Iterator[StreamClient]:
        asked = self._kubelet.Exec(container_id=self._container, cmd=command, stdin=stdin, stdout=True)
        with StreamClient(asked.url) as client:
            client.socket.settimeout(_PATIENCE_S)
            yield client.open("error", *(["stdin"] if stdin else []), "stdout")

    @contextmanager
    def _forwarded(self, pod: Pod, port: int) -> Iterator[StreamClient]:
        url = self._kubelet.PortForward(pod_sandbox_id=pod.id, port=[port]).url
        with StreamClient(url, "portforward.k8s.io") as client:
            client.socket.settimeout(_PATIENCE_S)
            yield client

    def _first_byte_s(self) -> float:
        since = time.perf_counter()
        with self._exec("true") as client:
            while not any(client.received.values()) and client.take():
                pass
            took = time.perf_counter() - since
            client.until_end()
        return took

    def _out(self) -> float:
        with self._exec("sh", "-c", self._script) as client:
            return _drain(client, self._units * _UNIT_MIB * _MIB)

    def _forward(self) -> float:
        with self._forwarded(self._pod, 9000) as client:
            client.forward(9000, "0")
            return _drain(client, self._units * _UNIT_MIB * _MIB)

    def _in(self, mib: int) -> float:
        with self._exec("wc", "-c", stdin=True) as client:
            stream = client.number("stdin")
            unit = frames.chunk_header(stream, _FRAME) + os.urandom(_FRAME)
            many = memoryview(unit * (_MIB // _FRAME))
            since = time.perf_counter()
            for _ in range(mib):
                client.put(many)
            client.send("stdin", b"", last=True).until_end()
            took = time.perf_counter() - since
            assert int(client.received["stdout"]) == mib * _MIB, client.received
        return mib * _MIB / took / 1e6

    def _many(self) -> float:
        """In a pod of the node's network: the image's programs take nine connections at once, others a second late."""
        security = pb.LinuxSandboxSecurityContext(namespace_options=namespaces(network=pb.NODE))
        config = self._kubelet.pod_config(linux=pb.LinuxPodSandboxConfig(security_context=security))
        config.hostname = ""  # the node's
        pod = self._kubelet.run_pod(config)
        names = [str(number) for number in range(100)]
        with _giving(_MIB, len(names)) as port, self._forwarded(pod, port) as client:
            since = time.perf_counter()
            for name in names:
                client.forward(port, name)
            for name in names:
                client.until_end(("data", name))
            took = time.perf_counter() - since
            for name in names:
                assert len(client.received["data", name]) == _MIB, client.received["error", name]
        self._kubelet.remove_pod(pod)
        return took

    def _stuck_mib(self) -> float:
        time.sleep(_SETTLE_S)
        before = _pss_kib(self._kubelet.socket)
        with ExitStack() as stack:
            for _ in range(_STUCK):
                stack.enter_context(self._exec("cat", "/dev/zero"))
            time.sleep(_SETTLE_S)
            return (_pss_kib(self._kubelet.socket) - before) / _STUCK / 1024


_GIVER: Final = """
import socket, sys, threading
size, connections = map(int, sys.argv[1:])
listener = socket.create_server(("127.0.0.1", 0), backlog=connections)
print(listener.getsockname()[1], flush=True)
def give(connection):
    with connection:
        connection.sendall(bytes(size))
for _ in range(connections):
    threading.Thread(target=give, args=[listener.accept()[0]]).start()
"""


@contextmanager
def _giving(size: int, connections: int) -> Iterator[int]:
    """The port of a process that gives ``size`` bytes to each of so many connections."""
    arguments = [sys.executable, "-c", _GIVER, str(size), str(connections)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as giver:
        assert giver.stdout is not None
        try:
            yield int(giver.stdout.readline())
        finally:
            giver.kill()


def _drain(client: StreamClient, size: int) -> float:
    """Receive ``size`` bytes of data frames, as fast as Python can count them; MB/s."""
    buffer = bytearray(_MIB)
    view = memoryview(buffer)
    since = time.perf_counter()
    got = left = start = 0
    counted = False
    while got < size:
        received = client.socket.recv_into(view[start:])
        assert received, f"the session ended after {got} of {size} bytes"
        at, end, start = 0, start + received, 0
        while at < end:
            if left:
                took = min(left, end - at)
                left -= took
                at += took
                got += took if counted else 0
            elif end - at < frames.HEADER_BYTES:
                start = end - at
                view[:start] = bytes(view[at:end])
                break
            else:
                counted, left = not buffer[at] & 0x80, int.from_bytes(view[at + 5 : at + 8], "big")
                at += frames.HEADER_BYTES
    return size / (time.perf_counter() - since) / 1e6


def _pss_kib(path: str) -> int:
    """Of the runtime that listens at ``path``: its daemon, what that has started, and what is named after the socket's
    directory, as shims are."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    family, mark = {int.from_bytes(credentials[:4], sys.byteorder)}, os.path.dirname(path).encode()
    total = 0
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        place = Path(f"/proc/{pid}")
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if pid in family or parent in family or mark in (place / "cmdline").read_bytes():
                family.add(pid)
                if (place / "comm").read_text().startswith(_RUNTIME):
                    lines = (place / "smaps_rollup").read_text().splitlines()
                    total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue
    return total


# --------------------------------------------------------------------- tables


def table(taken: Mapping[str, Sequence[Figures]]) -> str:
    """Markdown: medians, of ours with its share of the first peer's."""
    names = list(taken)
    lines = [f"| | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 1)}"]
    for key, row in ROWS.items():
        medians = {name: _median(rounds, key) for name, rounds in taken.items()}
        peer = next((medians[name] for name in names if name != "cri_py"), None)
        cells = [_cell(medians[name], peer if name == "cri_py" else None) for name in names]
        lines.append(f"| {row.label}, {row.unit} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(rounds: Sequence[Figures], key: str) -> float | None:
    found = [figures[key] for figures in rounds if key in figures]
    return statistics.median(found) if found else None


def _cell(figure: float | None, peer: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.3g}" + (f" ({figure / peer:.2f})" if peer else "")


if __name__ == "__main__":
    sys.exit(main())
