"""What there is: every sandbox and container in memory, each change recorded before it is told.

The kubelet's configs are stored as they came and decoded again at the start, so fields that this version does not
know survive; the records of our own hold only what the kubelet did not say.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec
import structlog

from cri_py.errors import DataLoss, Internal, InvalidArgument, NotFound
from cri_py.model import (
    Attachment,
    Container,
    ContainerConfig,
    ContainerFilter,
    ContainerId,
    ContainerState,
    Created,
    Exited,
    ImageId,
    LinuxResources,
    Lost,
    Nanos,
    NotReady,
    Ready,
    Running,
    Sandbox,
    SandboxConfig,
    SandboxFilter,
    SandboxId,
    SandboxState,
    User,
)
from cri_py.state.store import Change, Delete, Put, Store

log = structlog.get_logger()
_Object = TypeVar("_Object")
DATABASE: Final = "pods.db"  # below the root
_SANDBOX: Final = "sandbox"
_CONTAINER: Final = "container"
_INT64: Final = range(-(2**63), 2**63)  # what CRI's messages take
_SANDBOX_STATES: Final[Mapping[str, type]] = MappingProxyType({t.__name__: t for t in (Ready, NotReady)})
_CONTAINER_STATES: Final[Mapping[str, type]] = MappingProxyType(
    {t.__name__: t for t in (Created, Running, Exited, Lost)}
)


class Ledger:
    """All sandboxes and containers by id. Values are frozen; a change replaces one, first on disk, then here."""

    def __init__(
        self,
        store: Store,
        decode_sandbox: Callable[[bytes], SandboxConfig],
        decode_container: Callable[[bytes], ContainerConfig],
    ) -> None:
        self._store = store
        self._sandboxes: dict[SandboxId, Sandbox] = {}
        self._containers: dict[ContainerId, Container] = {}
        self._members: defaultdict[SandboxId, set[ContainerId]] = defaultdict(set)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._damaged: list[Put] = []
        self._owed: dict[str, Put] = {}  # by key
        for row in store.load(_SANDBOX):
            sandbox = self._read(row, _read_sandbox, decode_sandbox)
            if sandbox is not None:
                self._sandboxes[sandbox.id] = sandbox
        for row in store.load(_CONTAINER):
            container = self._read(row, _read_container, decode_container)
            if container is not None:
                self._keep(container)

    def _read(self, row: Put, read: Callable[[Put, Any], _Object], decode: Callable[[bytes], Any]) -> _Object | None:
        """What the record says, None if it makes no sense: one bad record must not keep a node's pods from it."""
        try:
            return read(row, decode)
        except Exception as error:
            log.exception("a record is damaged and is set aside", kind=row.kind, key=row.key, cause=repr(error))
            self._damaged.append(row)
            return None

    async def set_aside(self) -> None:
        """Move damaged records out of the way, to be looked at: of kind ``damaged-sandbox``, ``damaged-container``."""
        moves = [(replace(row, kind=f"damaged-{row.kind}"), Delete(row.kind, row.key)) for row in self._damaged]
        if moves:
            await self._commit(*(change for move in moves for change in move))
        self._damaged.clear()

    def lock(self, object_id: str) -> asyncio.Lock:
        """The object's lock. Who holds a sandbox's may take one of its containers', never the reverse."""
        return self._locks[object_id]

    # --------------------------------------------------------------- looking

    def sandboxes(self) -> list[Sandbox]:
        return list(self._sandboxes.values())

    def containers(self) -> list[Container]:
        return list(self._containers.values())

    def sandbox(self, object_id: str) -> Sandbox:
        """By id or unambiguous prefix. Raises NotFound, InvalidArgument."""
        return self._sandboxes[_find(self._sandboxes, object_id, "pod sandbox")]

    def container(self, object_id: str) -> Container:
        """By id or unambiguous prefix. Raises NotFound, InvalidArgument."""
        return self._containers[_find(self._containers, object_id, "container")]

    def members(self, sandbox_id: SandboxId) -> list[Container]:
        """The sandbox's containers, oldest first."""
        found = [self._containers[key] for key in self._members.get(sandbox_id, ())]
        return sorted(found, key=lambda container: container.created_at)

    def select_sandboxes(self, wanted: SandboxFilter) -> list[Sandbox]:
        return [
            sandbox
            for sandbox in self._sandboxes.values()
            if sandbox.id.startswith(wanted.id)
            and (wanted.ready is None or isinstance(sandbox.state, Ready) == wanted.ready)
            and _has_labels(sandbox.config.labels, wanted.labels)
        ]

    def select_containers(self, wanted: ContainerFilter) -> list[Container]:
        return [
            container
            for container in self._containers.values()
            if container.id.startswith(wanted.id)
            and container.sandbox_id.startswith(wanted.sandbox_id)
            and (wanted.state is None or isinstance(container.state, wanted.state))
            and _has_labels(container.config.labels, wanted.labels)
        ]

    # -------------------------------------------------------------- changing

    async def put_sandbox(self, sandbox: Sandbox) -> None:
        """Raises Internal if the disk refuses, but not for the end of a sandbox: see ``_record``."""
        await self._record(_write_sandbox(sandbox), past=isinstance(sandbox.state, NotReady))
        self._sandboxes[sandbox.id] = sandbox

    async def put_container(self, container: Container, *, past: bool = True) -> None:
        """Raises Internal if the disk refuses, but not for what has started or ended: see ``_record``.

        ``past`` is False for a change that can be taken back.
        """
        past = past and isinstance(container.state, Running | Exited | Lost)
        await self._record(_write_container(container), past=past)
        self._keep(container)

    async def _record(self, change: Put, *, past: bool) -> None:
        """What runs runs and what has ended has ended, also on a full disk: else it could not be stopped and removed to
        free it.

        Its record is owed until the next that can be written. A daemon that dies before that finds out again, from the
        monitor or by its absence.
        """
        try:
            await self._commit(change)
        except Internal as error:
            if not past:
                raise
            log.warning("a change is not recorded yet", kind=change.kind, key=change.key, cause=str(error))
            self._owed[change.key] = change

    async def _commit(self, *changes: Change) -> None:
        """Record changes, and before them what is owed."""
        mine = {change.key for change in changes}
        superseded = {key: self._owed.pop(key) for key in mine & self._owed.keys()}
        owed = dict(self._owed)
        try:
            await self._store.commit(*owed.values(), *changes)
        except BaseException:
            self._owed = superseded | self._owed
            raise
        for key, change in owed.items():
            if self._owed.get(key) is change:
                del self._owed[key]

    async def put_all(self, sandboxes: Iterable[Sandbox], containers: Iterable[Container]) -> None:
        """Many in one transaction: what a start finds changed. It has happened, so a full disk keeps no daemon from
        starting that could free it: see ``_record``."""
        sandboxes, containers = list(sandboxes), list(containers)
        changes = [*map(_write_sandbox, sandboxes), *map(_write_container, containers)]
        try:
            if changes:
                await self._commit(*changes)
        except Internal as error:
            log.warning("what has changed is not recorded yet", records=len(changes), cause=str(error))
            self._owed.update((change.key, change) for change in changes)
        self._sandboxes.update((sandbox.id, sandbox) for sandbox in sandboxes)
        for container in containers:
            self._keep(container)

    async def drop_sandbox(self, sandbox_id: SandboxId) -> None:
        await self._commit(Delete(_SANDBOX, sandbox_id))
        self._sandboxes.pop(sandbox_id, None)
        self._members.pop(sandbox_id, None)
        self._locks.pop(sandbox_id, None)

    async def drop_container(self, container: Container) -> None:
        await self._commit(Delete(_CONTAINER, container.id))
        self._containers.pop(container.id, None)
        self._members[container.sandbox_id].discard(container.id)
        self._locks.pop(container.id, None)

    def _keep(self, container: Container) -> None:
        self._containers[container.id] = container
        self._members[container.sandbox_id].add(container.id)


