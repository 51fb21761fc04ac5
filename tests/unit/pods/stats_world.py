"""Statistics over cgroups that are files, and records in memory: no kernel, no root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cri_py import model
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.errors import NotFound
from cri_py.model import ContainerFilter, Created, Exited, Nanos, Running, SandboxFilter
from cri_py.pods.events import Events
from cri_py.pods.places import Places
from cri_py.pods.stats import Statistics
from cri_py.pods.stats_layers import Layers
from tests.unit.pods import builders

NOW = Nanos(100_000_000_000)
POD = replace(builders.sandbox(), created_at=Nanos(NOW - 90_000_000_000), cgroup="/pod")
RUNNING = model.Container(
    *(model.ContainerId("c1" * 32), POD.id, builders.container(), model.ImageId("i"), "", Nanos(NOW - 2_000_000_000)),
    *(Running(1, 1, NOW), "", "/pod/c1"),
)
CREATED = replace(RUNNING, id=model.ContainerId("c2" * 32), state=Created(), cgroup="/pod/c2")
ENDED = replace(RUNNING, id=model.ContainerId("c3" * 32), state=Exited(0, NOW, NOW, "Completed"), cgroup="/pod/c3")


class SimulatedLedger:
    """Records in memory, with the questions that statistics ask."""

    def __init__(self) -> None:
        self.pods = {POD.id: POD}
        self.by_id = {each.id: each for each in (RUNNING, CREATED, ENDED)}

    def sandboxes(self) -> list[model.Sandbox]:
        return list(self.pods.values())

    def containers(self) -> list[model.Container]:
        return list(self.by_id.values())

    def sandbox(self, sandbox_id: str) -> model.Sandbox:
        return self.pods[model.SandboxId(sandbox_id)]

    def container(self, container_id: str) -> model.Container:
        if container_id not in self.by_id:
            raise NotFound(f"container {container_id} does not exist")
        return self.by_id[model.ContainerId(container_id)]

    def members(self, _: model.SandboxId) -> list[model.Container]:
        return self.containers()

    def select_containers(self, _: ContainerFilter) -> list[model.Container]:
        return self.containers()

    def select_sandboxes(self, _: SandboxFilter) -> list[model.Sandbox]:
        return self.sandboxes()


def group(root: Path, path: str, cpu_ns: int) -> None:
    for controller, files in {
        "cpuacct": {"cpuacct.usage": f"{cpu_ns}\n"},
        "memory": {
            "memory.usage_in_bytes": "4096\n",
            "memory.stat": "total_rss 1\ntotal_inactive_file 96\n",
            "memory.limit_in_bytes": "8192\n",
        },
        "pids": {"pids.current": "7\n"},
    }.items():
        directory = root / controller / path.strip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text)


class World:
    def __init__(self, root: Path) -> None:
        self.root, self.ledger, self.events = root, SimulatedLedger(), Events()
        places = Places(str(root), "")
        self.layers = Layers(places, lambda: NOW, 10.0)
        for each in self.ledger.containers():
            os.makedirs(f"{places.writable(each.id)}/upper")
        for path, cpu_ns in (("/pod", 3_000_000), ("/pod/c1", 1_000_000_000), ("/pod/c2", 5), ("/pod/c3", 9)):
            group(root, path, cpu_ns)
        self.statistics = Statistics(
            cgroups=V1([Hierarchy(f"{root}/{name}", (name,)) for name in ("cpuacct", "memory", "pids")]),
            ledger=self.ledger,  # type: ignore[arg-type]
            events=self.events,
            layers=self.layers,
            clock=lambda: NOW,
            period_s=0.01,
        )

    def opened(self) -> set[str]:
        """Groups whose files are open."""
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)]
        mine = [link for link in links if link.startswith(f"{self.root}/memory")]
        return {os.path.basename(os.path.dirname(link)) for link in mine}


def is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[World]:
    world = World(root)
    async with asyncio.TaskGroup() as tasks:
        world.statistics.start(tasks)
        yield world
        await world.statistics.stop()
