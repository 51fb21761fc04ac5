"""Stopping with grace: one stop per container, whoever asks and however often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from cri_py.errors import DeadlineExceeded
from cri_py.kernel.faults import trace
from cri_py.model import ContainerId

_PLAIN_KILL_S: Final = 2.0  # after which the whole group is emptied, by hand as it were
_KILL_S: Final = 30.0  # for the kernel to end a process after SIGKILL; one in uninterruptible sleep needs longer


class _Stop:
    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.sooner = asyncio.Event()
        self.deadline = float("inf")
        self.task: asyncio.Task[None] | None = None


class Stops:
    """The stop signal is sent once; a later call can only shorten the grace period that is running."""

    def __init__(
        self,
        signal: Callable[[ContainerId, int, bool], Coroutine[Any, Any, None]],
        empty: Callable[[ContainerId], Coroutine[Any, Any, None]],
    ) -> None:
        """``signal`` sends one; ``empty`` kills all in a container's group, thawing what is frozen."""
        self._signal = signal
        self._empty = empty
        self._stops: dict[ContainerId, _Stop] = {}

    def ended(self, container_id: ContainerId) -> None:
        """The container has ended: whoever waits for that goes on."""
        stop = self._stops.pop(container_id, None)
        if stop is not None:
            stop.ended.set()

    async def stop(self, container_id: ContainerId, number: int, timeout_s: float) -> None:
        """Signal ``number``, wait ``timeout_s``, then SIGKILL; returns when the container has ended.

        A caller that gives up leaves the stop running: the grace period was promised to the container.
        """
        stop = self._stops.setdefault(container_id, _Stop())
        deadline = asyncio.get_running_loop().time() + timeout_s
        if deadline < stop.deadline:
            stop.deadline = deadline
            stop.sooner.set()
        if stop.task is None or (stop.task.done() and not stop.ended.is_set()):
            stop.task = asyncio.create_task(self._run(container_id, number, stop))
        await asyncio.shield(stop.task)

    async def _run(self, container_id: ContainerId, number: int, stop: _Stop) -> None:
        loop = asyncio.get_running_loop()
        if stop.deadline > loop.time():
            await self._signal(container_id, number, False)
        while not stop.ended.is_set() and loop.time() < stop.deadline:
            stop.sooner.clear()
            await self._wait(stop, stop.deadline - loop.time())
        if stop.ended.is_set():
            return
        trace("stop: grace has passed")
        await self._signal(container_id, 9, True)
        trace("stop: killed")
        if await _ends_within(stop, _PLAIN_KILL_S):
            return
        await self._empty(container_id)  # on cgroup v1 what is frozen takes SIGKILL only once it is thawed
        if not await _ends_within(stop, _KILL_S):
            raise DeadlineExceeded(
                f"container {container_id} has not ended {_KILL_S:.0f} s after SIGKILL",
                hint="a process in uninterruptible sleep, often on a dead network file system, can't be killed",
            )

    @staticmethod
    async def _wait(stop: _Stop, timeout_s: float) -> None:
        """Until the end, a shorter deadline, or the deadline."""
        waits = {asyncio.create_task(stop.ended.wait()), asyncio.create_task(stop.sooner.wait())}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


async def _ends_within(stop: _Stop, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await stop.ended.wait()
    except TimeoutError:
        return False
    return True
