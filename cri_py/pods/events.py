"""Container events for the kubelet (KEP-3386): published once, handed to every subscriber through a bounded queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cri_py import telemetry
from cri_py.model import Event


class Events:
    """A subscriber that does not keep up loses its oldest events, and the loss is counted."""

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._queues: set[asyncio.Queue[Event]] = set()

    def publish(self, event: Event) -> None:
        for queue in self._queues:
            if queue.full():
                queue.get_nowait()
                telemetry.EVENTS_DROPPED.inc()
            queue.put_nowait(event)

    def depth(self) -> int:
        """The longest queue."""
        return max((queue.qsize() for queue in self._queues), default=0)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        queue: asyncio.Queue[Event] = asyncio.Queue(self._limit)
        self._queues.add(queue)
        try:
            yield _each(queue)
        finally:
            self._queues.discard(queue)


async def _each(queue: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    while True:
        yield await queue.get()
