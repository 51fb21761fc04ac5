"""After a start: compare what is recorded with what is there, and make the two agree.

The daemon may have died between any two steps. What it had recorded and what lives on is taken up again; what ended
meanwhile is recorded with its exact exit; what was begun and not recorded is undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from cri_py.errors import CriError, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from cri_py.kernel import procfs
from cri_py.model import (
    Container,
    Created,
    Exited,
    Lost,
    Nanos,
    NotReady,
    Ready,
    Running,
    Sandbox,
    SandboxId,
)
from cri_py.monitor.client import MonitorClient
from cri_py.monitor.protocol import VERSION
from cri_py.network.pod_network import PodNetwork
from cri_py.pods.bundles import Bundles
from cri_py.pods.containers import MONITOR_LOST, ended
from cri_py.pods.groups import Groups
from cri_py.pods.ledger import Ledger
from cri_py.pods.monitors import Monitors
from cri_py.pods.places import Places
from cri_py.pods.sandboxes import unmount
from cri_py.pods.trash import Trash

log = structlog.get_logger()


class _OtherVersion(FailedPrecondition):
    """Nobody can go on with a pod whose monitor understands none of what it is asked; it was told to end."""

    def __init__(self, version: int) -> None:
        said = f"the pod's monitor spoke version {version} of the protocol, and this daemon speaks version {VERSION}"
        super().__init__(f"{said}: it was ended", hint="drain a node before cri_py changes by so much")


class _Meeting(NamedTuple):
    """What came of looking for a sandbox's monitor; ``sandbox`` and ``containers`` are to be recorded anew."""

    monitor: MonitorClient | None
    sandbox: Sandbox | None
    containers: list[Container]


