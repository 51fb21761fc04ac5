#!/usr/bin/env python3
"""Draw the dashboards of deploy/grafana with a real daemon's numbers, as SVG.

    python -m tests.bench.dashboards docs/pictures --seconds 120

A daemon and Debian's Prometheus run beside each other while pods come, work and go; each panel's queries are then put
to Prometheus and its answers drawn where the panel stands. The drawing is ours and not Grafana's: it shows what a
dashboard asks and gets, not how Grafana paints it. Needs root, and the packages of tests/packages.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, CUSTOM, HOST, push_images
from tests.simulators.kubelet import Kubelet
from tests.simulators.registry import RegistrySimulator
from tests.system.daemon import Daemon
from tests.system.prometheus import DASHBOARDS, DEPLOY, Prometheus, own_address, substituted

COLUMN, ROW, GAP = 56, 30, 8  # of Grafana's grid, in pixels
COLOURS: Final = ("#3274d9", "#e02f44", "#56a64b", "#ff9830", "#8f3bb8", "#37872d", "#c15c17", "#1f60c4")
SHOWN: Final = 4  # names in a legend
STEPS: Final = 60
WORKS: Final = (
    "while :; do :; done",
    "while :; do dd if=/dev/zero of=/file bs=1M count=4 conv=fsync; sleep 1; done",
    "while :; do ping -c 1 -s 1000 -W 1 10.255.255.1; done",
    "while :; do i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; sleep 0.5; done",
)
LIMITS: Final = pb.LinuxContainerResources(cpu_period=100_000, cpu_quota=15_000, memory_limit_in_bytes=64 << 20)
UNITS: Final[dict[str, tuple[float, Sequence[str]]]] = {
    "bytes": (1024, ("B", "KiB", "MiB", "GiB", "TiB")),
    "Bps": (1024, ("B/s", "KiB/s", "MiB/s", "GiB/s")),
}


class Line(NamedTuple):
    name: str
    points: list[tuple[float, float]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("into", type=Path, help="the directory for runtime.svg and node.svg")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long pods work (default: 120)")
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        registry = stack.enter_context(RegistrySimulator())
        push_images(registry)
        address = own_address()
        daemon = Daemon(registry.url, f'[metrics]\nlisten = "{address}"')
        stack.callback(daemon.destroy)
        daemon.start()
        prometheus = Prometheus(Path(stack.enter_context(tempfile.TemporaryDirectory())), address)
        stack.callback(prometheus.stop)
        begun = time.time()
        work(daemon.kubelet, options.seconds)
        for name in DASHBOARDS:
            board = json.loads((DEPLOY / f"grafana/{name}.json").read_text())
            (options.into / f"{name}.svg").write_text(drawn(board, prometheus, begun, time.time()))
    return 0


def work(kubelet: Kubelet, seconds: float) -> None:
    """Four pods that work all the time, and others that come and go; pulls and errors now and then."""
    kubelet.pull(BUSYBOX)
    linux = pb.LinuxContainerConfig(resources=LIMITS)
    for number, script in enumerate(WORKS):
        kubelet.run(kubelet.run_pod(name=f"work-{number}"), "sh", "-c", script, linux=linux)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        kubelet.RemoveImage(image=pb.ImageSpec(image=CUSTOM))
        kubelet.pull(CUSTOM)
        with contextlib.suppress(grpc.RpcError):
            kubelet.pull(f"{HOST}/none:1")
        pod = kubelet.run_pod()
        kubelet.wait(kubelet.run(pod, "true"))
        kubelet.remove_pod(pod)
        kubelet.ListPodSandboxStats()
        time.sleep(1)


# ------------------------------------------------------------------- drawing


def drawn(board: dict[str, Any], prometheus: Prometheus, begun: float, ended: float) -> str:
    """The whole dashboard as one SVG."""
    ask = asking(prometheus, begun, ended)
    parts = [text(GAP, 20, f"{board['title']}: {board['description']}", 15, "bold")]
    height = 0
    for each in board["panels"]:
        grid = each["gridPos"]
        x, y = grid["x"] * COLUMN + GAP, grid["y"] * ROW + 34
        w, h = grid["w"] * COLUMN - GAP, grid["h"] * ROW - GAP
        height = max(height, y + h + GAP)
        if each["type"] == "row":
            parts.append(text(x, y + 16, each["title"], 13, "bold"))
        else:
            lines = [line for target in each["targets"] for line in ask(target)]
            parts += panel(each, lines, (x, y, w, h), (begun, ended))
    width = 24 * COLUMN + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def asking(prometheus: Prometheus, begun: float, ended: float) -> Callable[[dict[str, Any]], list[Line]]:
    step = max((ended - begun) / STEPS, 1.0)

    def ask(target: dict[str, Any]) -> list[Line]:
        query = {"query": substituted(target["expr"]), "start": f"{begun}", "end": f"{ended}", "step": f"{step}"}
        found = []
        for each in prometheus.get("query_range", **query)["result"]:
            name = target["legendFormat"]
            for label, value in each["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            found.append(Line(name, [(float(at), float(value)) for at, value in each["values"] if value != "NaN"]))
        return found

    return ask


def panel(
    each: dict[str, Any], lines: list[Line], place: tuple[float, float, float, float], span: tuple[float, float]
) -> list[str]:
    """A frame, the title, the largest value, the lines and the names of the largest of them."""
    x, y, w, h = place
    top = max((value for line in lines for _, value in line.points), default=0.0)
    lines.sort(key=lambda line: -max((value for _, value in line.points), default=0.0))
    parts = [
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="#fafafa" stroke="#ccc"/>',
        text(x + 6, y + 15, each["title"], 12, "bold"),
        text(x + w - 6, y + 15, amount(top, each["fieldConfig"]["defaults"]["unit"]), 11, anchor="end"),
    ]
    left, upper, wide, high = x + 6, y + 24, w - 12, h - 30 - 13 * min(len(lines), SHOWN)
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        along, up = wide / (span[1] - span[0]), high / (top or 1)
        dots = [f"{left + (at - span[0]) * along:.1f},{upper + high - value * up:.1f}" for at, value in line.points]
        parts.append(f'<polyline points="{" ".join(dots)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if number < SHOWN:
            at = upper + high + 12 + 13 * number
            parts.append(f'<rect x="{left}" y="{at - 8}" width="8" height="8" fill="{colour}"/>')
            more = f" and {len(lines) - SHOWN} more" if number == SHOWN - 1 and len(lines) > SHOWN else ""
            parts.append(text(left + 12, at, f"{line.name}{more}"[:64], 10))
    if not lines:
        parts.append(text(left, upper + 20, "this kernel has no such numbers", 11))
    return parts


def amount(number: float, unit: str) -> str:
    if unit in UNITS:
        factor, names = UNITS[unit]
        for name in names:
            if number < factor or name == names[-1]:
                return f"{number:.3g} {name}"
            number /= factor
    if unit == "percentunit":
        return f"{number * 100:.3g} %"
    if unit == "s":
        return f"{number:.3g} s" if number >= 1 else f"{number * 1000:.3g} ms"
    return f"{number:.3g}"


def text(x: float, y: float, content: str, size: int, weight: str = "normal", *, anchor: str = "start") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="#222"'
    return f'<text x="{x}" y="{y}" {style}>{html.escape(content)}</text>'


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
