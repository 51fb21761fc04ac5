"""Containers: create, start, stop, remove, exec, and what there is of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

import structlog

from cri_py import lifecycle, telemetry
from cri_py.config import RuntimeConfig
from cri_py.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    StartError,
    Unavailable,
)
from cri_py.images.flights import Flights
from cri_py.images.service import Images
from cri_py.kernel.faults import trace
from cri_py.model import (
    Container,
    ContainerConfig,
    ContainerFilter,
    ContainerId,
    Created,
    Event,
    EventKind,
    ExecResult,
    Exited,
    Image,
    ImageId,
    Lost,
    Nanos,
    NotReady,
    Ready,
    Running,
    Sandbox,
    SandboxConfig,
    SandboxId,
)
from cri_py.monitor import protocol
from cri_py.network import devices as network_devices
from cri_py.pods import image_volumes, last_hooks, spec_cdi, spec_limits, spec_security, spec_signals
from cri_py.pods.bundles import Bundle, Bundles, asks_for_devices
from cri_py.pods.events import Events
from cri_py.pods.execs import Execs
from cri_py.pods.groups import Groups
from cri_py.pods.ledger import Ledger, read_user
from cri_py.pods.monitors import Monitors
from cri_py.pods.places import Places
from cri_py.pods.stops import Stops
from cri_py.pods.trash import Trash

log = structlog.get_logger()
MONITOR_LOST: Final = "MonitorLost"  # the reason of a pod whose monitor died by itself, and of its containers
_LOST_CODE: Final = 255
_SIGNALLED: Final = 128  # and a signal's number, as an exit code


class Containers:
    """The verbs on containers."""

    def __init__(
        self,
        *,
        config: RuntimeConfig,
        places: Places,
        ledger: Ledger,
        images: Images,
        monitors: Monitors,
        groups: Groups,
        bundles: Bundles,
        trash: Trash,
        events: Events,
        clock: Callable[[], Nanos],
    ) -> None:
        self._config = config
        self._places = places
        self._ledger = ledger
        self._images = images
        self._monitors = monitors
        self._groups = groups
        self._bundles = bundles
        self._trash = trash
        self._events = events
        self._clock = clock
        self.execs = Execs(config, groups.cgroups, bundles.executing)
        self._stops = Stops(self._signal, self._empty)
        self._flights: Flights[tuple[Any, ...], ContainerId] = Flights()
        self._starting: set[asyncio.Task[None]] = set()

    async def settle(self, timeout_s: float) -> None:
        """Wait for what is being made, or undone, at the daemon's end."""
        await self._flights.settle(timeout_s)

    # --------------------------------------------------------------- looking

    def find(self, container_id: str) -> Container:
        return self._ledger.container(container_id)

    def list(self, wanted: ContainerFilter) -> list[Container]:
        return self._ledger.select_containers(wanted)

    def verbose(self, container: Container) -> dict[str, str]:
        """The ``info`` that crictl inspect prints: one JSON document, with the OCI document in it."""
        state = container.state
        document = {
            "sandboxID": container.sandbox_id,
            "pid": state.pid if isinstance(state, Running) else 0,
            "cgroup": container.cgroup,
            **self._groups.told(container.cgroup),
            "bundle": self._places.bundle(container.sandbox_id, container.id),
            "writableLayer": f"{self._places.writable(container.id)}/upper",
            "imageID": container.image_id,
            "runtimeSpec": self._bundles.read(container),
        }
        return {"info": json.dumps(document)}

    def image_ids_in_use(self) -> set[ImageId]:
        """The images whose layers a container still needs."""
        containers = self._ledger.containers()
        mounted = {image_id for container in containers for image_id in container.volume_images.values()}
        return mounted | {container.image_id for container in containers}

    # ---------------------------------------------------------------- create

    async def create(
        self, sandbox_id: str, config: ContainerConfig, sandbox_config: SandboxConfig | None
    ) -> ContainerId:
        """Set a container up, so that start only has to say go. A duplicate call joins the one under way."""
        sandbox = self._ledger.sandbox(sandbox_id)
        _check_ready(sandbox)
        spec_limits.validate_container_config(config, sandbox_config or sandbox.config)
        image = self._image_of(config)
        meta = config.metadata
        for existing in self._ledger.members(sandbox.id):
            if existing.config.metadata == meta:
                return _same(existing, config)
        key = (sandbox.id, meta.name, meta.attempt)
        return await self._flights.join(key, lambda: self._create_in(sandbox.id, config, sandbox_config, image))

    async def _create_in(
        self, sandbox_id: SandboxId, config: ContainerConfig, sandbox_config: SandboxConfig | None, image: Image
    ) -> ContainerId:
        """Under the sandbox's lock: a stop must neither miss a container nor find its place made again behind it."""
        async with self._ledger.lock(sandbox_id):
            sandbox = self._ledger.sandbox(sandbox_id)
            _check_ready(sandbox)
            with self._images.using(image.id):  # its removal meanwhile must leave the layers that are being mounted
                return await self._create(sandbox, config, sandbox_config, image)

    def _image_of(self, config: ContainerConfig) -> Image:
        image = self._images.find(config.image.image)
        if image is None:
            raise NotFound(f"the image {config.image.image!r} is not on this node", hint="pull it first")
        if image.artifact_type:
            raise InvalidArgument(
                f"{config.image.image} is an artifact ({image.artifact_type}), not a container image",
                hint="artifacts can be kept and exported, not run",
            )
        return image

    async def _create(
        self, sandbox: Sandbox, config: ContainerConfig, sandbox_config: SandboxConfig | None, image: Image
    ) -> ContainerId:
        container_id = ContainerId(os.urandom(32).hex())
        volumes = image_volumes.find(self._images, config, self._places.writable(container_id))
        described = self._describe(container_id, sandbox, config, sandbox_config, image)
        container = replace(described, volume_images=image_volumes.image_ids(volumes))
        user = spec_security.user_request(config, image.config)
        target, lower = self._target_pid(sandbox, config), image_volumes.layers(volumes)
        bundle = await self._bundles.plan(sandbox, container, image, target, lower)
        user["groups"] += bundle.groups
        async with image_volumes.using(self._images, volumes), AsyncExitStack() as undo:
            undo.callback(self._discard_files, container)
            self._bundles.write(container, bundle)
            await image_volumes.lay_out(self._images, volumes)
            trace("create: bundle written")
            undo.push_async_callback(self._leave_resources, container)
            await self._groups.make(container.cgroup, bundle.document["linux"]["resources"])
            await _give_devices(sandbox, bundle.document["linux"].get("netDevices", {}))
            undo.push_async_callback(self._forget_in_monitor, container)
            answer = await self._ask_create(container, image, bundle, user)
            container = replace(container, user=read_user(answer["user"]))
            trace("create: init waits")
            undo.push_async_callback(self._ledger.drop_container, container)  # written after a caller has left
            await self._ledger.put_container(container)
            undo.pop_all()
        trace("create: recorded")
        for note in answer["notes"]:
            _log_once(note)
        self._publish(container, EventKind.CREATED)
        return container_id

    def _describe(
        self,
        container_id: ContainerId,
        sandbox: Sandbox,
        config: ContainerConfig,
        sandbox_config: SandboxConfig | None,
        image: Image,
    ) -> Container:
        """What the container's record will be."""
        return Container(
            id=container_id,
            sandbox_id=sandbox.id,
            config=config,
            image_id=image.id,
            image_ref=image.repo_tags[0] if image.repo_tags else "",
            created_at=self._clock(),
            state=Created(),
            log_path=spec_limits.container_log_path(config, sandbox_config or sandbox.config),
            cgroup=self._groups.of_container(sandbox.cgroup, container_id),
            stop_signal=spec_signals.resolve_stop_signal(config.stop_signal, image.config.stop_signal),
            resources=config.resources,
        )

    def _target_pid(self, sandbox: Sandbox, config: ContainerConfig) -> int | None:
        target = config.security.namespaces.target_id
        if not target:
            return None
        container = self._ledger.container(target)
        if container.sandbox_id != sandbox.id:
            raise InvalidArgument(
                f"container {target}, whose processes are to be shared, belongs to another pod",
                hint="target_id names a container of the same pod sandbox",
            )
        if not isinstance(container.state, Running):
            raise FailedPrecondition(f"container {target}, whose processes are to be shared, is not running")
        return container.state.pid

    @telemetry.stage("container init")
    async def _ask_create(
        self, container: Container, image: Image, bundle: Bundle, user: dict[str, Any]
    ) -> dict[str, Any]:
        writable = self._places.writable(container.id)
        namespaces = bundle.document["linux"]["namespaces"]
        asked = self._monitors.of(container.sandbox_id).request(
            "create",
            timeout_s=self._config.monitor_timeout_s,
            id=container.id,
            bundle=self._places.bundle(container.sandbox_id, container.id),
            **protocol.namespace_words(namespaces),
            cgroup=container.cgroup,
            rootfs={
                "lower": self._images.lower_dirs(image.id),
                "upper": f"{writable}/upper",
                "work": f"{writable}/work",
            },
            user=user,
            seccomp=bundle.filter,
            tty=container.config.tty,
            log=container.log_path,
            line_bytes=self._config.log_line_bytes,
            stdin=container.config.stdin,
            stdin_once=container.config.stdin_once,
            make_sources=self._config.missing_host_paths == "make",
            later_hooks=spec_cdi.later_hooks(bundle.document),
        )
        try:
            return await asked
        except DeadlineExceeded as error:
            path = self._bundles.mounting(container)
            if not path:
                raise
            raise DeadlineExceeded(
                f"the volume {path} could not be mounted within {self._config.monitor_timeout_s:g} s",
                hint="is the server of its file system there?",
            ) from error

    async def _forget_in_monitor(self, container: Container) -> None:
        """End what the monitor may have begun for a container that will not be."""
        try:
            monitor = self._monitors.of(container.sandbox_id)
            answer = await monitor.request("abandon", timeout_s=self._config.monitor_timeout_s, id=container.id)
        except (NotFound, Unavailable):
            return
        log_notes(answer)

    async def _leave_resources(self, container: Container) -> None:
        """Its groups and, where it has one, its class of Intel's resource control."""
        await self._groups.remove(container.cgroup)
        await self._bundles.leave_class(container)

    async def _run_last_hooks(self, container: Container) -> None:
        """Those that the monitor would have run, had it not died."""
        try:
            state = self._ledger.sandbox(container.sandbox_id).state
        except NotFound:
            return
        if isinstance(state, NotReady) and state.reason == MONITOR_LOST and asks_for_devices(container):
            document = self._bundles.read(container)
            bundle = self._places.bundle(container.sandbox_id, container.id)
            log_notes({"notes": await last_hooks.run(document, container.id, bundle)})

    def _discard_files(self, container: Container) -> None:
        self._trash.discard(self._places.bundle(container.sandbox_id, container.id))
        self._trash.discard(self._places.writable(container.id))

    # ----------------------------------------------------------------- start

    async def start(self, container_id: str) -> None:
        """Let the program run. A program that can't be executed ends the container: StartError, code 128."""
        container = self._ledger.container(container_id)
        task = asyncio.create_task(self._start(container.id))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        await asyncio.shield(task)  # a program that runs can't be taken back: a caller who leaves leaves it recorded

    @telemetry.stage("container start")
    async def _start(self, container_id: ContainerId) -> None:
        async with self._ledger.lock(container_id):
            container = self._ledger.container(container_id)
            if not isinstance(container.state, Created):
                raise FailedPrecondition(
                    f"container {container.id} is {lifecycle.word(container.state)}, only a created one can be started"
                )
            _check_ready(self._ledger.sandbox(container.sandbox_id))
            try:
                answer = await self._monitors.of(container.sandbox_id).request(
                    "start", timeout_s=self._config.monitor_timeout_s, id=container.id
                )
            except StartError as error:
                await self._refuse(container, error)
                raise
            trace("start: runs")
            state = Running(answer["pid"], answer["ticks"], Nanos(answer["started_at"]))
            container = await self._advance(container, state)
        self._publish(container, EventKind.STARTED)

    async def _refuse(self, container: Container, error: StartError) -> None:
        now = self._clock()
        container = await self._advance(container, Exited(128, Nanos(0), now, "StartError", str(error)))
        self._publish(container, EventKind.STOPPED)

    async def _advance(self, container: Container, state: Running | Exited | Lost) -> Container:
        following = lifecycle.advance_container(container.state, state, f"container {container.id}")
        advanced = replace(container, state=following)
        await self._ledger.put_container(advanced)
        return advanced

    # ------------------------------------------------------------------ exit

    async def on_exit(self, event: dict[str, Any]) -> None:
        """A monitor has reaped a container's process."""
        container_id = event["id"]
        telemetry.LOG_LINES_DROPPED.inc(event["dropped"])
        async with self._ledger.lock(container_id):
            try:
                container = self._ledger.container(container_id)
            except NotFound:
                return  # removed, or never came to be
            if isinstance(container.state, Exited):
                return
            trace("exit: told")
            container = await self._advance(container, ended(event, container))
        trace("exit: recorded")
        if isinstance(container.state, Exited):
            telemetry.EXITS.labels(container.state.reason).inc()
        self._stops.ended(container.id)
        self._publish(container, EventKind.STOPPED)

    async def lose(self, container_id: ContainerId, reason: str, message: str) -> None:
        """End it, whose monitor is gone. Nobody saw how it ended, unless the monitor had the time to write it down."""
        async with self._ledger.lock(container_id):
            try:
                container = self._ledger.container(container_id)
            except NotFound:
                return  # removed meanwhile
            if isinstance(container.state, Exited | Lost):
                return
            await self._groups.kill_lost(container.cgroup)
            kept = self._bundles.kept_exit(container)
            if kept is not None:
                container = await self._advance(container, ended(kept, container))
            else:
                started = container.state.started_at if isinstance(container.state, Running) else Nanos(0)
                container = await self._advance(container, Lost(started, self._clock(), reason, message))
        self._stops.ended(container.id)
        self._publish(container, EventKind.STOPPED)

    # ------------------------------------------------------------------ stop

    async def stop(self, container_id: str, timeout_s: int) -> None:
        """The stop signal, the grace period, SIGKILL. A missing container and one that has ended are fine."""
        try:
            container = self._ledger.container(container_id)
        except NotFound:
            return
        if isinstance(container.state, Running):
            number = spec_signals.signal_number(container.stop_signal)
            await self._stops.stop(container.id, number, timeout_s)

    async def end(self, container_id: ContainerId) -> None:
        """SIGKILL at once, whatever the state, and wait until it has ended."""
        try:
            container = self._ledger.container(container_id)
        except NotFound:
            return
        if isinstance(container.state, Created | Running):
            try:
                await self._stops.stop(container.id, 0, 0)
            except Unavailable as error:
                await self.lose(container.id, MONITOR_LOST, str(error))
        elif isinstance(container.state, Lost):
            await self._groups.kill(container.cgroup)

    async def _signal(self, container_id: ContainerId, number: int, everything: bool) -> None:
        """Hand a signal to the monitor; a container that ends meanwhile is what was wanted."""
        container = self._ledger.container(container_id)
        if isinstance(container.state, Exited | Lost):
            self._stops.ended(container_id)
            return
        await self._monitors.of(container.sandbox_id).request(
            "kill", timeout_s=self._config.monitor_timeout_s, id=container_id, signal=number, all=everything
        )

    async def _empty(self, container_id: ContainerId) -> None:
        try:
            await self._groups.kill(self._ledger.container(container_id).cgroup)
        except (Internal, NotFound) as error:
            log.warning("a container does not end by SIGKILL", container=container_id, cause=str(error))

    # ---------------------------------------------------------------- remove

    async def remove(self, container_id: str) -> None:
        """End it if need be and forget it, its files but not its log. A missing container is fine."""
        try:
            container = self._ledger.container(container_id)
        except NotFound:
            return
        await self.end(container.id)
        async with self._ledger.lock(container.id):
            try:
                container = self._ledger.container(container.id)
            except NotFound:
                return  # another call was faster
            trace("remove: ended")
            await self._forget_in_monitor(container)
            trace("remove: monitor has forgotten")
            await self._leave_resources(container)
            await self._run_last_hooks(container)
            self._discard_files(container)
            trace("remove: files gone")
            await self._ledger.drop_container(container)
        trace("remove: container forgotten")
        self.execs.forget(container.id)
        self._publish(container, EventKind.DELETED)
        await self._images.collect()

    # --------------------------------------------------------- log and exec

    async def reopen_log(self, container_id: str) -> None:
        """Let go of a log file that was rotated away and begin a new one."""
        container = self._ledger.container(container_id)
        _check_running(container)
        monitor = self._monitors.of(container.sandbox_id)
        try:
            await monitor.request("reopen", timeout_s=self._config.monitor_timeout_s, id=container.id)
        except Internal as error:
            raise Internal(
                f"the log of container {container.id} can't be opened anew: {error}",
                hint=f"only a file, or nothing, may be at {container.log_path}",
            ) from error

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: int) -> ExecResult:
        """Run a command in the container and return its output, each stream cut at the configured size.

        Raises DeadlineExceeded when ``timeout_s`` (0: none) has passed; everything that it started is killed then.
        """
        container = self._ledger.container(container_id)
        _check_running(container)
        spec_limits.validate_exec(command)
        prepared = self.execs.prepare(container, command)
        return await self.execs.run(self._monitors.of(container.sandbox_id), prepared, timeout_s)

    def _publish(self, container: Container, kind: EventKind) -> None:
        try:
            sandbox = self._ledger.sandbox(container.sandbox_id)
        except NotFound:
            return
        members = tuple(self._ledger.members(sandbox.id))
        self._events.publish(Event(container.id, kind, self._clock(), sandbox, members))


