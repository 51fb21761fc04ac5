"""A stop sends its signal once, waits as long as the shortest caller says, and then kills."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cri_py.errors import DeadlineExceeded, Unavailable
from cri_py.model import ContainerId
from cri_py.pods import stops
from cri_py.pods.stops import Stops

ID = ContainerId("c")
TERM, KILL = 15, 9


class ContainerSimulator:
    """A process that ends on the signals it is told to end on, and says so as a monitor would."""

    def __init__(self, *ends_on: int) -> None:
        self.ends_on = ends_on
        self.got: list[tuple[int, bool]] = []
        self.emptied = 0
        self.stops = Stops(self.signal, self.empty)

    async def signal(self, container_id: ContainerId, number: int, everything: bool) -> None:
        await asyncio.sleep(0)
        self.got.append((number, everything))
        if number in self.ends_on:
            asyncio.get_running_loop().call_later(0.01, self.stops.ended, container_id)

    async def empty(self, container_id: ContainerId) -> None:
        self.emptied += 1
        self.stops.ended(container_id)


def elapsed(start: float) -> float:
    return asyncio.get_running_loop().time() - start


@pytest.fixture
async def start() -> float:
    return asyncio.get_running_loop().time()


async def test_a_container_that_obeys_is_not_killed() -> None:
    container = ContainerSimulator(TERM)
    await container.stops.stop(ID, TERM, 60)
    assert container.got == [(TERM, False)]


async def test_one_that_does_not_is_killed_after_its_grace(start: float) -> None:
    container = ContainerSimulator(KILL)
    await container.stops.stop(ID, TERM, 0.05)
    assert container.got == [(TERM, False), (KILL, True)]
    assert elapsed(start) >= 0.05


async def test_without_grace_it_is_killed_at_once() -> None:
    container = ContainerSimulator(TERM, KILL)
    await container.stops.stop(ID, TERM, 0)
    assert container.got == [(KILL, True)]


async def test_a_shorter_grace_overrides_the_one_that_runs(start: float) -> None:
    container = ContainerSimulator(KILL)
    first = asyncio.create_task(container.stops.stop(ID, TERM, 60))
    await asyncio.sleep(0.01)
    await container.stops.stop(ID, TERM, 0.02)
    await first
    assert container.got == [(TERM, False), (KILL, True)]
    assert elapsed(start) < 5


async def test_a_longer_grace_does_not(start: float) -> None:
    container = ContainerSimulator(KILL)
    first = asyncio.create_task(container.stops.stop(ID, TERM, 0.05))
    await asyncio.sleep(0.01)
    await container.stops.stop(ID, TERM, 60)
    await first
    assert elapsed(start) < 5


async def test_many_callers_cause_one_signal() -> None:
    container = ContainerSimulator(TERM)
    await asyncio.gather(*(container.stops.stop(ID, TERM, 60) for _ in range(5)))
    assert container.got == [(TERM, False)]


async def test_a_caller_who_gives_up_leaves_the_stop_running() -> None:
    container = ContainerSimulator(KILL)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await container.stops.stop(ID, TERM, 0.05)
    await container.stops.stop(ID, TERM, 60)
    assert container.got == [(TERM, False), (KILL, True)]


async def test_one_that_takes_no_signal_has_its_group_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "_PLAIN_KILL_S", 0.01)
    container = ContainerSimulator()
    await container.stops.stop(ID, TERM, 0)
    assert (container.got, container.emptied) == ([(KILL, True)], 1)


async def test_one_that_survives_sigkill_is_told_and_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "_PLAIN_KILL_S", 0.01)
    monkeypatch.setattr(stops, "_KILL_S", 0.02)
    container = ContainerSimulator()

    async def in_vain(_: ContainerId) -> None:
        pass

    container.stops = Stops(container.signal, in_vain)
    with pytest.raises(DeadlineExceeded, match="SIGKILL"):
        await container.stops.stop(ID, TERM, 0)
    container.ends_on = (KILL,)
    monkeypatch.setattr(stops, "_KILL_S", 10.0)  # a busy machine takes its time
    await container.stops.stop(ID, TERM, 60)
    assert container.got == [(KILL, True), (KILL, True)]


async def test_a_monitor_that_is_gone_is_told_to_the_caller() -> None:
    def refuse(*_: Any) -> Coroutine[Any, Any, None]:
        raise Unavailable("the pod's monitor is gone")

    with pytest.raises(Unavailable):
        await Stops(refuse, refuse).stop(ID, TERM, 60)


async def test_an_end_that_nobody_waits_for_is_fine() -> None:
    container = ContainerSimulator(TERM)
    container.stops.ended(ID)
    await container.stops.stop(ID, TERM, 60)
    assert container.got == [(TERM, False)]
