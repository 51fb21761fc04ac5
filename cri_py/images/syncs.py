"""The disk is told to write: once for all pulls that wait for it, and ahead of time while they go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from cri_py import telemetry
from cri_py.errors import DeadlineExceeded

AHEAD_S: Final = 0.25
DONE_S: Final = 600.0  # a slow disk may have gigabytes to write, of others too; after that it hangs


class Syncs:
    """Calls ``sync`` on a thread of its own, never twice at once. Belongs to one event loop."""

    def __init__(self, sync: Callable[[], None], ahead_s: float = AHEAD_S, done_s: float = DONE_S) -> None:
        self._sync = sync
        self._ahead_s = ahead_s
        self._done_s = done_s
        self._thread = ThreadPoolExecutor(1, "images-sync")
        self._lock = asyncio.Lock()
        self._begun = 0
        self._ended = 0  # the number of the last that succeeded

    @telemetry.spanned("sync disk")
    async def done(self) -> None:
        """Once everything written before this call is on the disk. Raises what ``sync`` raises, or DeadlineExceeded.

        One that is under way may have passed by what is new; all who come meanwhile share the next.
        """
        wanted = self._begun + 1
        try:
            async with asyncio.timeout(self._done_s), self._lock:
                if self._ended < wanted:
                    await self._run()
        except TimeoutError as error:
            said = f"the disk of the images has not written what was pulled for {self._done_s:g} s"
            raise DeadlineExceeded(said, hint="does it hang? then pull again") from error

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
        """Whoever is cancelled leaves at once: the thread uses nothing of his, and on a disk that hangs it never ends.

        The thread syncs in the order in which it was asked, so that also then the next is after what he wrote.
        """
        self._begun += 1
        number = self._begun
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._sync)

        def note(ended: asyncio.Future[None]) -> None:
            if not ended.cancelled() and ended.exception() is None:
                self._ended = number

        running.add_done_callback(note)
        await asyncio.shield(running)
