"""The connections to the pods' monitors, by sandbox, and where their events go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from cri_py import telemetry
from cri_py.errors import Unavailable
from cri_py.model import SandboxId
from cri_py.monitor.client import MonitorClient

log = structlog.get_logger()
Reaction = Callable[..., Coroutine[Any, Any, None]]


class Monitors:
    """Keeps one client per living pod. Events are handed on as tasks of ``tasks``, in order per connection."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._clients: dict[SandboxId, MonitorClient] = {}
        self.on_exit: Reaction
        self.on_lost: Reaction
        self.on_holder_exit: Reaction

    def keep(self, sandbox_id: SandboxId, client: MonitorClient) -> None:
        """From now on the monitor's events count, those that came before too."""
        self._clients[sandbox_id] = client
        client.on_event = lambda event: self._take_event(sandbox_id, event)
        for event in client.early:
            self._take_event(sandbox_id, event)
        client.early.clear()
        client.on_lost = lambda: self._lost(sandbox_id)
        if client.closed:
            self._lost(sandbox_id)

    def of(self, sandbox_id: SandboxId) -> MonitorClient:
        """Raises Unavailable for a pod whose monitor is gone."""
        try:
            return self._clients[sandbox_id]
        except KeyError:
            raise Unavailable(f"pod sandbox {sandbox_id} has no monitor", hint="stop and remove the pod") from None

    def take(self, sandbox_id: SandboxId) -> MonitorClient | None:
        """Hand out the client for good; its end is expected from now on."""
        return self._clients.pop(sandbox_id, None)

    def pids(self) -> list[int]:
        return [client.pid for client in self._clients.values()]

    def close(self) -> None:
        """Let all go; the monitors live on."""
        for client in self._clients.values():
            client.on_lost = lambda: None
            client.close()
        self._clients.clear()

    def _take_event(self, sandbox_id: SandboxId, event: dict[str, Any]) -> None:
        if event["event"] == "exit":
            self._react(self.on_exit(event), sandbox_id)
        elif event["event"] == "stream_end":
            _count_stream(event)
        elif event["event"] == "holder_exit":
            self._react(self.on_holder_exit(sandbox_id), sandbox_id)

    def _lost(self, sandbox_id: SandboxId) -> None:
        if sandbox_id in self._clients:
            self._react(self.on_lost(sandbox_id), sandbox_id)

    def _react(self, reaction: Coroutine[Any, Any, None], sandbox_id: SandboxId) -> None:
        """No caller waits for it: what fails is logged here, as the task group would end the daemon over it."""

        async def guarded() -> None:
            try:
                await reaction
            except Exception as error:
                log.exception("what a monitor reported could not be recorded", sandbox=sandbox_id, cause=str(error))

        self._tasks.create_task(guarded())


def _count_stream(event: dict[str, Any]) -> None:
    kind = event["kind"]
    telemetry.STREAM_SECONDS.labels(kind).observe(event["seconds"])
    telemetry.STREAM_BYTES.labels(kind, "container").inc(event["received"])
    telemetry.STREAM_BYTES.labels(kind, "client").inc(event["sent"])
    if event["error"]:
        telemetry.STREAM_ERRORS.labels(kind).inc()
        log.warning("a streaming session ended by an error", kind=kind, cause=event["error"])
