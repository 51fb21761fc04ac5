"""Flights: joined, taken down by the last who leaves, and never two of a kind at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from cri_py.errors import Internal
from cri_py.images.flights import Flights


def counted(log: list[str], *, fail: bool = False) -> Callable[[], Coroutine[None, None, int]]:
    """Work that takes two rounds of the loop, and as many to undo when it is cancelled."""

    async def work() -> int:
        log.append("begin")
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            log.append("undone")
            raise
        if fail:
            raise Internal("no")
        log.append("end")
        return log.count("begin")

    return work


async def test_callers_who_want_the_same_share_one_flight() -> None:
    flights: Flights[str, int] = Flights()
    log: list[str] = []
    assert await asyncio.gather(*(flights.join("x", counted(log)) for _ in range(3))) == [1, 1, 1]
    assert log == ["begin", "end"]


async def test_a_flight_that_has_landed_is_not_joined() -> None:
    flights: Flights[str, int] = Flights()
    log: list[str] = []
    assert await flights.join("x", counted(log)) == 1
    assert await flights.join("x", counted(log)) == 2


async def test_one_who_leaves_does_not_take_the_others_down() -> None:
    flights: Flights[str, int] = Flights()
    log: list[str] = []
    leaving, staying = (asyncio.create_task(flights.join("x", counted(log))) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == 1
    assert log == ["begin", "end"]


async def test_a_newcomer_waits_until_an_abandoned_flight_is_undone() -> None:
    flights: Flights[str, int] = Flights()
    log: list[str] = []
    leaving = asyncio.create_task(flights.join("x", counted(log)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    assert await flights.join("x", counted(log)) == 2
    assert log == ["begin", "undone", "begin", "end"]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_who_joined_a_flight_that_fails_begins_another() -> None:
    flights: Flights[str, int] = Flights()
    log: list[str] = []
    first = asyncio.create_task(flights.join("x", counted(log, fail=True)))
    await asyncio.sleep(0)
    assert await flights.join("x", counted(log)) == 2
    with pytest.raises(Internal):
        await first


async def test_settling_waits_for_what_is_under_way_but_not_for_ever() -> None:
    flights: Flights[str, int] = Flights()
    go = asyncio.Event()

    async def work() -> int:
        await go.wait()
        return 1

    rider = asyncio.create_task(flights.join("a", work))
    await asyncio.sleep(0)
    await flights.settle(0.01)
    assert not rider.done()
    go.set()
    await flights.settle(5)
    assert await rider == 1
