"""Pulls whose callers leave before the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cri_py.images.service import Images
from tests.simulators.registry import Fault, File, RegistrySimulator, tar_layer
from tests.unit.images.nodes import asked_for, leftovers

BOTTOM = tar_layer(File("etc/base", b"base" * 5000))
TOP = tar_layer(File("etc/top", b"top"))


async def test_a_cancelled_pull_stops_and_leaves_nothing(
    images: Images, registry: RegistrySimulator, root: Path
) -> None:
    pushed = registry.push("app", "1", [BOTTOM, TOP])
    registry.faults.append(Fault(pushed.layers[1], stall_after=10))
    pull = asyncio.create_task(images.pull(f"{registry.host}/app:1", None))
    await asked_for(registry, pushed.layers[1])
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert images.list() == []
    assert leftovers(root) == []


async def test_one_of_two_callers_may_leave(images: Images, registry: RegistrySimulator) -> None:
    pushed = registry.push("app", "1", [BOTTOM])
    registry.faults.append(Fault(pushed.config, redirect=f"{registry.url}{{path}}", times=1))
    first, second = (asyncio.create_task(images.pull(f"{registry.host}/app:1", None)) for _ in range(2))
    await asked_for(registry, "/manifests/1")
    first.cancel()
    assert (await second).id == pushed.config
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_pull_that_shares_a_layer_survives_the_other_being_cancelled(
    images: Images, registry: RegistrySimulator, root: Path
) -> None:
    one = registry.push("one", "1", [BOTTOM, TOP])
    two = registry.push("two", "1", [BOTTOM])
    registry.faults.append(Fault(one.layers[1], stall_after=10))
    doomed = asyncio.create_task(images.pull(f"{registry.host}/one:1", None))
    await asked_for(registry, one.layers[0])
    other = asyncio.create_task(images.pull(f"{registry.host}/two:1", None))
    await asked_for(registry, one.layers[1])
    doomed.cancel()
    assert (await other).id == two.config
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert len(leftovers(root)) == 1
