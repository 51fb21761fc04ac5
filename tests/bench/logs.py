"""Measure how fast a container's output reaches its log: 1 GiB of 100-byte lines, written as fast as cat can.

    .venv/bin/python -m tests.bench.logs [--only NAME] [--mib 1024]

Prints bytes of output per second, from StartContainer's answer to the exit, for each runtime, and checks that no line
is missing.
"""

from __future__ import annotations

import argparse
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
from tests.bench.compare import BUSYBOX, NAMES, serving
from tests.bench.peers import PAUSE, remove_groups
from tests.simulators.kubelet import Kubelet

_LINE: Final = b"x" * 99 + b"\n"
_CHUNK_MIB: Final = 32
_PATIENCE_S: Final = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--mib", type=int, default=1024, help=f"how much is written, a multiple of {_CHUNK_MIB}")
    options = parser.parse_args()
    with registry.running(cache() / "registry") as address:
        push(address, [e for e in entries() if {BUSYBOX, PAUSE.partition("/")[2]} & set(e.names)], quiet=True)
        for name in options.only or NAMES:
            with serving(name, address) as socket, tempfile.TemporaryDirectory(prefix="logs-") as directory:
                rate = measure(socket, Path(directory), options.mib // _CHUNK_MIB)
                print(f"{name}: {rate / 1e6:.0f} MB/s", flush=True)
    return 0


def measure(socket: str, directory: Path, chunks: int) -> float:
    """Bytes a second. Raises if lines are missing."""
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
        started = time.perf_counter()
        kubelet.wait(container, timeout_s=_PATIENCE_S)
        elapsed_s = time.perf_counter() - started
        counted = subprocess.run(["wc", "-l", kubelet.log_file(container)], check=True, capture_output=True).stdout
        kubelet.remove_pod(pod)
    remove_groups("/cribench-logs")
    if int(counted.split()[0]) != lines * chunks:
        raise RuntimeError(f"{lines * chunks} lines were written, {counted.decode()} are in the log")
    return lines * chunks * len(_LINE) / elapsed_s


if __name__ == "__main__":
    sys.exit(main())
