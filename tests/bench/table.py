"""Markdown tables of cribench reports and of critest benchmarks, side by side.
usage: table.py RESULTS_DIR NAME..."""

import json
import statistics
import sys
from pathlib import Path

root, names = Path(sys.argv[1]), sys.argv[2:]


def load(path):
    return json.loads(path.read_text()) if path.exists() else {}


def dig(data, *keys):
    for key in keys:
        if not isinstance(data, (dict, list)) or (isinstance(data, dict) and key not in data):
            return None
        data = data[key]
    return data


def show(value):
    return "-" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)


def row(label, values):
    print(f"| {label} | " + " | ".join(show(v) for v in values) + " |")


def head(title):
    print(f"\n| {title} | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))


reports = [load(root / f"cribench-{name}.json") for name in names]
head("sequential, ms p50/p95")
for method in (
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "ContainerStatus",
    "PodSandboxStatus",
):
    cells = [dig(r, "sequential", "ms", method) for r in reports]
    row(method, [c and f"{c['p50']:g} / {c['p95']:g}" for c in cells])
row("CPU per pod, ms", [dig(r, "sequential", "cpu_ms_per_pod") for r in reports])
row("strangers' share of CPU", [dig(r, "sequential", "strangers_share") for r in reports])

head("parallel, pods/s")
for key in ("up", "down", "lifecycle"):
    row(key, [dig(r, "parallel", key, "per_s") for r in reports])
row("CPU per lifecycle, ms", [dig(r, "parallel", "lifecycle", "cpu_ms_per_pod") for r in reports])
row("RunPodSandbox p50 in it, ms", [dig(r, "parallel", "lifecycle_ms", "RunPodSandbox", "p50") for r in reports])
row("StartContainer p50 in it, ms", [dig(r, "parallel", "lifecycle_ms", "StartContainer", "p50") for r in reports])
row("strangers' share of CPU", [dig(r, "parallel", "strangers_share") for r in reports])

head("with 100 pods, ms p50/p95")
for method in (
    "ListContainers",
    "ListPodSandbox",
    "ListContainerStats",
    "ListPodSandboxStats",
    "ListPodSandboxMetrics",
):
    cells = [dig(r, "scale", "lists_ms", method) for r in reports]
    row(method, [c and f"{c['p50']:g} / {c['p95']:g}" for c in cells])
for method in ("ExecSync", "ContainerStatus"):
    cells = [dig(r, "scale", "with_all_pods_ms", method) for r in reports]
    row(method, [c and f"{c['p50']:g} / {c['p95']:g}" for c in cells])
row("idle CPU, % of one core", [dig(r, "scale", "idle_cpu_percent") for r in reports])
row("strangers' share of CPU", [dig(r, "scale", "strangers_share") for r in reports])

head("memory, PSS in MiB")
for index, label in enumerate(("0 pods", "50 pods", "100 pods", "0 pods again")):
    for key, part in (("daemon_kib", "daemon"), ("helpers_kib", "helpers"), ("runtime_kib", "total")):
        values = [dig(r, "scale", "memory") for r in reports]
        row(f"{label}: {part}", [v and round(v[index][key] / 1024, 1) for v in values])
row(
    "helpers at 100 pods",
    [
        "; ".join(
            f"{n}: {h['processes']} proc, {h['threads']} thr, {h['pss_kib'] / 1024:.0f} MiB"
            for n, h in (dig(r, "scale", "memory") or [{}, {}, {"helpers": {}}])[2]["helpers"].items()
        )
        or None
        for r in reports
    ],
)
row("daemon threads at 100 pods", [v and v[2]["daemon_threads"] for v in (dig(r, "scale", "memory") for r in reports)])

head("pull of 203 MB, 5 layers, 20,000 files (median)")
for key, label in (
    ("wall_s", "time, s"),
    ("cpu_s", "CPU, s"),
    ("daemon_cpu_s", "CPU of the daemon, s"),
    ("first_start_ms", "then pod + create + start, ms"),
):
    row(label, [dig(r, "pull", "median", key) for r in reports])
row("strangers' share of CPU", [dig(r, "pull", "strangers_share") for r in reports])

for kind in ("pod", "container", "image_lifecycle", "image_listing"):
    for parallel in (1, 8):
        sets = [load(root / f"critest-bench-{name}-p{parallel}" / f"{kind}_benchmark_data.json") for name in names]
        if not any(sets) or (kind.startswith("image") and parallel == 8):
            continue
        head(f"critest --benchmark {kind}, parallel {parallel}, ms p50")
        for position, operation in enumerate(next(s for s in sets if s)["operationsNames"]):
            row(
                operation,
                [
                    s
                    and round(statistics.median(d["operationsDurationsNs"][position] for d in s["datapoints"]) / 1e6, 2)
                    for s in sets
                ],
            )
        if kind in ("pod", "container"):
            row(
                "per second",
                [
                    s
                    and round(
                        len(s["datapoints"])
                        / (
                            (max(d["endTime"] for d in s["datapoints"]) - min(d["startTime"] for d in s["datapoints"]))
                            / 1e9
                        ),
                        2,
                    )
                    for s in sets
                ],
            )
