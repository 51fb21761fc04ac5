"""Measure what pods' networks carry: iperf3 over ours built in, ours by CNI, and containerd's by the same CNI chain.

    .venv/bin/python -m tests.bench.throughput [--only NAME] [--turns 15] [--seconds 2]

One iperf3 differs from the next by a tenth and more, whatever made the network, and those of an hour from those of the
next. So the runtimes run side by side, with two pods each, and take turns, each turn in another order; printed are
medians, in brackets the median of the ratios to containerd within a turn and its quartiles, and the CPU time of the
machine for a gigabyte. Needs iperf3 beside what ``compare`` needs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from critest import registry
from critest.images.catalogue import entries
from critest.images.make import push
from critest.images.programs import cache
from tests.bench.compare import installed
from tests.bench.network import NAMES, PEER, serving_network
from tests.bench.peers import PAUSE, remove_groups
from tests.simulators.kubelet import Kubelet

_PARENT: Final = "/cribench-throughput"
_IPERF_S: Final = 30.0
_SETTLE_S: Final = 2.0
ROWS: Final[Mapping[str, str]] = {"pods": "pod to pod", "host": "node to pod"}


class Carried(NamedTuple):
    gbits: float  # per second
    cpu_s: float  # of the whole machine, per gigabyte


@dataclass(frozen=True)
class Ends:
    """Two pods of one runtime."""

    address: str  # of the one that listens
    listens: tuple[str, ...]  # enters its network
    asks: tuple[str, ...]  # enters the other's


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=int, default=2, help="of each iperf3")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    with registry.running(cache() / "registry") as address, contextlib.ExitStack() as stack:
        push(address, [e for e in entries() if PAUSE.partition("/")[2] in e.names], quiet=True)
        ends = {name: stack.enter_context(_ends(name, address)) for name in installed(options.only or NAMES)}
        time.sleep(_SETTLE_S)
        taken = _take_turns(ends, options.turns, options.seconds)
    print(table(taken))
    return 0


@contextlib.contextmanager
def _ends(name: str, address: str) -> Iterator[Ends]:
    with (
        serving_network(name, address) as socket,
        tempfile.TemporaryDirectory(prefix="throughput-") as directory,
        Kubelet(socket, Path(directory) / "logs", _PARENT) as kubelet,
    ):
        try:
            pods = [kubelet.run_pod() for _ in range(2)]
            shown = [json.loads(kubelet.PodSandboxStatus(pod_sandbox_id=p.id, verbose=True).info["info"]) for p in pods]
            inside = [("nsenter", "--net", "--target", str(each["pid"])) for each in shown]
            yield Ends(kubelet.pod_status(pods[0]).network.ip, *inside)
        finally:
            kubelet.sweep()
            remove_groups(_PARENT)


def _take_turns(ends: Mapping[str, Ends], turns: int, seconds: int) -> dict[str, dict[str, list[Carried]]]:
    """By runtime and row, one for each turn."""
    taken: dict[str, dict[str, list[Carried]]] = {name: {row: [] for row in ROWS} for name in ends}
    order = [(name, row) for name in ends for row in ROWS]
    for _ in range(turns):
        random.shuffle(order)
        for name, row in order:
            pair = ends[name]
            taken[name][row].append(_carried(pair, pair.asks if row == "pods" else (), seconds))
    return taken


def _carried(pair: Ends, asks: Sequence[str], seconds: int) -> Carried:
    with _listening([*pair.listens, "iperf3", "--server", "--one-off", "--forceflush"]):
        before = _busy_s()
        asking = [*asks, "iperf3", "--json", "--client", pair.address, "--time", str(seconds)]
        told = json.loads(subprocess.run(asking, check=True, capture_output=True, timeout=_IPERF_S).stdout)
        spent = _busy_s() - before
    if "error" in told:  # its exit status is 0 all the same
        raise RuntimeError(f"iperf3: {told['error']}")
    received = told["end"]["sum_received"]
    return Carried(float(received["bits_per_second"]) / 1e9, spent / (float(received["bytes"]) / 1e9))


@contextlib.contextmanager
def _listening(command: Sequence[str]) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        assert server.stdout is not None
        try:
            while b"listening" not in (line := server.stdout.readline()):
                if not line:
                    raise RuntimeError(f"{' '.join(command)} ended before it listened")
            yield
            server.communicate(timeout=_IPERF_S)
        finally:
            server.kill()


def _busy_s() -> float:
    """CPU time of the whole machine: what a softirq does is no process's. proc_stat(5), in s."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def table(taken: Mapping[str, Mapping[str, Sequence[Carried]]]) -> str:
    names = list(taken)
    lines = [f"| iperf3 | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row, label in ROWS.items():
        theirs = taken.get(PEER, {}).get(row, ())
        cells = [_cell(taken[name][row], () if name == PEER else theirs) for name in names]
        lines.append(f"| {label}, Gbit/s | {' | '.join(cells)} |")
        spent = (statistics.median(each.cpu_s for each in taken[name][row]) for name in names)
        lines.append(f"| {label}, CPU per GB, s | {' | '.join(f'{each:.2f}' for each in spent)} |")
    return "\n".join(lines)


def _cell(ours: Sequence[Carried], theirs: Sequence[Carried]) -> str:
    figure = f"{statistics.median(each.gbits for each in ours):.3g}"
    if not theirs:
        return figure
    low, middle, high = statistics.quantiles((a.gbits / b.gbits for a, b in zip(ours, theirs, strict=True)), n=4)
    return f"{figure} ({middle:.2f}; {low:.2f} to {high:.2f})"


if __name__ == "__main__":
    sys.exit(main())
