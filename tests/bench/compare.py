"""Measure ours, containerd + runc and containerd + crun one after the other, and print medians and ratios.

    .venv/bin/python -m tests.bench.compare [--only NAME] [--output DIR] [options of cribench]

Needs root, an otherwise idle machine, and Debian's containerd, runc, crun, containernetworking-plugins and
docker-registry, and what critest/images needs. Takes some five minutes a runtime. ``DIR`` keeps the reports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from critest import registry
from critest.images.catalogue import HOSTS, entries
from critest.images.make import push
from critest.images.programs import cache
from tests.bench.peers import PAUSE, containerd, missing
from tests.system.daemon import Daemon

BUSYBOX: Final = "e2e-test-images/busybox:1.29-2"
NAMES: Final = ("cri_py", "runc", "crun")
Report = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES, help="may be given more than once")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "cribench")
    options, passed_on = parser.parse_known_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    options.output.mkdir(parents=True, exist_ok=True)
    with registry.running(cache() / "registry") as address:
        push(address, [e for e in entries() if {BUSYBOX, PAUSE.partition("/")[2]} & set(e.names)], quiet=True)
        for name in installed(options.only or NAMES):
            with serving(name, address) as socket:
                measure(socket, options.output / f"cribench-{name}.json", passed_on)
    reports = {name: options.output / f"cribench-{name}.json" for name in NAMES}
    print(table({name: json.loads(path.read_text()) for name, path in reports.items() if path.exists()}))
    return 0


def installed(names: Sequence[str]) -> Iterator[str]:
    """Those that can be measured here; says of the others what they lack."""
    for name in names:
        lacking = missing(name)
        if lacking:
            print(f"{name} is left out: {', '.join(lacking)} not installed", file=sys.stderr)
        else:
            yield name


@contextlib.contextmanager
def serving(name: str, address: str) -> Iterator[str]:
    """The CRI socket of a runtime that takes all images from the registry at ``address``."""
    if name == "cri_py":
        tables = [f'[images.registries."{host}"]\nmirrors = ["http://{address}"]' for host in HOSTS]
        daemon = Daemon(f"http://{address}", "\n".join(tables))
        try:
            daemon.start()
            yield daemon.socket
        finally:
            daemon.destroy()
    else:
        with (
            tempfile.TemporaryDirectory(prefix=f"cribench-{name}-", ignore_cleanup_errors=True) as work,
            containerd(name, address, Path(work)) as socket,
        ):
            yield socket


def measure(socket: str, output: Path, more: Sequence[str]) -> None:
    script = Path(__file__).with_name("cribench.py")
    phases = [] if any(word.startswith("--phases") for word in more) else ["--phases", "sequential,parallel,scale"]
    subprocess.run(
        [sys.executable, script, "--endpoint", f"unix://{socket}", *phases, "--output", output, *more],
        check=True,
        stdout=subprocess.DEVNULL,
    )


# -------------------------------------------------------------------- table

_UP: Final = ("RunPodSandbox", "CreateContainer", "StartContainer")
_DOWN: Final = ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox")


def _sum(report: Report, calls: Sequence[str], column: str = "p50") -> float:
    return float(sum(report["sequential"]["ms"][call][column] for call in calls))


def _full(report: Report) -> Mapping[str, Any]:
    """Memory with the most pods."""
    rows: list[Mapping[str, Any]] = report["scale"]["memory"]
    return max(rows, key=lambda row: row["pods"])


ROWS: Final[Mapping[str, Callable[[Report], float]]] = {
    "RunPodSandbox + CreateContainer + StartContainer, ms": lambda r: _sum(r, _UP),
    "the same, p95 of each": lambda r: _sum(r, _UP, "p95"),
    "ExecSync true, ms": lambda r: r["sequential"]["ms"]["ExecSync"]["p50"],
    "StopContainer(0) + Remove + StopPodSandbox + Remove, ms": lambda r: _sum(r, _DOWN),
    "pods up per second, 8 workers": lambda r: r["parallel"]["up"]["per_s"],
    "CPU per pod, whole life, ms": lambda r: r["sequential"]["cpu_ms_per_pod"],
    "ListContainers, most pods, ms": lambda r: r["scale"]["lists_ms"]["ListContainers"]["p50"],
    "ListPodSandbox, most pods, ms": lambda r: r["scale"]["lists_ms"]["ListPodSandbox"]["p50"],
    "helpers per pod, PSS, MB": lambda r: _full(r)["helpers_kib"] / 1024 / _full(r)["pods"],
    "daemon, most pods, PSS, MB": lambda r: _full(r)["daemon_kib"] / 1024,
    "idle CPU, most pods, % of a core": lambda r: r["scale"]["idle_cpu_percent"],
    "strangers' share of CPU in sequence": lambda r: r["sequential"]["strangers_share"],
}


def table(reports: Mapping[str, Report]) -> str:
    """Markdown: the first runtime's figure, then each other's and in brackets how many times ours it is."""
    names = list(reports)
    lines = ["| p50 | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, read in ROWS.items():
        figures = {name: _figure(read, report) for name, report in reports.items()}
        ours = figures.get("cri_py")
        cells = [_cell(figures[name], ours if name != "cri_py" else None) for name in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figure(read: Callable[[Report], float], report: Report) -> float | None:
    """None for a phase that was not run."""
    try:
        return read(report)
    except KeyError:
        return None


def _cell(figure: float | None, ours: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.3g}" + (f" ({figure / ours:.2g}x)" if ours else "")


if __name__ == "__main__":
    sys.exit(main())
