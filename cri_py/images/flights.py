"""Work that several callers want at once is done once: they join the flight that is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, TypeVarTuple

from cri_py.errors import CriError

_Key = TypeVar("_Key", bound=Hashable)
_Outcome = TypeVar("_Outcome")
_Arguments = TypeVarTuple("_Arguments")


@dataclass(slots=True)
class _Flight(Generic[_Outcome]):
    task: asyncio.Task[_Outcome]
    aboard: int = 0


class Flights(Generic[_Key, _Outcome]):
    """Flights by key. The last caller who leaves before the end cancels the work and waits until it has cleaned up.

    So does who comes meanwhile: his own must not begin beside the undoing of the one before.
    """

    def __init__(self) -> None:
        self._flights: dict[_Key, _Flight[_Outcome]] = {}

    async def join(self, key: _Key, start: Callable[[], Coroutine[Any, Any, _Outcome]]) -> _Outcome:
        """The outcome of the flight ``key``, begun by ``start`` if there is none.

        Who joined a flight that fails begins another: the failure may be due to the credentials of who began it.
        """
        while True:
            flight = self._flights.get(key)
            if flight is not None and flight.task.cancelling():
                await asyncio.wait([flight.task])
                continue
            joined = flight is not None
            if flight is None:
                flight = _Flight(asyncio.create_task(start()))
                self._flights[key] = flight
                # First of its callbacks, so that whoever it wakes finds the place free.
                flight.task.add_done_callback(lambda _: self._flights.pop(key))
            try:
                return await self._ride(flight)
            except CriError:
                if not joined:
                    raise

    async def settle(self, timeout_s: float) -> None:
        """Wait until all have landed or are undone, before what they work with is closed; at most ``timeout_s``."""
        tasks = [flight.task for flight in self._flights.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def _ride(self, flight: _Flight[_Outcome]) -> _Outcome:
        flight.aboard += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.aboard -= 1
            if not flight.aboard and not flight.task.done():
                flight.task.cancel()
                await asyncio.wait([flight.task])


async def on_thread(
    executor: Executor, call: Callable[[*_Arguments], _Outcome], *args: *_Arguments, stop: threading.Event | None = None
) -> _Outcome:
    """Run a blocking call on a thread of ``executor``.

    A caller who is cancelled waits for the end of the call nevertheless: what the thread uses (a file descriptor, a
    directory) must not be taken from under it. ``stop`` is set first, for a call that would take long.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, call, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen, and of no interest any more
        raise
