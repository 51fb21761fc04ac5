"""Measure what monitoring costs: statistics and metrics of many pods, updates of resources, and an idle daemon.

    .venv/bin/python -m tests.bench.statistics_calls [--only cri_py|runc] [--idle-s 60]

100 pods of one container each, then the same pods with 500 containers, then 200 pods while nobody asks; ours first,
then containerd + runc with 100. Prints medians, the CPU time of a call, which a busy machine changes less, and how many
times the figures with 100 containers those with 500 are. Idle is the CPU time of the daemon, its spawner and its
monitors (or of containerd and its shims), from /proc/PID/task/*/schedstat. Needs root, an otherwise idle machine, and
for the peer what ``tests.bench.peers`` names.
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
from typing import Any, Final, TypeVar

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
_PROGRAM: Final = ("sleep", "86413")
_T = TypeVar("_T")
Figures = dict[str, tuple[float, float]]
"""By label: the median in ms, and the runtime's CPU time in ms."""
Pids = Callable[[], list[int]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--idle-s", type=float, default=60.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    found: dict[str, Figures] = {}
    with RegistrySimulator() as registry:
        push_images(registry)
        for name in installed(options.only or NAMES):
            with _serving(name, registry) as (kubelet, pids):
                found[name] = _measured(kubelet, pids, options.idle_s, ours=name == "cri_py")
    for name, figures in found.items():
        print(f"\n| {name} | p50 | CPU |\n| --- | --- | --- |")
        for label, numbers in figures.items():
            print(f"| {label} | {' | '.join(f'{number:.3g}' for number in numbers)} |")
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
    try:
        daemon.start()
        daemon.kubelet.pull(BUSYBOX)
        yield daemon.kubelet, lambda: [daemon.pid, *daemon.spawners(), *daemon.monitors()]
    finally:
        daemon.destroy()


def _measured(kubelet: Kubelet, pids: Pids, idle_s: float, *, ours: bool) -> Figures:
    pods = _together(100, lambda _: kubelet.run_pod())
    _together(100, lambda at: kubelet.run(pods[at], *_PROGRAM))
    time.sleep(_SETTLE_S)
    few = _lists(kubelet, pids())
    figures = {f"{method}, 100 pods of one container, ms": ms for method, ms in few.items()}
    figures["UpdateContainerResources, ms"] = _updates(kubelet, pids())
    if ours:
        _together(400, lambda at: kubelet.run(pods[at % 100], *_PROGRAM, name=f"more-{at}"))
        time.sleep(_SETTLE_S)
        many = _lists(kubelet, pids())
        figures |= {f"{method}, 100 pods, 500 containers, ms": ms for method, ms in many.items()}
        for method, (wall, cpu) in many.items():
            figures[f"{method}, 500 containers by 100"] = wall / few[method][0], cpu / few[method][1]
        kubelet.sweep()
        _together(200, lambda _: kubelet.run(kubelet.run_pod(), *_PROGRAM))
        time.sleep(_SETTLE_S)
    figures[f"idle with {200 if ours else 100} pods, % of a core"] = (0.0, _idle(pids(), idle_s))
    return figures


def _together(count: int, act: Callable[[int], _T]) -> list[_T]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(act, range(count)))


def _lists(kubelet: Kubelet, pids: list[int]) -> Figures:
    """By method; without those that a peer lacks."""
    found = {}
    for method in LISTS:
        try:
            found[method] = _figures_of(getattr(kubelet, method), pids)
        except grpc.RpcError as error:
            print(f"{method}: {error}", file=sys.stderr)
    return found


def _figures_of(call: Callable[[], Any], pids: list[int], count: int = _CALLS) -> tuple[float, float]:
    """Of calls with a pause between them, the first left out."""
    call()
    taken, before = [], sum(map(_cpu_ns, pids))
    for _ in range(count):
        since = time.perf_counter()
        call()
        taken.append((time.perf_counter() - since) * 1000)
        time.sleep(_PAUSE_S)
    return statistics.median(taken), (sum(map(_cpu_ns, pids)) - before) / 1e6 / count


def _updates(kubelet: Kubelet, pids: list[int]) -> tuple[float, float]:
    """Of one container, up and down in turn: shares, quota and memory."""
    container = kubelet.run(kubelet.run_pod(), *_PROGRAM)
    sizes = [
        pb.LinuxContainerResources(
            cpu_shares=shares, cpu_period=100_000, cpu_quota=quota, memory_limit_in_bytes=memory << 20
        )
        for shares, quota, memory in ((512, 20_000, 64), (1024, 50_000, 128))
    ]
    turn = iter(range(_UPDATES + 1))
    return _figures_of(
        lambda: kubelet.UpdateContainerResources(container_id=container, linux=sizes[next(turn) % 2]), pids, _UPDATES
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
