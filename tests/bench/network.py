"""Measure the pods' network: ours built in, ours by CNI, containerd by the same CNI chain, in turn in one run.

    .venv/bin/python -m tests.bench.network [--only NAME] [--rounds 3] [--pods 50] [--scale 1,50,100,200]

Prints medians, and in brackets how many times the figure of containerd ours is. ``network of a run`` is what a
RunPodSandbox takes longer than one on the node's network; with ``--scale`` it is measured beside as many pods, and
nothing else is. Needs what ``compare`` needs. How much a pod's network carries is ``throughput``'s.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from cri_py.rpc.gen import api_pb2 as pb
from critest import registry
from critest.images.catalogue import HOSTS, entries
from critest.images.make import push
from critest.images.programs import cache
from tests.bench.compare import installed, serving
from tests.bench.peers import PAUSE, cni_text, remove_groups
from tests.simulators.kubelet import Kubelet, namespaces
from tests.system.daemon import Daemon

PEER: Final = "runc"
CNI: Final = "cri_py+cni"
NAMES: Final = ("cri_py", CNI, PEER)
_PARENT: Final = "/cribench-network"
_CNI_SUBNET: Final = "10.230.0.0/16"  # beside that of the peer, which may run at the same time
_WORKERS: Final = 8
_SETTLE_S: Final = 2.0
_PAIRS: Final = 20

Figures = dict[str, float]
ROWS: Final[Mapping[str, str]] = {
    "run": "RunPodSandbox, ms",
    "network": "network of a run, ms",
    "port": "RunPodSandbox with a host port, ms",
    "many": "RunPodSandbox beside as many pods as --pods, ms",
    "stop": "StopPodSandbox, ms",
    "parallel": "pods up per second, 8 workers",
}
_SCALE: Final = {"run": "RunPodSandbox, ms,", "network": "network of a run, ms,"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--scale", type=_counts, default=(), help="the network of a run beside 1,50,100,200 pods")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    taken: dict[str, list[Figures]] = {}
    with registry.running(cache() / "registry") as address:
        push(address, [e for e in entries() if PAUSE.partition("/")[2] in e.names], quiet=True)
        for name in list(installed(options.only or NAMES)) * options.rounds:
            with serving_network(name, address) as socket:
                taken.setdefault(name, []).append(_measured(socket, options))
    print(table(taken, rows_of_scale(options.scale) if options.scale else ROWS))
    return 0


@contextlib.contextmanager
def serving_network(name: str, address: str) -> Iterator[str]:
    """One of NAMES; yields its socket."""
    if name != CNI:
        with serving(name, address) as socket:
            yield socket
        return
    tables = [f'[images.registries."{host}"]\nmirrors = ["http://{address}"]' for host in HOSTS]
    daemon = Daemon(f"http://{address}", "\n".join(tables), cni=["bridge"])
    (daemon.directory / "net.d" / "10-debian.conflist").write_text(
        cni_text(daemon.bridge, daemon.directory, _CNI_SUBNET)
    )
    try:
        daemon.start()
        yield daemon.socket
    finally:
        daemon.destroy()


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(word) for word in text.split(",")))


def rows_of_scale(counts: Sequence[int]) -> dict[str, str]:
    """The rows of a table that tells what becomes of the network as pods grow more."""
    rows = {f"{what} {count}": f"{label} beside {count} pods" for what, label in _SCALE.items() for count in counts}
    return {**rows, "parallel": ROWS["parallel"], "parallel on node": "the same on the node's network"}


def _measured(socket: str, options: argparse.Namespace) -> Figures:
    """One round with a runtime that listens at ``socket``."""
    with (
        tempfile.TemporaryDirectory(prefix="network-") as directory,
        Kubelet(socket, Path(directory) / "logs", _PARENT) as kubelet,
    ):
        try:
            figures = _Round(kubelet)
            return figures.scale(options.scale) if options.scale else figures.all(options.pods)
        finally:
            kubelet.sweep()
            remove_groups(_PARENT)


class _Round:
    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self._stops: list[float] = []

    def all(self, pods: int) -> Figures:
        self._runs(3, [])  # what is made once is made
        run = self._runs(20, [])
        node = self._runs(20, [], on_node=True)
        port = self._runs(10, [pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=28080)])
        self._stops.clear()
        self._runs(20, [])
        stop = statistics.median(self._stops)
        figures = {"run": run, "network": run - node, "port": port, "stop": stop}
        return {**figures, "parallel": self._parallel(pods), "many": self._runs(20, [])}

    def scale(self, counts: Sequence[int]) -> Figures:
        """The network's share beside ever more pods; then how many come up at once, with it and without."""
        self._runs(3, [])
        figures: Figures = {}
        there = 0
        for count in counts:
            self._parallel(max(count - 1 - there, 0))
            there = max(count - 1, there)
            time.sleep(_SETTLE_S)
            pairs = [(self._run_ms([], False), self._run_ms([], True)) for _ in range(_PAIRS)]
            with_it, without = ([pair[side] for pair in pairs] for side in (0, 1))
            figures[f"run {count}"] = statistics.median(with_it)
            figures[f"network {count}"] = statistics.median(with_it) - statistics.median(without)
        return {**figures, "parallel": self._parallel(50), "parallel on node": self._parallel(50, on_node=True)}

    def _runs(self, count: int, ports: Sequence[pb.PortMapping], *, on_node: bool = False) -> float:
        """The median of runs of a pod, one after the other, in ms."""
        return statistics.median(self._run_ms(ports, on_node) for _ in range(count))

    def _run_ms(self, ports: Sequence[pb.PortMapping], on_node: bool) -> float:
        config = self._config(ports, on_node)
        since = time.perf_counter()
        pod = self._kubelet.run_pod(config)
        took = time.perf_counter() - since
        since = time.perf_counter()
        self._kubelet.StopPodSandbox(pod_sandbox_id=pod.id)
        self._stops.append((time.perf_counter() - since) * 1e3)
        self._kubelet.remove_pod(pod)
        return took * 1e3

    def _config(self, ports: Sequence[pb.PortMapping], on_node: bool) -> pb.PodSandboxConfig:
        config = self._kubelet.pod_config(port_mappings=ports)
        if on_node:
            config.hostname = ""
            config.linux.security_context.namespace_options.CopyFrom(namespaces(network=pb.NODE))
        return config

    def _parallel(self, pods: int, *, on_node: bool = False) -> float:
        """Pods per second; they stay."""
        configs = [self._config([], on_node) for _ in range(pods)]
        since = time.perf_counter()
        with ThreadPoolExecutor(_WORKERS) as workers:
            list(workers.map(self._kubelet.run_pod, configs))
        return pods / (time.perf_counter() - since)


def table(taken: Mapping[str, Sequence[Figures]], rows: Mapping[str, str] = ROWS) -> str:
    """Medians over the rounds; in brackets how many times the peer's figure each is."""
    names = list(taken)
    medians = {
        name: {row: statistics.median(figures[row] for figures in rounds) for row in rows}
        for name, rounds in taken.items()
    }
    lines = [f"| p50 | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row, label in rows.items():
        cells = []
        for name in names:
            figure, theirs = medians[name][row], medians.get(PEER, {}).get(row)
            ratio = f" ({figure / theirs:.2f})" if theirs and name != PEER else ""
            cells.append(f"{figure:.3g}{ratio}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