class Recovery:
    """Runs once, before the socket is opened."""

    def __init__(
        self,
        *,
        places: Places,
        ledger: Ledger,
        monitors: Monitors,
        network: PodNetwork,
        groups: Groups,
        bundles: Bundles,
        trash: Trash,
        timeout_s: float,
        clock: Callable[[], Nanos],
    ) -> None:
        self._places = places
        self._ledger = ledger
        self._monitors = monitors
        self._network = network
        self._groups = groups
        self._bundles = bundles
        self._trash = trash
        self._timeout_s = timeout_s
        self._clock = clock

    async def run(self) -> None:
        await self._ledger.set_aside()
        sandboxes = self._ledger.sandboxes()
        met = await asyncio.gather(*(self._meet(sandbox) for sandbox in sandboxes))
        for sandbox, meeting in zip(sandboxes, met, strict=True):
            if sandbox.attachment is not None and (meeting.monitor or isinstance(sandbox.state, Ready)):
                self._network.adopt(sandbox)
        changed = [meeting.sandbox for meeting in met if meeting.sandbox is not None]
        orphans = [container for container in self._ledger.containers() if not self._is_sandbox(container.sandbox_id)]
        found = [container for meeting in met for container in meeting.containers]
        found += self._lose(orphans, "the record of its pod sandbox is gone")
        lost = [container for container in found if isinstance(container.state, Lost)]
        await asyncio.gather(*(self._groups.kill_lost(container.cgroup) for container in lost))
        await self._ledger.put_all(changed, found)
        # What happened since a monitor said hello has to find recorded what it said.
        for sandbox, meeting in zip(sandboxes, met, strict=True):
            if meeting.monitor is not None:
                self._monitors.keep(sandbox.id, meeting.monitor)
        await self._sweep({sandbox.id for sandbox, meeting in zip(sandboxes, met, strict=True) if meeting.monitor})

    # --------------------------------------------------------------- recorded

    async def _meet(self, sandbox: Sandbox) -> _Meeting:
        """Find a sandbox's monitor again. One that is not ready may have one too: its holder alone has died."""
        members = self._ledger.members(sandbox.id)
        try:
            monitor = MonitorClient.connect(self._places.pod(sandbox.id))
        except Unavailable as error:
            return self._without_monitor(sandbox, members, error)
        try:
            hello = await monitor.request("hello", timeout_s=self._timeout_s)
            if hello["version"] != VERSION:
                await monitor.request("end", timeout_s=self._timeout_s)
                raise _OtherVersion(hello["version"])
            await self._forget_strangers(monitor, hello["containers"], members)
        except CriError as error:
            monitor.close()
            if isinstance(error, DeadlineExceeded):
                _kill_hanging(sandbox)
            return self._without_monitor(sandbox, members, error)
        monitor.pid = hello["pid"]
        changed = [self._compare(container, hello["containers"].get(container.id)) for container in members]
        return _Meeting(monitor, self._with_holder(sandbox, hello), [found for found in changed if found is not None])

    def _without_monitor(self, sandbox: Sandbox, members: list[Container], cause: CriError) -> _Meeting:
        if not isinstance(sandbox.state, Ready):
            return _Meeting(None, None, self._lose(members, "SandboxStopped"))
        log.warning("a pod's monitor is gone", sandbox=sandbox.id, cause=str(cause))
        self._end_unreachable(sandbox.id, sandbox.state, sandbox.cgroup)
        reason, message = MONITOR_LOST, MONITOR_LOST
        if isinstance(cause, _OtherVersion):
            reason, message = "MonitorVersion", cause.message
        stopped = replace(sandbox, state=NotReady(self._clock(), reason))
        return _Meeting(None, stopped, self._lose(members, message))

    def _end_unreachable(self, sandbox_id: SandboxId, state: Ready, group: str) -> None:
        """Somebody has deleted a living monitor's socket: nobody could ever end it. A pid may be a stranger's by now;
        but the parent of what is the holder by its pid and by its group is no stranger."""
        if state.holder_pid not in self._groups.cgroups.processes(group):
            return
        holder = procfs.status(state.holder_pid)
        if holder is None or int(holder["PPid"]) != state.monitor_pid:
            return
        kill_monitor(sandbox_id, state.monitor_pid, "it can't be reached")

    def _with_holder(self, sandbox: Sandbox, hello: dict[str, Any]) -> Sandbox | None:
        if hello["holder"] or not isinstance(sandbox.state, Ready):
            return None
        return replace(sandbox, state=NotReady(self._clock(), "HolderDied"))

    def _compare(self, container: Container, found: dict[str, Any] | None) -> Container | None:
        """The container as it is now, None if the record says so already."""
        if isinstance(container.state, Exited):
            return None
        if found is None:
            return self._lost(container, "the monitor does not know it")
        if found["state"] == "exited":
            return replace(container, state=ended(found, container))
        if found["state"] == "running" and not isinstance(container.state, Running):
            state = Running(found["pid"], found["ticks"], Nanos(found["started_at"]))
            return replace(container, state=state)
        return None

    def _lose(self, members: Iterable[Container], reason: str) -> list[Container]:
        return [
            self._lost(container, reason) for container in members if isinstance(container.state, Created | Running)
        ]

    def _lost(self, container: Container, reason: str) -> Container:
        kept = self._bundles.kept_exit(container)
        if kept is not None:
            return replace(container, state=ended(kept, container))
        started = container.state.started_at if isinstance(container.state, Running) else Nanos(0)
        return replace(container, state=Lost(started, self._clock(), MONITOR_LOST, reason))

    async def _forget_strangers(
        self, monitor: MonitorClient, found: dict[str, Any], members: Iterable[Container]
    ) -> None:
        """Containers that a create had begun and nobody recorded."""
        known = {container.id for container in members}
        for container_id in set(found) - known:
            await monitor.request("abandon", timeout_s=self._timeout_s, id=container_id)

    # ------------------------------------------------------------- unrecorded

    async def _sweep(self, met: set[SandboxId]) -> None:
        """Remove what no record claims: pods, their groups, containers' layers, network namespaces."""
        for name in os.listdir(self._places.pods):
            if not self._is_sandbox(SandboxId(name)):
                await self._remove_pod(name)
        known = {container.id for container in self._ledger.containers()}
        for name in os.listdir(self._places.containers):
            if name not in known:
                self._trash.discard(f"{self._places.containers}/{name}")
        for sandbox in self._ledger.sandboxes():
            await self._sweep_pod(sandbox, known)
        await self._network.sweep(met)

    def _is_sandbox(self, sandbox_id: SandboxId) -> bool:
        try:
            return self._ledger.sandbox(sandbox_id).id == sandbox_id
        except NotFound:
            return False

    async def _sweep_pod(self, sandbox: Sandbox, known: set[Any]) -> None:
        bundles = Path(self._places.pod(sandbox.id)) / "containers"
        for path in bundles.iterdir() if bundles.is_dir() else ():
            if path.name not in known:
                self._trash.discard(str(path))
        for child in self._groups.cgroups.children(sandbox.cgroup):
            container_id = self._groups.container_of(child)
            if container_id and container_id not in known:
                await self._groups.kill(child)
                await self._groups.remove(child)

    async def _remove_pod(self, name: str) -> None:
        """A sandbox that was begun and never recorded: end its monitor, and what its directory tells of."""
        pod = self._places.pod(SandboxId(name))
        log.info("removing a sandbox that was never finished", sandbox=name)
        try:
            monitor = MonitorClient.connect(pod)
            monitor.on_lost = lambda: None
            try:
                await monitor.request("end", timeout_s=self._timeout_s)
            finally:
                monitor.close()
        except CriError as error:
            log.debug("it has no monitor", sandbox=name, cause=str(error))
        note = Path(pod) / "cgroup"
        if note.exists():
            group, *made = note.read_text().split("\n")
            try:
                await self._groups.end_pod(group, name, made)
            except CriError as error:
                log.warning("its cgroup could not be removed", sandbox=name, cgroup=group, cause=str(error))
        unmount(f"{pod}/shm")
        self._trash.discard(pod)


def _kill_hanging(sandbox: Sandbox) -> None:
    """A monitor that accepts and never answers would keep its holder and its containers for ever."""
    if not isinstance(sandbox.state, Ready):
        return
    pid = sandbox.state.monitor_pid
    status = procfs.status(pid)
    if status is not None and status["Name"] == "cri-monitor":
        kill_monitor(sandbox.id, pid, "it hangs")


def kill_monitor(sandbox_id: SandboxId, pid: int, cause: str) -> None:
    """One that has ended by itself since it was looked at is fine: it must not keep the daemon from starting."""
    log.error("the monitor of a pod is killed", sandbox=sandbox_id, pid=pid, cause=cause)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
