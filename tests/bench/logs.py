"""Measure how fast a container's output reaches its log: 1 GiB of 100-byte lines, written as fast as cat can.

    .venv/bin/python -m tests.bench.logs [--only NAME] [--mib 1024]
    .venv/bin/python -m tests.bench.logs --endpoint unix:///run/x.sock       a runtime that runs already

Prints the seconds from StartContainer's answer to the last byte in the log file, and the rate, and checks that no line
is missing.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from cri_py.rpc.gen import api_pb2 as pb
from critest import registry
from critest.images.catalogue import entries
from critest.images.make import push
from critest.images.programs import cache
from tests.bench.compare import BUSYBOX, NAMES, installed, serving
from tests.bench.peers import PAUSE, remove_groups
from tests.simulators.kubelet import Kubelet, wait_for

_LINE: Final = b"x" * 99 + b"\n"
_CHUNK_MIB: Final = 32
_PATIENCE_S: Final = 300
_DRAIN_S: Final = 20.0  # a runtime may say that a container has ended before its log is whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--endpoint", default="", metavar="unix://PATH", help="instead of starting any")
    parser.add_argument("--mib", type=int, default=1024, help=f"how much is written, a multiple of {_CHUNK_MIB}")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    if options.endpoint:
        report(options.endpoint, options.endpoint.removeprefix("unix://"), options.mib)
        return 0
    with registry.running(cache() / "registry") as address:
        push(address, [e for e in entries() if {BUSYBOX, PAUSE.partition("/")[2]} & set(e.names)], quiet=True)
        for name in installed(options.only or NAMES):
            with serving(name, address) as socket:
                report(name, socket, options.mib)
    return 0


def report(name: str, socket: str, mib: int) -> None:
    chunks = max(1, mib // _CHUNK_MIB)
    with tempfile.TemporaryDirectory(prefix="logs-") as directory:
        elapsed_s = measure(socket, Path(directory), chunks)
    written = chunks * _CHUNK_MIB * (1 << 20)
    print(f"{name}: {written >> 20} MiB in {elapsed_s:.2f} s, {written / elapsed_s / 1e6:.0f} MB/s", flush=True)


def measure(socket: str, directory: Path, chunks: int) -> float:
    """Seconds. Fails if lines are missing."""
    lines = _CHUNK_MIB * (1 << 20) // len(_LINE)
    (directory / "lines").write_bytes(_LINE * lines)
    script = f"for i in $(seq {chunks}); do cat /lines; done"
    mount = pb.Mount(container_path="/lines", host_path=str(directory / "lines"), readonly=True)
    with Kubelet(socket, directory / "logs", "/cribench-logs") as kubelet:
        image = f"registry.k8s.io/{BUSYBOX}"
        kubelet.pull(image)
        pod = kubelet.run_pod()
        container = kubelet.create(pod, "sh", "-c", script, image=image, mounts=[mount])
        kubelet.start(container)
        started = time.time()  # the clock of the log's modification time
        kubelet.wait(container, timeout_s=_PATIENCE_S)
        log = kubelet.log_file(container)
        wait_for(lambda: count_lines(log), lambda count: count == lines * chunks, _DRAIN_S)
        elapsed_s = log.stat().st_mtime - started
        kubelet.remove_pod(pod)
    remove_groups("/cribench-logs")
    return elapsed_s


def count_lines(path: Path) -> int:
    return int(subprocess.run(["wc", "-l", path], check=True, capture_output=True).stdout.split()[0])


if __name__ == "__main__":
    sys.exit(main())
