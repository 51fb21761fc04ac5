"""What an update asks for, merged into what holds; and that all of it is so, or nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from cri_py import model
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.config import RuntimeConfig
from cri_py.errors import Internal, InvalidArgument
from cri_py.model import HugepageLimit, LinuxResources
from cri_py.pods.bundles import Bundles
from cri_py.pods.group_parents import GroupParents
from cri_py.pods.groups import Groups
from cri_py.pods.ledger import Ledger
from cri_py.pods.places import Places
from cri_py.pods.updates import Updates, merged
from tests.unit.pods import builders
from tests.unit.pods.stats_world import RUNNING

MIB = 1 << 20


def test_what_is_not_asked_for_stays() -> None:
    current = LinuxResources(
        cpu_shares=5,
        cpuset_cpus="0",
        hugepage_limits=(HugepageLimit("2MB", 4), HugepageLimit("1GB", 8)),
        unified={"memory.high": "1", "memory.low": "2"},
    )
    asked = LinuxResources(cpu_quota=2000, hugepage_limits=(HugepageLimit("2MB", 6),), unified={"memory.low": "3"})
    assert merged(current, asked) == LinuxResources(
        cpu_shares=5,
        cpu_quota=2000,
        cpuset_cpus="0",
        hugepage_limits=(HugepageLimit("2MB", 6), HugepageLimit("1GB", 8)),
        unified={"memory.high": "1", "memory.low": "3"},
    )


def test_a_container_without_swap_stays_without_swap() -> None:
    current = LinuxResources(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB)
    changed = merged(current, LinuxResources(memory_limit_in_bytes=128 * MIB))
    assert changed.memory_swap_limit_in_bytes == 128 * MIB


def test_swap_that_was_asked_for_is_kept() -> None:
    current = LinuxResources(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=256 * MIB)
    assert merged(current, LinuxResources(memory_limit_in_bytes=128 * MIB)) == LinuxResources(
        memory_limit_in_bytes=128 * MIB, memory_swap_limit_in_bytes=256 * MIB
    )


class SimulatedLedger:
    """One running container; ``broken``: the disk takes no record."""

    def __init__(self) -> None:
        self.kept = replace(RUNNING, resources=LinuxResources(cpu_shares=512, memory_limit_in_bytes=64 * MIB))
        self.broken = False

    def container(self, _: str) -> model.Container:
        return self.kept

    def lock(self, _: str) -> AbstractAsyncContextManager[None]:
        return asyncio.Lock()

    async def put_container(self, container: model.Container, *, past: bool) -> None:
        if self.broken:
            raise Internal("the disk is full")
        self.kept = container


class World:
    """A container's files in a simulated version 1, its document and its record."""

    def __init__(self, root: Path) -> None:
        self.group = root / "cgroup" / RUNNING.cgroup.strip("/")
        self.group.mkdir(parents=True)
        for name, text in (("cpu.shares", "512"), ("memory.limit_in_bytes", str(64 * MIB))):
            (self.group / name).write_text(f"{text}\n")
        places = Places(str(root / "root"), str(root / "state"))
        document = Path(places.bundle(RUNNING.sandbox_id, RUNNING.id), "config.json")
        document.parent.mkdir(parents=True)
        limits = {"cpu": {"shares": 512}, "devices": ["kept"], "blockIO": {"weight": 7}}
        document.write_text(json.dumps({"process": {"oomScoreAdj": 0}, "linux": {"resources": limits}}))
        Path(places.seccomp).mkdir(parents=True)
        self.ledger, self.forgotten = SimulatedLedger(), list[str]()
        self.groups = Groups(V1([Hierarchy(f"{root}/cgroup", ("cpu", "memory"))]), "/x", GroupParents(root / "note"))
        self.bundles = Bundles(places, builders.defaults(), RuntimeConfig())
        self.updates = Updates(cast(Ledger, self.ledger), self.groups, self.forgotten.append)

    def told(self) -> tuple[str, str, Any, LinuxResources | None]:
        """What kernel, document and record say."""
        shares, memory = ((self.group / name).read_text() for name in ("cpu.shares", "memory.limit_in_bytes"))
        document = self.bundles.read(self.ledger.kept)
        assert document == self.bundles.executing(self.ledger.kept)[0]
        return shares, memory, document["linux"]["resources"], self.ledger.kept.resources


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.groups.close()
    made.bundles.close()


# As long as what is there: a write to a file that is none of the kernel's does not cut it.
ASKED = LinuxResources(cpu_shares=256, memory_limit_in_bytes=32 * MIB)


async def test_kernel_document_and_record_change_together(world: World) -> None:
    await world.updates.container(RUNNING.id, ASKED)
    shares, memory, document, resources = world.told()
    assert (shares, memory) == ("256\n", f"{32 * MIB}\n")
    assert (document["cpu"]["shares"], document["devices"], document["blockIO"]) == (256, ["kept"], {"weight": 7})
    assert resources == ASKED
    assert world.forgotten == [RUNNING.id]


async def test_what_cannot_be_recorded_is_taken_back(world: World) -> None:
    before, world.ledger.broken = world.told(), True
    with pytest.raises(Internal, match="disk is full"):
        await world.updates.container(RUNNING.id, ASKED)
    assert world.told() == before
    assert world.forgotten == []


async def test_what_contradicts_what_holds_is_refused_before_anything_changes(world: World) -> None:
    before = world.told()
    with pytest.raises(InvalidArgument, match="memory_swap_limit_in_bytes"):
        await world.updates.container(RUNNING.id, LinuxResources(memory_swap_limit_in_bytes=32 * MIB))
    assert world.told() == before
