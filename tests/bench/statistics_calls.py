"""Measure what monitoring costs: statistics and metrics of many pods, updates of resources, and an idle daemon.

    .venv/bin/python -m tests.bench.statistics_calls [--only cri_py|runc] [--idle-s 60] [--steps 100 200 500]

100 pods of one container each, then 200, then 500; ours first, then containerd + runc with 100. Prints medians,
and for ours how many times the figure with 100 the one with many is. Idle is the CPU time of the daemon, its spawner
and its monitors (or of containerd and its shims) while nobody asks, from /proc/PID/task/*/schedstat. Needs root, an
otherwise idle machine, and for the peer what ``tests.bench.peers`` names.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from cri_py.rpc.gen import api_pb2 as pb
from tests.bench.compare import installed
from tests.simulators.busybox import BUSYBOX, push_images
from tests.simulators.kubelet import Kubelet
from tests.simulators.registry import RegistrySimulator
from tests.system import peer
from tests.system.daemon import Daemon

NAMES: Final = ("cri_py", "runc")
LISTS: Final = ("ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics")
_CALLS: Final = 21
_UPDATES: Final = 60
_SETTLE_S: Final = 15.0
_PAUSE_S: Final = 0.05
Figures = dict[str, float]
Pids = Callable[[], list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 500], help="of ours; the peer has 100")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    found: dict[str, Figures] = {}
    with RegistrySimulator() as registry:
        push_images(registry)
        for name in installed(options.only or NAMES):
            steps = tuple(options.steps) if name == "cri_py" else (100,)
            with _serving(name, registry) as (kubelet, pids):
                found[name] = _measured(kubelet, pids, steps, options.idle_s)
    for name, figures in found.items():
        print(f"\n| {name} | p50 |\n| --- | --- |")
        for label, number in figures.items():
            print(f"| {label} | {number:.3g} |")
    return 0


@contextlib.contextmanager
def _serving(name: str, registry: RegistrySimulator) -> Iterator[tuple[Kubelet, Pids]]:
    """A driver, and what answers the pids of the runtime's own processes."""
    if name != "cri_py":
        with peer.serving(name, registry) as kubelet:
            kubelet.pull(BUSYBOX)
            yield kubelet, lambda: _named_with(os.path.dirname(kubelet.socket))
        return
    daemon = Daemon(registry.url)
    daemon.subnet = f"{daemon.subnet.rpartition('.')[0].rpartition('.')[0]}.0.0/16"  # room for more than 253 pods
    try:
        daemon.start()
        daemon.kubelet.pull(BUSYBOX)
        yield daemon.kubelet, lambda: [daemon.pid, *daemon.spawners(), *daemon.monitors()]
    finally:
        daemon.destroy()


def _measured(kubelet: Kubelet, pids: Pids, steps: tuple[int, ...], idle_s: float) -> Figures:
    figures: Figures = {}
    pods = 0
    for step in steps:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: _run(kubelet), range(step - pods)))
        pods = step
        time.sleep(_SETTLE_S)
        if step <= 200:
            figures[f"idle, {step} pods, % of a core"] = _idle(pids(), idle_s)
        for method in LISTS:
            try:
                figures[f"{method}, {step} pods, ms"] = _median(getattr(kubelet, method))
            except grpc.RpcError as error:
                print(f"{method} with {step} pods: {error}", file=sys.stderr)  # a peer that lacks it
        if step == steps[0]:
            figures["UpdateContainerResources, ms"] = _updates(kubelet)
    for method in LISTS:
        most, least = (figures.get(f"{method}, {step} pods, ms") for step in (steps[-1], steps[0]))
        if most and least and most is not least:
            figures[f"{method}: {steps[-1]} as a multiple of {steps[0]}"] = most / least
    return figures


def _run(kubelet: Kubelet) -> str:
    return kubelet.run(kubelet.run_pod(), "sleep", "86413")


def _median(call: Callable[[], Any], count: int = _CALLS) -> float:
    """Of calls with a pause between them, the first left out, in ms."""
    taken = []
    for _ in range(count + 1):
        since = time.perf_counter()
        call()
        taken.append((time.perf_counter() - since) * 1000)
        time.sleep(_PAUSE_S)
    return statistics.median(taken[1:])


def _updates(kubelet: Kubelet) -> float:
    """Of one container, up and down in turn: shares, quota and memory."""
    container = _run(kubelet)
    sizes = [
        pb.LinuxContainerResources(
            cpu_shares=shares, cpu_period=100_000, cpu_quota=quota, memory_limit_in_bytes=memory << 20
        )
        for shares, quota, memory in ((512, 20_000, 64), (1024, 50_000, 128))
    ]
    turn = iter(range(_UPDATES + 1))
    return _median(
        lambda: kubelet.UpdateContainerResources(container_id=container, linux=sizes[next(turn) % 2]), _UPDATES
    )


def _idle(pids: list[int], seconds: float) -> float:
    before = sum(map(_cpu_ns, pids))
    time.sleep(seconds)
    return (sum(map(_cpu_ns, pids)) - before) / 1e9 / seconds * 100


def _named_with(text: str) -> list[int]:
    """Processes that have ``text`` in their command line: containerd and its shims name the socket."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def _cpu_ns(pid: int) -> int:
    """Of all threads, to the ns, where /proc/PID/stat has ticks of 10 ms."""
    return sum(int(each.read_text().split()[0]) for each in Path(f"/proc/{pid}/task").glob("*/schedstat"))


if __name__ == "__main__":
    sys.exit(main())
