"""The disk is told to write: once for all pulls that wait for it, and ahead of time while they go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from cri_py.images.flights import on_thread

AHEAD_S: Final = 0.25


class Syncs:
    """Calls ``sync`` on a thread of its own, never twice at once. Belongs to one event loop."""

    def __init__(self, sync: Callable[[], None], ahead_s: float = AHEAD_S) -> None:
        self._sync = sync
        self._ahead_s = ahead_s
        self._thread = ThreadPoolExecutor(1, "images-sync")
        self._lock = asyncio.Lock()
        self._begun = 0
        self._ended = 0  # the number of the last that succeeded

    async def done(self) -> None:
        """Once everything written before this call is on the disk. Raises what ``sync`` raises.

        One that is under way may have passed by what is new; all who come meanwhile share the next.
        """
        wanted = self._begun + 1
        async with self._lock:
            if self._ended < wanted:
                await self._run()

    @asynccontextmanager
    async def ahead(self) -> AsyncIterator[None]:
        """Within the block, let the disk write what has come so far: it would idle, and be waited for afterwards."""
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # the sync that counts is still to come, and meets the same

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(self._ahead_s)
            if not self._lock.locked():  # another pull's writes ours, too
                async with self._lock:
                    await self._run()

    async def _run(self) -> None:
        self._begun += 1
        number = self._begun
        await on_thread(self._thread, self._sync)
        self._ended = number
