"""Statistics of pods and containers: read when asked for, with a rate from the first call, nothing kept for long."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cri_py import model
from cri_py.errors import KernelError, NotFound
from cri_py.model import ContainerFilter, Event, EventKind, NotReady, SandboxFilter
from cri_py.pods import stats
from cri_py.pods.places import Places
from cri_py.pods.stats_network import HolderNetwork
from tests.unit.pods.stats_world import CREATED, ENDED, NOW, POD, RUNNING, World, is_open, running


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def until(look: Any, wanted: Any) -> None:
    async with asyncio.timeout(60):
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


async def test_interfaces_that_cannot_be_read_cost_their_own_numbers_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: HolderNetwork) -> None:
        raise KernelError(errno.EMFILE, "Too many open files", "read", "net/dev of a holder")

    monkeypatch.setattr(HolderNetwork, "interfaces", refuse)
    (found,) = await world.statistics.sandboxes(SandboxFilter())
    assert found.interfaces is None
    assert found.group is not None


async def test_what_is_removed_is_let_go_of(world: World) -> None:
    await world.statistics.containers(ContainerFilter())
    assert "c1" in world.opened()
    del world.ledger.by_id[RUNNING.id]
    world.events.publish(Event(RUNNING.id, EventKind.DELETED, NOW, POD))
    await until(lambda: "c1" in world.opened(), False)


async def test_events_that_were_missed_do_not_end_what_follows_them(world: World) -> None:
    await world.statistics.containers(ContainerFilter())
    for _ in range(10_001):  # before anybody gets to take one
        world.events.publish(Event(RUNNING.id, EventKind.STARTED, NOW, POD))
    await until(world.events.depth, 0)
    del world.ledger.by_id[RUNNING.id]
    world.events.publish(Event(RUNNING.id, EventKind.DELETED, NOW, POD))
    await until(lambda: "c1" in world.opened(), False)


async def test_what_no_record_names_is_let_go_of_without_an_event(world: World) -> None:
    await world.statistics.containers(ContainerFilter())
    del world.ledger.by_id[ENDED.id]
    await until(lambda: "c3" in world.opened(), False)
    assert "c1" in world.opened()


async def test_at_the_end_no_fileis_open(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.statistics.containers(ContainerFilter())
        assert world.opened()
    assert world.opened() == set()


async def test_files_opened_for_others_are_closed_when_nobody_asks_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failcnt_is_open() -> bool:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if is_open(fd)]
        return f"{world.root}/memory/pod/c1/memory.failcnt" in links

    (world.root / "memory/pod/c1/memory.failcnt").write_text("3\n")
    assert await world.statistics.run(lambda: world.statistics.group(RUNNING).number("memory.failcnt")) == 3
    assert failcnt_is_open()
    monkeypatch.setattr(stats, "_KEPT_S", 0.0)
    await until(failcnt_is_open, False)
    assert (await world.statistics.container(RUNNING.id)).group is not None