def _find(objects: Mapping[Any, object], wanted: str, kind: str) -> Any:
    if wanted in objects:
        return wanted
    matches = [key for key in objects if key.startswith(wanted)] if wanted else []
    if not matches:
        raise NotFound(f"there is no {kind} {wanted!r}")
    if len(matches) > 1:
        raise InvalidArgument(f"{len(matches)} {kind}s begin with {wanted!r}", hint="give more digits of the id")
    return matches[0]


def _has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())


# ----------------------------------------------------------------- records


def _write_sandbox(sandbox: Sandbox) -> Put:
    body = {
        "handler": sandbox.runtime_handler,
        "created_at": sandbox.created_at,
        "state": _write_state(sandbox.state),
        "attachment": asdict(sandbox.attachment) if sandbox.attachment else None,
        "cgroup": sandbox.cgroup,
        "overhead": _write_resources(sandbox.overhead),
        "resources": _write_resources(sandbox.resources),
        "selinux_level": sandbox.selinux_level,
    }
    return Put(_SANDBOX, sandbox.id, json.dumps(body).encode(), sandbox.config.raw)


def _write_container(container: Container) -> Put:
    body = {
        "sandbox_id": container.sandbox_id,
        "image_id": container.image_id,
        "image_ref": container.image_ref,
        "created_at": container.created_at,
        "state": _write_state(container.state),
        "log_path": container.log_path,
        "cgroup": container.cgroup,
        "user": asdict(container.user) if container.user else None,
        "stop_signal": container.stop_signal,
        "resources": _write_resources(container.resources),
        "volume_images": dict(container.volume_images),
    }
    return Put(_CONTAINER, container.id, json.dumps(body).encode(), container.config.raw)