def ended(event: dict[str, Any], container: Container) -> Exited:
    """What a monitor says of an end, as a state: exact code and times, and the reason in CRI's words.

    A child that was killed for want of memory is the reason of an end with an error, but neither of a success nor of a
    stop by SIGTERM afterwards: those the container has come to by itself.
    """
    code = event["code"]
    if error := event.get("error"):
        return Exited(code, Nanos(0), Nanos(event["finished_at"]), "StartError", error)
    of_oom = event["oom"] and code and (code < _SIGNALLED or code == _SIGNALLED + signal.SIGKILL)
    reason = "OOMKilled" if of_oom else "Completed" if code == 0 else "Error"
    started = event["started_at"] or (container.state.started_at if isinstance(container.state, Running) else 0)
    return Exited(code, Nanos(started), Nanos(event["finished_at"]), reason)


def _check_ready(sandbox: Sandbox) -> None:
    if not isinstance(sandbox.state, Ready):
        raise FailedPrecondition(
            f"pod sandbox {sandbox.id} is not ready ({sandbox.state.reason})", hint="run a new sandbox for the pod"
        )


def _check_running(container: Container) -> None:
    if not isinstance(container.state, Running):
        raise FailedPrecondition(f"container {container.id} is {lifecycle.word(container.state)}, not running")


def _same(existing: Container, config: ContainerConfig) -> ContainerId:
    """A retry of a call whose answer was lost gets the same answer."""
    if isinstance(existing.state, Created) and existing.config == config:
        return existing.id
    meta = config.metadata
    raise AlreadyExists(
        f"container {meta.name} attempt {meta.attempt} exists in this pod as {existing.id}",
        hint="remove it, or use the next attempt",
    )


async def _give_devices(sandbox: Sandbox, devices: dict[str, Any]) -> None:
    """Interfaces that the container is to have; they stay with its pod, also for the next container that asks."""
    if devices and sandbox.attachment is not None:
        names = {name: each["name"] for name, each in devices.items()}
        await network_devices.give(sandbox.attachment.netns_path, names)


def log_notes(answer: dict[str, Any]) -> None:
    """What a monitor tells of hooks that failed where that is no failure of the container."""
    for note in answer.get("notes", ()):
        log.warning("a hook of a container that is gone failed", what=note)


_noted: set[str] = set()


def _log_once(note: str) -> None:
    if note not in _noted:
        _noted.add(note)
        log.warning("something that a container asked for can't be granted and was left out", what=note)
