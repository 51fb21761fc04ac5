"""Container events for the kubelet (KEP-3386): published once, handed to every subscriber through a bounded queue."""

from __future__ import annotations

from asyncio import Event as Signal
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from cri_py import telemetry
from cri_py.errors import DataLoss
from cri_py.model import Event, Nanos

_QUEUED: Final = 10_000


class _Queue:
    """What one subscriber has not taken yet. Past its limit it takes nothing more: behind a gap events mislead."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Event] = deque()
        self._woken = Signal()
        self._lost = 0
        self._lost_since = Nanos(0)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, event: Event) -> None:
        if self._lost or len(self._waiting) >= self._limit:
            self._lost_since = self._lost_since or event.at
            self._lost += 1
            telemetry.EVENTS_DROPPED.inc()
        else:
            self._waiting.append(event)
        self._woken.set()

    async def take(self) -> AsyncIterator[Event]:
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._lost:
                since = datetime.fromtimestamp(self._lost_since / 1e9, UTC).isoformat()
                raise DataLoss(
                    f"{self._lost} events were lost since {since}: this subscriber took them too slowly",
                    hint="subscribe again, then list what there is",
                )
            self._woken.clear()
            await self._woken.wait()


class Events:
    """A subscriber that does not keep up is told so: its stream ends, after what was queued, with what it lost.

    CRI has no message for a loss. At a stream's error a kubelet lists everything (pkg/kubelet/pleg/evented.go), which
    makes up for it; events left out in silence would show it a container in a wrong state for minutes.
    """

    def __init__(self, limit: int = _QUEUED) -> None:
        self._limit = limit
        self._queues: set[_Queue] = set()
        self._last = Nanos(0)

    def publish(self, event: Event) -> None:
        """Times never go back, though the node's clock may: subscribers go by them (kubelet, pleg/evented.go)."""
        if event.at < self._last:
            event = replace(event, at=self._last)
        self._last = event.at
        for queue in self._queues:
            queue.put(event)

    def depth(self) -> int:
        """The longest queue."""
        return max(map(len, self._queues), default=0)

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        """The events from now on. Taking them raises DataLoss where more were published than the queue holds."""
        queue = _Queue(self._limit)
        self._queues.add(queue)
        try:
            yield queue.take()
        finally:
            self._queues.discard(queue)
