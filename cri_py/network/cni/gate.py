"""Who may work at the same time: many together, or one alone.

GC asks plugins to remove what belongs to no attachment that it is told of, so nothing may be attached or detached
meanwhile (CNI 1.1, section "Lifecycle & Ordering").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Belongs to one event loop. Who wants to be alone comes before those who come after; letting go never waits."""

    def __init__(self) -> None:
        self._inside = 0
        self._alone = False
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Beside all others that are here together."""
        while self._alone:
            await self._news()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """When those who are inside have left; nobody comes in until then."""
        while self._alone:
            await self._news()
        self._alone = True
        try:
            while self._inside:
                await self._news()
            yield
        finally:
            self._alone = False
            self._tell()

    async def _news(self) -> None:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        await told

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)
