"""Pod sandboxes: run, stop, remove, and what there is of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import structlog

from cri_py import lifecycle, telemetry
from cri_py.config import RuntimeConfig
from cri_py.errors import AlreadyExists, CriError, DeadlineExceeded, Internal, KernelError, NotFound, Unavailable
from cri_py.images.flights import Flights
from cri_py.kernel import labels, procfs, steps, syscalls
from cri_py.kernel.constants import MNT_DETACH, MS_NODEV, MS_NOEXEC, MS_NOSUID
from cri_py.kernel.faults import trace
from cri_py.model import (
    Attachment,
    Event,
    EventKind,
    NamespaceMode,
    Nanos,
    NotReady,
    Ready,
    Sandbox,
    SandboxConfig,
    SandboxFilter,
    SandboxId,
)
from cri_py.monitor.client import SOCKET_NAME, MonitorClient, SpawnerClient, StepFailed
from cri_py.network.pod_network import PodNetwork
from cri_py.pods import files, holder_steps, selinux, spec, spec_limits, spec_selinux, spec_userns
from cri_py.pods.containers import MONITOR_LOST, Containers, log_notes
from cri_py.pods.events import Events
from cri_py.pods.groups import Groups
from cri_py.pods.ledger import Ledger
from cri_py.pods.monitors import Monitors
from cri_py.pods.places import Places
from cri_py.pods.trash import Trash

log = structlog.get_logger()
_HELLO_S: Final = 5.0
_STOPPED: Final = "stopped"  # recorded after the teardown, so it also says that nothing is left to tear down


class Sandboxes:
    """The verbs on pod sandboxes."""

    def __init__(
        self,
        *,
        config: RuntimeConfig,
        defaults: spec.SpecDefaults,
        places: Places,
        ledger: Ledger,
        containers: Containers,
        monitors: Monitors,
        spawner: SpawnerClient,
        network: PodNetwork,
        groups: Groups,
        trash: Trash,
        events: Events,
        clock: Callable[[], Nanos],
    ) -> None:
        self._config = config
        self._defaults = defaults
        self._places = places
        self._ledger = ledger
        self._containers = containers
        self._monitors = monitors
        self._spawner = spawner
        self._network = network
        self._groups = groups
        self._trash = trash
        self._events = events
        self._clock = clock
        self._last_capability = procfs.last_capability()
        self._flights: Flights[tuple[Any, ...], SandboxId] = Flights()
        self._torn_down: set[SandboxId] = set()
        self._groups_gone: set[SandboxId] = set()
        self._levels = selinux.Levels(defaults.selinux, ledger)

    async def settle(self, timeout_s: float) -> None:
        """Wait for what is being made, or undone, at the daemon's end."""
        await self._flights.settle(timeout_s)

    # --------------------------------------------------------------- looking

    def find(self, sandbox_id: str) -> Sandbox:
        return self._ledger.sandbox(sandbox_id)

    def list(self, wanted: SandboxFilter) -> list[Sandbox]:
        return self._ledger.select_sandboxes(wanted)

    def verbose(self, sandbox: Sandbox) -> dict[str, str]:
        """The ``info`` that crictl inspectp prints: one JSON document."""
        state = sandbox.state
        document = {
            "pid": state.holder_pid if isinstance(state, Ready) else 0,
            "monitorPid": state.monitor_pid if isinstance(state, Ready) else 0,
            "netns": sandbox.attachment.netns_path if sandbox.attachment else "",
            "cgroup": sandbox.cgroup,
            **self._groups.told(sandbox.cgroup),
            "directory": self._places.pod(sandbox.id),
            "runtimeHandler": sandbox.runtime_handler,
            "state": lifecycle.word(state),
            "reason": state.reason if isinstance(state, NotReady) else "",
            "cniResult": self._network.result(sandbox),
        }
        return {"info": json.dumps(document)}

    # ------------------------------------------------------------------- run

    async def run(self, config: SandboxConfig, handler: str) -> SandboxId:
        """Make a sandbox. A duplicate call joins the one under way; one that was answered already is answered again."""
        if handler and handler not in self._config.handlers:
            raise NotFound(
                f"there is no runtime handler {handler!r}",
                hint=f"this node has: '', {', '.join(self._config.handlers)}",
            )
        spec_limits.validate_sandbox_config(config)
        self._groups.check_parent(config.cgroup_parent)
        spec.check_sandbox_security(config, self._defaults)
        meta = config.metadata
        key = (meta.namespace, meta.name, meta.uid, meta.attempt)
        existing = self._named(key)
        if existing is not None:
            return _same(existing, config)
        return await self._flights.join(key, lambda: self._run(config, handler))

    def _named(self, key: tuple[Any, ...]) -> Sandbox | None:
        for sandbox in self._ledger.sandboxes():
            meta = sandbox.config.metadata
            if (meta.namespace, meta.name, meta.uid, meta.attempt) == key:
                return sandbox
        return None

    async def _run(self, config: SandboxConfig, handler: str) -> SandboxId:
        sandbox_id = SandboxId(os.urandom(32).hex())
        with self._levels.promise(sandbox_id, config.selinux) as level:
            sandbox = Sandbox(
                id=sandbox_id,
                config=config,
                runtime_handler=handler,
                created_at=self._clock(),
                state=NotReady(Nanos(0), "not yet made"),
                cgroup=self._groups.of_pod(config.cgroup_parent, sandbox_id),
                selinux_level=level,
            )
            await self._make(sandbox)
        return sandbox_id

    async def _make(self, sandbox: Sandbox) -> None:
        async with AsyncExitStack() as undo:
            undo.callback(self._remove_directory, sandbox)
            self._make_directory(sandbox)
            monitor, holder, attachment = await self._gather(sandbox, undo)
            sandbox = replace(sandbox, attachment=attachment, state=Ready(monitor.pid, holder))
            trace("run: made")
            undo.push_async_callback(self._ledger.drop_sandbox, sandbox.id)  # written after a caller has left
            await self._ledger.put_sandbox(sandbox)
            undo.pop_all()
        trace("run: recorded")
        self._monitors.keep(sandbox.id, monitor)
        self._publish(sandbox, EventKind.CREATED)
        self._publish(sandbox, EventKind.STARTED)

    async def _gather(self, sandbox: Sandbox, undo: AsyncExitStack) -> tuple[MonitorClient, int, Attachment | None]:
        """Monitor, network and cgroup are made side by side; the holder as soon as it has somewhere to be."""
        if spec_userns.has_own(sandbox.config.namespaces):
            return await self._gather_inside(sandbox, undo)
        host_network = sandbox.config.namespaces.network is NamespaceMode.NODE
        netns = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                grouped = tasks.create_task(self._make_group(sandbox, undo))
                spawned = tasks.create_task(self._spawn(sandbox, undo))
                if host_network:
                    netns.set()
                    attached = None
                else:
                    attached = tasks.create_task(self._attach(sandbox, undo, netns))
                await netns.wait()
                await grouped
                holder = await self._hold(sandbox, await spawned)
                trace("run: held")
                attachment = await attached if attached else None
                self._write_files(replace(sandbox, attachment=attachment))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        return spawned.result(), holder, attachment

    async def _gather_inside(
        self, sandbox: Sandbox, undo: AsyncExitStack
    ) -> tuple[MonitorClient, int, Attachment | None]:
        """With a user namespace the holder comes before the network, which must be made inside it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._make_group(sandbox, undo))
                spawned = tasks.create_task(self._spawn(sandbox, undo))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        monitor = spawned.result()
        holder = await self._hold(sandbox, monitor)
        trace("run: held")
        attachment = None
        if sandbox.config.namespaces.network is not NamespaceMode.NODE:
            attachment = await self._attach(sandbox, undo, asyncio.Event(), holder)
        self._write_files(replace(sandbox, attachment=attachment))
        return monitor, holder, attachment

    @telemetry.stage("sandbox cgroup")
    async def _make_group(self, sandbox: Sandbox, undo: AsyncExitStack) -> None:
        undo.push_async_callback(self._groups.remove_pod, sandbox.cgroup, sandbox.id, ())
        made = await self._groups.make_pod(sandbox.cgroup, sandbox.id)
        trace("run: group made")
        note = f"{self._places.pod(sandbox.id)}/cgroup"
        with _told_as_ours(note):  # added to, not written anew: a death in between must not lose the group's name
            _put(note, "".join(f"\n{directory}" for directory in made), mode="a")

    async def _spawn(self, sandbox: Sandbox, undo: AsyncExitStack) -> MonitorClient:
        """Its monitor, asked for once more if a spawner died over the request: nothing of the first is left then."""
        try:
            return await self._ask_for_monitor(sandbox, undo)
        except Unavailable:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._places.pod(sandbox.id)}/{SOCKET_NAME}")  # of a monitor that died as it came up
            return await self._ask_for_monitor(sandbox, undo)

    @telemetry.stage("monitor")
    async def _ask_for_monitor(self, sandbox: Sandbox, undo: AsyncExitStack) -> MonitorClient:
        trace("run: before the monitor")
        monitor = self._spawner.spawn(self._places.pod(sandbox.id))
        asked = self._spawner.pid
        undo.push_async_callback(self._end_monitor, monitor)
        trace("run: monitor asked for")
        try:
            await monitor.wait_until_up(self._config.monitor_timeout_s)
        except DeadlineExceeded:
            if asked == self._spawner.pid:  # else it was replaced, and its pid may be a stranger's by now
                log.warning("the spawner hangs; the next pod gets another", pid=asked)
                os.kill(asked, signal.SIGKILL)
            raise
        trace("run: monitor up")
        return monitor

    async def _attach(
        self, sandbox: Sandbox, undo: AsyncExitStack, netns: asyncio.Event, holder: int = 0
    ) -> Attachment:
        attachment = await self._network.attach(sandbox, netns.set, holder)
        undo.push_async_callback(self._network.detach, replace(sandbox, attachment=attachment))
        trace("run: network attached")
        return attachment

    @telemetry.stage("holder")
    async def _hold(self, sandbox: Sandbox, monitor: MonitorClient) -> int:
        own = holder_steps.own(sandbox.config, files.sandbox_hostname(sandbox, ""))
        files_of_group = self._groups.cgroups.enter_plan(self._groups.of_holder(sandbox.cgroup, sandbox.id))
        program = holder_steps.steps(own, self._places.holder_program, files_of_group, self._last_capability)
        fds = [steps.in_memory(steps.program(program))]
        try:
            if own.network:
                fds.append(os.open(self._network.pin_of(sandbox), os.O_RDONLY | os.O_CLOEXEC))
            users = holder_steps.users(own, sandbox.config)
            answer = await monitor.request("hold", timeout_s=self._config.monitor_timeout_s, fds=tuple(fds), **users)
        except StepFailed as failure:
            raise holder_steps.refusal(program[failure.step], failure.errno) from failure
        finally:
            for fd in fds:
                os.close(fd)
        await self._groups.held(sandbox.cgroup, sandbox.id)
        return int(answer["holder"])

    def _make_directory(self, sandbox: Sandbox) -> None:
        """The pod's directory; ``cgroup`` tells a recovery, which may find no record, what else to clean up: the group
        and, once it is there, which directories are ours."""
        pod = self._places.pod(sandbox.id)
        with _told_as_ours(f"the directory {pod}"):
            os.mkdir(pod)
            os.mkdir(f"{pod}/containers", 0o711)
            _put(f"{pod}/cgroup", sandbox.cgroup)

    def _write_files(self, sandbox: Sandbox) -> None:
        places = self._places.files(sandbox.id)
        host_network = sandbox.attachment is None
        hostname = files.sandbox_hostname(sandbox, self._defaults.node_hostname)
        ips = sandbox.attachment.ips if sandbox.attachment else ()
        node_hosts = _read("/etc/hosts") if host_network else None
        resolv_conf = files.resolv_conf_text(sandbox.config.dns, _read("/etc/resolv.conf"))
        root = spec_userns.root_of(sandbox.config.namespaces)
        label = spec_selinux.pod_file_label(self._defaults.selinux, sandbox)
        with _told_as_ours(f"the files of pod sandbox {sandbox.id}"):
            _put(places.hosts, files.hosts_text(hostname, ips, node_hosts))
            _put(places.hostname, files.hostname_text(hostname))
            _put(places.resolv_conf, resolv_conf)
            for path in (places.hosts, places.hostname, places.resolv_conf):
                if root != (0, 0):
                    os.chown(path, *root)
                if label:
                    labels.give(path, label)
            if sandbox.config.namespaces.ipc is not NamespaceMode.NODE:
                os.makedirs(places.shm, exist_ok=True)
                size = spec_limits.shm_bytes(sandbox.config, self._config.shm_bytes)
                options = f"mode=1777,size={size},uid={root[0]},gid={root[1]}"
                options = labels.with_context(options, label)
                syscalls.mount("shm", places.shm, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)

    def _remove_directory(self, sandbox: Sandbox) -> None:
        unmount(self._places.files(sandbox.id).shm)
        self._trash.discard(self._places.pod(sandbox.id))

    async def _end_monitor(self, monitor: MonitorClient) -> None:
        monitor.on_lost = lambda: None
        try:
            log_notes(await monitor.request("end", timeout_s=self._config.monitor_timeout_s))
        except Unavailable:
            pass  # it is gone already, which is what was wanted
        except DeadlineExceeded:
            if not monitor.pid:
                raise
            os.kill(monitor.pid, signal.SIGKILL)  # it hangs; its processes die with it
        finally:
            monitor.close()

    # ------------------------------------------------------------------ stop

    async def stop(self, sandbox_id: str) -> None:
        """End all containers and let go of network and namespaces. A missing sandbox, and a second call, are fine."""
        try:
            sandbox = self._ledger.sandbox(sandbox_id)
        except NotFound:
            return
        async with self._ledger.lock(sandbox.id):
            try:
                sandbox = self._ledger.sandbox(sandbox.id)
            except NotFound:
                return  # removed meanwhile
            await self._stop(sandbox)

    async def _stop(self, sandbox: Sandbox) -> None:
        try:
            await self._end_members(sandbox)
        except DeadlineExceeded:
            if await self._monitor_answers(sandbox):
                raise
            await self._end_members(sandbox)
        if sandbox.id in self._torn_down or _was_stopped(sandbox):
            return
        trace("stop: containers ended")
        monitor = self._monitors.take(sandbox.id)
        if monitor is not None:
            await self._end_monitor(monitor)
        trace("stop: monitor ended")
        await self._tear_down(sandbox)
        trace("stop: torn down")
        if isinstance(sandbox.state, Ready):
            await self._become_not_ready(sandbox, _STOPPED)
        self._torn_down.add(sandbox.id)

    async def _end_members(self, sandbox: Sandbox) -> None:
        members = self._ledger.members(sandbox.id)
        await asyncio.gather(*(self._containers.end(container.id) for container in members))

    async def _monitor_answers(self, sandbox: Sandbox) -> bool:
        """Whether the monitor works. One that hangs is killed, and its containers with it: else its pod never ends."""
        try:
            monitor = self._monitors.of(sandbox.id)
            await monitor.request("hello", timeout_s=_HELLO_S)
        except Unavailable:
            return False
        except DeadlineExceeded:
            log.warning("the monitor of a pod that is to be stopped hangs; it is killed", sandbox=sandbox.id)
            os.kill(monitor.pid, signal.SIGKILL)
            return False
        return True

    async def _tear_down(self, sandbox: Sandbox) -> None:
        await self._network.detach(sandbox)
        unmount(self._places.files(sandbox.id).shm)
        if not isinstance(sandbox.state, Ready) and not sandbox.config.cgroup_parent:
            await self._groups.kill(sandbox.cgroup)  # the kubelet's group may be the next sandbox's by now
        await self._remove_group(sandbox)

    async def _remove_group(self, sandbox: Sandbox) -> None:
        _, *made = _read(f"{self._places.pod(sandbox.id)}/cgroup").split("\n")
        if await self._groups.remove_pod(sandbox.cgroup, sandbox.id, made):
            self._groups_gone.add(sandbox.id)

    async def _become_not_ready(self, sandbox: Sandbox, reason: str) -> None:
        state = lifecycle.advance_sandbox(sandbox.state, NotReady(self._clock(), reason), f"pod sandbox {sandbox.id}")
        stopped = replace(sandbox, state=state)
        await self._ledger.put_sandbox(stopped)
        self._publish(stopped, EventKind.STOPPED)

    async def lost(self, sandbox_id: SandboxId) -> None:
        """The monitor died by itself: its containers die with it, and nobody sees how."""
        telemetry.MONITORS_LOST.inc()
        log.warning("the monitor of a pod died; its containers are lost", sandbox=sandbox_id)
        self._monitors.take(sandbox_id)
        await self._lose_members(sandbox_id)  # not under the lock: a stop that has it may be waiting for their end
        async with self._ledger.lock(sandbox_id):
            try:
                sandbox = self._ledger.sandbox(sandbox_id)
            except NotFound:
                return
            await self._lose_members(sandbox_id)  # a create may have had the lock meanwhile
            if isinstance(sandbox.state, Ready):
                await self._become_not_ready(sandbox, MONITOR_LOST)

    async def _lose_members(self, sandbox_id: SandboxId) -> None:
        for container in self._ledger.members(sandbox_id):
            await self._containers.lose(container.id, MONITOR_LOST, "the pod's monitor died")

    async def holder_died(self, sandbox_id: SandboxId) -> None:
        """Without its holder a pod takes no more containers."""
        async with self._ledger.lock(sandbox_id):
            try:
                sandbox = self._ledger.sandbox(sandbox_id)
            except NotFound:
                return
            if isinstance(sandbox.state, Ready):
                log.warning("the holder of a pod died", sandbox=sandbox_id)
                await self._become_not_ready(sandbox, "HolderDied")

    # ---------------------------------------------------------------- remove

    async def remove(self, sandbox_id: str) -> None:
        """Stop it if need be and forget it and its containers. A missing sandbox is fine."""
        try:
            sandbox = self._ledger.sandbox(sandbox_id)
        except NotFound:
            return
        async with self._ledger.lock(sandbox.id):
            try:
                sandbox = self._ledger.sandbox(sandbox.id)
            except NotFound:
                return  # another call was faster
            await self._remove(sandbox)

    async def _remove(self, sandbox: Sandbox) -> None:
        await self._stop(sandbox)
        for container in self._ledger.members(sandbox.id):
            await self._containers.remove(container.id)
        if sandbox.id not in self._groups_gone:
            await self._remove_group(sandbox)  # the stop could not while the containers' groups were there
        trace("remove: containers removed")
        self._remove_directory(sandbox)
        trace("remove: directory gone")
        await self._ledger.drop_sandbox(sandbox.id)
        trace("remove: forgotten")
        self._torn_down.discard(sandbox.id)
        self._groups_gone.discard(sandbox.id)
        self._publish(sandbox, EventKind.DELETED)

    def _publish(self, sandbox: Sandbox, kind: EventKind) -> None:
        members = tuple(self._ledger.members(sandbox.id))
        self._events.publish(Event(sandbox.id, kind, self._clock(), sandbox, members))


@contextlib.contextmanager
def _told_as_ours(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Internal(f"{what} can't be made: {error}", hint="has the node room in its state directory?") from error


def _was_stopped(sandbox: Sandbox) -> bool:
    return isinstance(sandbox.state, NotReady) and sandbox.state.reason == _STOPPED


def _same(existing: Sandbox, config: SandboxConfig) -> SandboxId:
    """A retry of a call whose answer was lost gets the same answer."""
    if isinstance(existing.state, Ready) and existing.config == config:
        return existing.id
    meta = config.metadata
    raise AlreadyExists(
        f"pod {meta.namespace}/{meta.name} attempt {meta.attempt} exists as {existing.id}",
        hint="remove it, or use the next attempt",
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, by weight: our own errors say most."""
    flat = [_first(error) if isinstance(error, BaseExceptionGroup) else error for error in group.exceptions]
    return min(flat, key=lambda error: not isinstance(error, CriError))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _put(path: str, text: str, mode: str = "w") -> None:
    with open(path, mode, encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def unmount(path: str) -> None:
    """Let a mount go; one that isn't there is fine."""
    try:
        syscalls.umount2(path, MNT_DETACH)
    except KernelError as error:
        if not os.path.ismount(path):
            return
        raise Internal(f"{path} can't be unmounted: {error}") from error
