"""Who collects what is left over is alone; all others are not kept from each other."""

from __future__ import annotations

import asyncio

import pytest

from cri_py.network.cni.gate import Gate


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_together_do_not_wait_for_each_other() -> None:
    gate = Gate()
    async with asyncio.timeout(60), gate.together(), gate.together():
        pass


async def test_who_is_alone_waits_for_those_inside_and_keeps_others_out() -> None:
    gate, order = Gate(), []

    async def alone() -> None:
        async with gate.alone():
            order.append("alone")
            await turns()
            order.append("no longer alone")

    async def together() -> None:
        async with gate.together():
            order.append("together")

    async with gate.together():
        first = asyncio.create_task(alone())
        await turns()
        second = asyncio.create_task(together())
        await turns()
        assert order == []
    async with asyncio.timeout(60):
        await asyncio.gather(first, second)
    assert order == ["alone", "no longer alone", "together"]


async def test_two_who_want_to_be_alone_follow_each_other() -> None:
    gate, inside = Gate(), 0

    async def alone() -> None:
        nonlocal inside
        async with gate.alone():
            inside += 1
            assert inside == 1
            await turns()
            inside -= 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(alone() for _ in range(3)))


@pytest.mark.parametrize("kind", ["alone", "together"])
async def test_who_gives_up_waiting_keeps_nobody_out(kind: str) -> None:
    gate = Gate()

    async def wait() -> None:
        async with gate.alone() if kind == "alone" else gate.together():
            pass

    async with gate.together() if kind == "alone" else gate.alone():
        waiting = asyncio.create_task(wait())
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting])
    async with asyncio.timeout(60):
        async with gate.together():
            pass
        async with gate.alone():
            pass
