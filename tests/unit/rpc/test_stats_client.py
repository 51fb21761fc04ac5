"""What ``cri-py top`` is told by a daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cri_py import model
from cri_py.cgroups.readings import Memory, Pressure, Stall, Usage
from cri_py.pods import metrics_series as series
from cri_py.pods.metrics import Metrics, SandboxMetrics
from cri_py.pods.metrics_series import Point
from cri_py.pods.stats import ContainerUsage, GroupUsage, SandboxUsage
from cri_py.pods.stats_network import Interface
from cri_py.rpc import stats_client
from cri_py.rpc.stats_client import StatsClient

Make = Callable[..., Any]
AT = model.Nanos(2_000_000_000)
LABELS = ("main", "/g", "image", "c1", "ns", "web")
PSI = Pressure(Stall(5, 12.5, 0.0, 0.0), Stall(0, 0.0, 0.0, 0.0))


def look(listen: str) -> list[stats_client.Usage]:
    with StatsClient(listen) as client:
        return client.look()


async def test_a_pod_and_its_containers_are_joined_from_statistics_and_metrics(
    world: Any, new_sandbox: Make, new_container: Make
) -> None:
    sandbox, container, ended = new_sandbox(1), new_container(1), new_container(2)
    memory = Memory(usage=1000, working_set=600, limit=2000, rss=300, faults=40, major_faults=2)
    group = GroupUsage(AT, Usage(cpu_ns=1, memory=memory, cpu_pressure=PSI), 250_000_000, 7)
    members = tuple(ContainerUsage(each, group, None, 0) for each in (container, ended))
    attached = replace(sandbox, attachment=model.Attachment("/netns", ("10.0.0.2",)))
    usage = SandboxUsage(attached, group, (Interface("eth0", 10, 1, 0, 0, 20, 2, 0, 0),), members, 0)
    world.statistics.of_sandboxes[sandbox.id] = usage
    points = [
        Point(series.READ_BYTES, ("/dev/sda",), 5),
        Point(series.READ_BYTES, ("/dev/sdb",), 6),
        Point(series.OF_COUNTERS["threads"], (), 3),
    ]
    world.metrics.found = [
        SandboxMetrics(AT, (Metrics(sandbox.id, LABELS, points[2:]),), (Metrics(container.id, LABELS, points),))
    ]
    listen = f"unix://{world.socket}"
    pod, main = await asyncio.to_thread(look, listen)
    assert (pod.container, pod.received, pod.transmitted, pod.threads) == ("", 10, 20, 3)
    assert (pod.namespace, pod.pod) == (sandbox.config.metadata.namespace, sandbox.config.metadata.name)
    assert main.container == container.config.metadata.name
    assert (main.at, main.cores, main.memory, main.available) == (AT, 0.25, 600, 1400)
    assert (main.read, main.written, main.threads) == (11, None, 3)
    assert main.pressure == {"cpu": 12.5}
