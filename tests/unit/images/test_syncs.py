"""One sync for all who wait for it, none that began too early."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from cri_py.errors import DeadlineExceeded, Internal
from cri_py.images.syncs import Syncs


class Disk:
    """Counts syncs; each ends when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = threading.Semaphore(0)
        self.broken = False

    def sync(self) -> None:
        self.begun += 1
        assert self.gate.acquire(timeout=60)
        if self.broken:
            raise Internal("the disk is broken")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def syncs(disk: Disk) -> AsyncIterator[Syncs]:
    syncs = Syncs(disk.sync, ahead_s=0.001)
    yield syncs
    syncs.close()


async def begun(disk: Disk, count: int) -> None:
    async with asyncio.timeout(60):
        while disk.begun < count:  # noqa: ASYNC110 (a thread begins it)
            await asyncio.sleep(0.001)


async def test_who_comes_during_a_sync_waits_for_the_next_and_shares_it(disk: Disk, syncs: Syncs) -> None:
    first = asyncio.create_task(syncs.done())
    await begun(disk, 1)
    later = [asyncio.create_task(syncs.done()) for _ in range(5)]
    await asyncio.sleep(0)
    disk.gate.release()
    await first
    assert not any(task.done() for task in later), "what they wrote may have been missed"
    disk.gate.release()
    await asyncio.gather(*later)
    assert disk.begun == 2


async def test_a_failed_sync_is_told_to_each_who_needs_it(disk: Disk, syncs: Syncs) -> None:
    disk.broken = True
    disk.gate.release(2)
    for failed in await asyncio.gather(syncs.done(), syncs.done(), return_exceptions=True):
        assert isinstance(failed, Internal)
    disk.broken = False
    disk.gate.release()
    await syncs.done()


async def test_who_waits_for_a_disk_that_hangs_is_told(disk: Disk) -> None:
    syncs = Syncs(disk.sync, done_s=0.05)
    try:
        hung = [asyncio.create_task(syncs.done()) for _ in range(2)]
        for failed in await asyncio.gather(*hung, return_exceptions=True):
            assert isinstance(failed, DeadlineExceeded)
            assert "has not written what was pulled for 0.05 s (does it hang?" in str(failed)
        disk.gate.release(3)
        await syncs.done()
    finally:
        syncs.close()


async def test_the_disk_writes_ahead_until_the_end_of_the_block(disk: Disk, syncs: Syncs) -> None:
    async with syncs.ahead(), syncs.ahead():
        await begun(disk, 1)
        disk.gate.release()
        await begun(disk, 2)
        disk.gate.release(100)
    ended = disk.begun
    await asyncio.sleep(0.01)
    assert disk.begun == ended


async def test_an_error_ahead_of_time_is_left_to_the_sync_that_counts(disk: Disk, syncs: Syncs) -> None:
    disk.broken = True
    disk.gate.release(10)
    async with syncs.ahead():
        await begun(disk, 1)
    with pytest.raises(Internal):
        await syncs.done()
