"""Statistics of pods and containers: read when asked for, with a rate from the first call, nothing kept for long."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cri_py import model
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.errors import NotFound
from cri_py.model import ContainerFilter, Created, Event, EventKind, Exited, Nanos, NotReady, Running, SandboxFilter
from cri_py.pods import stats
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
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        mine = [link for link in links if link.startswith(f"{self.root}/memory")]
        return {os.path.basename(os.path.dirname(link)) for link in mine}


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[World]:
    world = World(root)
    async with asyncio.TaskGroup() as tasks:
        world.statistics.start(tasks)
        yield world
        await world.statistics.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def until(look: Any, wanted: Any) -> None:
    async with asyncio.timeout(10):
        while True:
            if look() == wanted:
                return
            await asyncio.sleep(0.001)


async def test_a_containers_numbers_are_its_groups(world: World) -> None:
    found = await world.statistics.container(RUNNING.id)
    assert found.container is RUNNING
    assert found.group is not None
    assert (found.group.at, found.group.usage.cpu_ns) == (NOW, 1_000_000_000)
    assert found.group.usage.memory is not None
    assert found.group.usage.memory.working_set == 4000
    assert found.group.processes is None  # a pod's alone
    assert found.layer is not None


async def test_the_first_call_has_a_rate_since_the_containers_birth(tmp_path: Path) -> None:
    world = World(tmp_path)  # without the background, which would have taken samples
    task = asyncio.create_task(world.layers.run())
    found = await world.statistics.container(RUNNING.id)
    assert found.group is not None
    assert found.group.nano_cores == pytest.approx(500_000_000, rel=0.05)  # 1 s of CPU in 2 s
    task.cancel()
    await world.statistics.stop()


async def test_an_ended_container_used_what_it_used_and_uses_nothing(world: World) -> None:
    found = await world.statistics.container(ENDED.id)
    assert found.group is not None
    assert (found.group.usage.cpu_ns, found.group.nano_cores) == (9, 0)


async def test_a_missing_container_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        await world.statistics.container("missing")


async def test_a_pod_has_its_containers_its_network_and_its_processes(world: World) -> None:
    attached = replace(POD, state=model.Ready(1, os.getpid()), attachment=model.Attachment("/netns", ("10.0.0.2",)))
    world.ledger.pods[POD.id] = attached
    (found,) = await world.statistics.sandboxes(SandboxFilter())
    assert found.group is not None
    assert (found.group.processes, found.group.usage.cpu_ns) == (7, 3_000_000)
    assert [each.container.id for each in found.containers] == [RUNNING.id, CREATED.id, ENDED.id]
    assert found.interfaces is not None


async def test_on_the_hosts_network_a_pod_has_no_interfaces(world: World) -> None:
    assert (await world.statistics.sandbox(POD.id)).interfaces is None


async def test_a_stopped_pod_is_not_listed_and_has_no_numbers(world: World) -> None:
    world.ledger.pods[POD.id] = replace(POD, state=NotReady(NOW, "stopped"))
    assert await world.statistics.sandboxes(SandboxFilter()) == []
    assert (await world.statistics.sandbox(POD.id)).group is None


async def test_a_group_that_is_gone_has_no_numbers(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        world.ledger.by_id[CREATED.id] = replace(CREATED, cgroup="/gone/c2")
        found = {each.container.id: each.group for each in await world.statistics.containers(ContainerFilter())}
    assert found[CREATED.id] is None
    assert found[RUNNING.id] is not None


async def test_a_group_that_cannot_be_read_costs_its_own_numbers_only(world: World) -> None:
    broken = world.root / "memory/pod/c9"
    (broken / "memory.stat").mkdir(parents=True)  # reading a directory is EISDIR
    odd = replace(CREATED, id=model.ContainerId("c9" * 32), cgroup="/pod/c9")
    os.makedirs(f"{Places(str(world.root), '').writable(odd.id)}/upper")
    world.ledger.by_id[odd.id] = odd
    found = {each.container.id: each.group for each in await world.statistics.containers(ContainerFilter())}
    assert found[odd.id] is None
    assert found[RUNNING.id] is not None


async def test_what_is_removed_is_let_go_of(world: World) -> None:
    await world.statistics.containers(ContainerFilter())
    assert "c1" in world.opened()
    del world.ledger.by_id[RUNNING.id]
    world.events.publish(Event(RUNNING.id, EventKind.DELETED, NOW, POD))
    await until(lambda: "c1" in world.opened(), False)


async def test_what_no_record_names_is_let_go_of_without_an_event(world: World) -> None:
    await world.statistics.containers(ContainerFilter())
    del world.ledger.by_id[ENDED.id]
    await until(lambda: "c3" in world.opened(), False)
    assert "c1" in world.opened()


async def test_at_the_end_no_file_is_open(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.statistics.containers(ContainerFilter())
        assert world.opened()
    assert world.opened() == set()


async def test_files_opened_for_others_are_closed_when_nobody_asks_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failcnt_is_open() -> bool:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        return f"{world.root}/memory/pod/c1/memory.failcnt" in links

    (world.root / "memory/pod/c1/memory.failcnt").write_text("3\n")
    assert await world.statistics.run(lambda: world.statistics.group(RUNNING).number("memory.failcnt")) == 3
    assert failcnt_is_open()
    monkeypatch.setattr(stats, "_KEPT_S", 0.0)
    await until(failcnt_is_open, False)
    assert (await world.statistics.container(RUNNING.id)).group is not None