def _write_state(state: ContainerState | SandboxState) -> dict[str, Any]:
    return {"is": type(state).__name__, **asdict(state)}


class _SandboxBody(msgspec.Struct):
    """What ``_write_sandbox`` writes; reading it checks that every value is of its type."""

    handler: str
    created_at: Nanos
    state: dict[str, Any]
    attachment: Attachment | None
    cgroup: str
    overhead: LinuxResources | None = None
    resources: LinuxResources | None = None
    selinux_level: str = ""


class _ContainerBody(msgspec.Struct):
    """What ``_write_container`` writes."""

    sandbox_id: SandboxId
    image_id: ImageId
    image_ref: str
    created_at: Nanos
    state: dict[str, Any]
    log_path: str
    cgroup: str
    user: User | None
    stop_signal: str
    resources: LinuxResources | None = None
    volume_images: dict[str, ImageId] = {}


def _read_body(row: Put, kind: type[_Object]) -> _Object:
    """The record's own part. Raises ValueError for what is not as it is written: a list call would fail on it."""
    body = json.loads(row.body)
    for number in _numbers(body):
        if number not in _INT64:
            raise ValueError(f"{number} has more than 64 bits")
    return msgspec.convert(body, kind)


def _numbers(body: object) -> Iterator[int]:
    if isinstance(body, int):
        yield body
    for inner in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from _numbers(inner)


def _read_state(body: dict[str, Any], states: Mapping[str, type]) -> Any:
    fields = dict(body)
    return msgspec.convert(fields, states[fields.pop("is")])


def _read_sandbox(row: Put, decode: Callable[[bytes], SandboxConfig]) -> Sandbox:
    body = _read_body(row, _SandboxBody)
    return Sandbox(
        id=SandboxId(row.key),
        config=decode(row.verbatim),
        runtime_handler=body.handler,
        created_at=body.created_at,
        state=_read_state(body.state, _SANDBOX_STATES),
        attachment=body.attachment,
        cgroup=body.cgroup,
        overhead=body.overhead,
        resources=body.resources,
        selinux_level=body.selinux_level,
    )


def _write_resources(resources: LinuxResources | None) -> dict[str, Any] | None:
    return None if resources is None else asdict(replace(resources, unified=dict(resources.unified)))


def _read_container(row: Put, decode: Callable[[bytes], ContainerConfig]) -> Container:
    body = _read_body(row, _ContainerBody)
    config = decode(row.verbatim)
    return Container(
        id=ContainerId(row.key),
        sandbox_id=body.sandbox_id,
        config=config,
        image_id=body.image_id,
        image_ref=body.image_ref,
        created_at=body.created_at,
        state=_read_state(body.state, _CONTAINER_STATES),
        log_path=body.log_path,
        cgroup=body.cgroup,
        user=body.user,
        stop_signal=body.stop_signal,
        resources=body.resources or config.resources,
        volume_images=body.volume_images,
    )


def recorded_images(root: str) -> set[ImageId]:
    """The images that containers need according to the records below ``root``, whose daemon does not run.

    Containers outlive their daemon. Raises DataLoss for a record that can't be read: its container may run, too.
    """
    path = f"{root}/{DATABASE}"
    if not os.path.exists(path):
        return set()
    store = Store(path, durable=False)
    try:
        rows = store.load(_CONTAINER)
    finally:
        store.close()
    found = set[ImageId]()
    for row in rows:
        try:
            body = _read_body(row, _ContainerBody)
        except (ValueError, TypeError, RecursionError) as error:
            said = f"the record of the container {row.key} in {path} is damaged, so nobody knows what it uses: {error}"
            raise DataLoss(said, hint="start the daemon, which sets it aside") from error
        found |= {body.image_id, *body.volume_images.values()}
    return found


def read_user(body: dict[str, Any] | None) -> User | None:
    """A user as monitors tell of it: {uid, gid, groups, home}."""
    if body is None:
        return None
    return User(body["uid"], body["gid"], tuple(body["groups"]), body["home"])
