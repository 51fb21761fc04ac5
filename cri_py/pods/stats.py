"""What pods and containers use, for ContainerStats, PodSandboxStats and their lists and streams.

A call reads the kernel's counters there and then, on a thread of its own, from files that are kept open; nothing is
cached. Two things can't be read when somebody asks: a rate, for which every group's CPU time is noted in the
background, and the size of a layer (see ``stats_layers``).
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from cri_py.cgroups import Cgroups
from cri_py.cgroups.readings import Group, Room, Usage, open_group
from cri_py.errors import DataLoss, KernelError
from cri_py.images.flights import on_thread
from cri_py.kernel import procfs
from cri_py.model import (
    Container,
    ContainerFilter,
    ContainerId,
    Created,
    Event,
    EventKind,
    Exited,
    FilesystemUsage,
    Lost,
    Nanos,
    Ready,
    Running,
    Sandbox,
    SandboxFilter,
    SandboxId,
)
from cri_py.pods.events import Events
from cri_py.pods.ledger import Ledger
from cri_py.pods.stats_layers import Layers
from cri_py.pods.stats_network import HolderNetwork, Interface
from cri_py.pods.stats_rates import Rate, Sample

log = structlog.get_logger()
_T = TypeVar("_T")
_MEMINFO: Final = "/proc/meminfo"
_SOON_S: Final = 1.0
_SHARE_OF_FILES: Final = 0.75
_YOUNG_NS: Final = 5_000_000_000
_KEPT_S: Final = 300.0  # longer than anybody who asks again and again waits between two calls


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """A cgroup's counters at a time; ``processes`` counts threads too, as the kernel does."""

    at: Nanos
    usage: Usage
    nano_cores: int | None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """Of a container that has no cgroup any more, ``group`` is None."""

    container: Container
    group: GroupUsage | None
    layer: FilesystemUsage | None
    swap_free: int


@dataclass(frozen=True, slots=True)
class SandboxUsage:
    """``interfaces`` are None on the host's network, which is not the pod's; ``group`` is None of a stopped pod."""

    sandbox: Sandbox
    group: GroupUsage | None
    interfaces: tuple[Interface, ...] | None
    containers: tuple[ContainerUsage, ...]
    swap_free: int


Member = tuple[Container, FilesystemUsage | None]
"""A container with the last count of its layer."""


class _Watched:
    """One group's open files and its rate."""

    def __init__(self, group: Group, birth: Sample) -> None:
        self.group = group
        self.rate = Rate(birth)

    def read(self, at: Nanos, owner: Sandbox | Container) -> GroupUsage:
        usage = self.group.usage()
        processes = self.group.processes() if isinstance(owner, Sandbox) else None
        if usage.cpu_ns is None:
            return GroupUsage(at, usage, None, processes)
        ended = isinstance(owner.state, Exited | Lost)
        rate = 0 if ended else self.rate.nano_cores(Sample(time.monotonic_ns(), usage.cpu_ns))
        return GroupUsage(at, usage, rate, processes)

    def note(self) -> None:
        cpu_ns = self.group.cpu_ns()
        if cpu_ns is not None:
            self.rate.note(Sample(time.monotonic_ns(), cpu_ns))


class Statistics:
    """All readings of one daemon. What is kept open goes with the sandbox or container it belongs to."""

    def __init__(
        self,
        *,
        cgroups: Cgroups,
        ledger: Ledger,
        events: Events,
        layers: Layers,
        clock: Callable[[], Nanos],
        period_s: float,
    ) -> None:
        self._cgroups = cgroups
        self._ledger = ledger
        self._events = events
        self._layers = layers
        self._clock = clock
        self._period_s = period_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stats")
        self._watched: dict[str, _Watched] = {}  # by id; this and the next belong to the thread
        self._networks: dict[str, HolderNetwork] = {}
        # A node's usual limit is never met; where it is lower, other parts of the daemon need files as well.
        self._room = Room(int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _SHARE_OF_FILES))
        self._lent_at = 0.0  # when files were last opened for others, by time.monotonic(); 0: none are open
        self._background: list[asyncio.Task[None]] = []
        self._young: dict[SandboxId, Sandbox] = {}
        self._stopping = False

    # ---------------------------------------------------------------- asking

    async def container(self, container_id: str) -> ContainerUsage:
        """Raises NotFound."""
        found = await self._with_layers([self._ledger.container(container_id)])
        return (await self.run(self._read_containers, found))[0]

    async def containers(self, wanted: ContainerFilter) -> Sequence[ContainerUsage]:
        """Of every state: a created one has its waiting init, an ended one what it used in all."""
        found = await self._with_layers(self._ledger.select_containers(wanted))
        return await self.run(self._read_containers, found)

    async def sandbox(self, sandbox_id: str) -> SandboxUsage:
        """Of a stopped one only what its containers wrote is left. Raises NotFound."""
        found = await self.with_members([self._ledger.sandbox(sandbox_id)])
        return (await self.run(self._read_sandboxes, found))[0]

    async def sandboxes(self, wanted: SandboxFilter) -> Sequence[SandboxUsage]:
        """Of those that are ready: no other has anything to read."""
        found = [each for each in self._ledger.select_sandboxes(wanted) if isinstance(each.state, Ready)]
        return await self.run(self._read_sandboxes, await self.with_members(found))

    async def with_members(self, sandboxes: Iterable[Sandbox]) -> list[tuple[Sandbox, list[Member]]]:
        """Each with its containers, and what is known of their layers."""
        members = [(sandbox, self._ledger.members(sandbox.id)) for sandbox in sandboxes]
        await self._layers.first(container for _, containers in members for container in containers)
        return [(sandbox, [(each, self._layers.of(each)) for each in containers]) for sandbox, containers in members]

    async def _with_layers(self, containers: Sequence[Container]) -> list[Member]:
        await self._layers.first(containers)
        return [(container, self._layers.of(container)) for container in containers]

    async def run(self, call: Callable[..., _T], *arguments: object) -> _T:
        """Have ``call`` look at groups, on the thread that they belong to.

        Calls run in the order in which they are made here, so none meets what was forgotten before it.
        """
        return await on_thread(self._thread, call, *arguments)

    # ------------------------------------------------------------ background

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin with what must be done while nobody asks."""
        work = (self._sample(), self._follow_events(), self._layers.run())
        self._background = [tasks.create_task(each) for each in work]

    async def _sample(self) -> None:
        """Note every living group's CPU time once in a period, and let go of what no record names."""
        while True:
            sandboxes = [each for each in self._ledger.sandboxes() if isinstance(each.state, Ready)]
            containers = self._ledger.containers()
            known: set[str] = {*(each.id for each in sandboxes), *(each.id for each in containers)}
            living = [each for each in containers if isinstance(each.state, Created | Running)]
            await self.run(self._note, [*sandboxes, *living], known)
            await asyncio.sleep(self._period_s)

    async def _follow_events(self) -> None:
        """Begin with what is made, and let go of what is gone; what is missed here, ``_sample`` finds by itself."""
        while True:
            try:
                async with self._events.subscribe() as events:
                    async for event in events:
                        await self._follow(event)
            except DataLoss as error:
                log.warning("statistics missed events", cause=str(error))

    async def _follow(self, event: Event) -> None:
        sandbox = event.sandbox
        if sandbox is not None and sandbox.id == event.container_id:
            if event.kind is EventKind.CREATED:
                self._expect(sandbox)
            elif event.kind in (EventKind.STOPPED, EventKind.DELETED):
                await self._let_go(sandbox.id)
        elif event.kind is EventKind.DELETED:
            self._layers.forget(ContainerId(event.container_id))
            await self._let_go(event.container_id)

    def _expect(self, sandbox: Sandbox) -> None:
        """Note a new one's CPU time within a second, together with others that come meanwhile."""
        self._young[sandbox.id] = sandbox
        if len(self._young) == 1:
            asyncio.get_running_loop().call_later(_SOON_S, self._note_young)

    def _note_young(self) -> None:
        young = [*self._young.values()]
        self._young.clear()
        if young and not self._stopping:
            self._thread.submit(self._note, young)

    async def _let_go(self, object_id: str) -> None:
        self._young.pop(SandboxId(object_id), None)
        if object_id in self._watched or object_id in self._networks:
            await self.run(self._forget, object_id)

    async def stop(self) -> None:
        """End the background and let go of all files."""
        self._stopping = True
        self._layers.close()
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        await self.run(self._forget_all)
        self._thread.shutdown(wait=True)

    # --------------------------------------------------------- on its thread

    def _read_containers(self, members: Sequence[Member]) -> list[ContainerUsage]:
        free = _swap_free()
        return [self._read_container(member, free) for member in members]

    def _read_container(self, member: Member, swap_free: int) -> ContainerUsage:
        container, layer = member
        return ContainerUsage(container, self._read_group(container), layer, swap_free)

    def _read_sandboxes(self, sandboxes: Sequence[tuple[Sandbox, Sequence[Member]]]) -> list[SandboxUsage]:
        free = _swap_free()
        return [
            SandboxUsage(
                sandbox,
                self._read_group(sandbox) if isinstance(sandbox.state, Ready) else None,
                self.interfaces(sandbox),
                tuple(self._read_container(member, free) for member in members),
                free,
            )
            for sandbox, members in sandboxes
        ]

    def _read_group(self, owner: Sandbox | Container) -> GroupUsage | None:
        """None for a group that is gone, and for one that can't be read: the others' numbers still come."""
        try:
            read = self._watch(owner).read(self._clock(), owner)
        except KernelError as error:
            log.warning("a group's statistics can't be read", id=owner.id, cgroup=owner.cgroup, cause=str(error))
            return None
        return None if read.usage == Usage() else read

    def interfaces(self, sandbox: Sandbox) -> tuple[Interface, ...] | None:
        """None on the host's network, and where they can't be read. To be called in ``run`` alone."""
        if sandbox.attachment is None or not isinstance(sandbox.state, Ready):
            return None
        try:
            network = self._networks.get(sandbox.id)
            if network is None:
                network = self._networks[sandbox.id] = HolderNetwork(sandbox.state.holder_pid)
            return network.interfaces()
        except OSError as error:
            log.warning("a pod's network statistics can't be read", id=sandbox.id, cause=str(error))
            return None

    def group(self, owner: Sandbox | Container) -> Group:
        """The open files of what is not removed yet; they stay the statistics'. To be called in ``run`` alone.

        What is opened beyond the statistics' own files is closed when nobody has asked for some minutes: each open
        file of a group costs the kernel a page.
        """
        self._lent_at = time.monotonic()
        return self._watch(owner).group

    def _note(self, owners: Sequence[Sandbox | Container], known: Set[str] | None = None) -> None:
        for owner in owners:
            try:
                self._watch(owner).note()
            except KernelError as error:
                log.warning("a group's CPU time can't be noted", id=owner.id, cgroup=owner.cgroup, cause=str(error))
        if known is not None:
            if self._lent_at and time.monotonic() - self._lent_at > _KEPT_S:
                self._lent_at = 0.0
                for watched in self._watched.values():
                    watched.group.close()
            for object_id in (self._watched.keys() | self._networks.keys()) - known:
                self._forget(object_id)

    def _watch(self, owner: Sandbox | Container) -> _Watched:
        """Its open files; opened for the first time, its rate begins.

        A container's group is as old as the container. A pod's may be the kubelet's and older than the sandbox: its
        first sample is taken when the sandbox is made.
        """
        watched = self._watched.get(owner.id)
        if watched is None:
            group = open_group(self._cgroups, owner.cgroup, self._room)
            age = max(self._clock() - owner.created_at, 0)
            used = (group.cpu_ns() or 0) if isinstance(owner, Sandbox) and age < _YOUNG_NS else 0
            watched = self._watched[owner.id] = _Watched(group, Sample(time.monotonic_ns() - age, used))
        return watched

    def _forget(self, object_id: str) -> None:
        if watched := self._watched.pop(object_id, None):
            watched.group.close()
        if network := self._networks.pop(object_id, None):
            network.close()

    def _forget_all(self) -> None:
        for object_id in [*self._watched, *self._networks]:
            self._forget(object_id)


def _swap_free() -> int:
    """Bytes of the node's swap that are free; 0 on a node without swap."""
    for line in procfs.read(_MEMINFO).splitlines():
        if line.startswith(b"SwapFree:"):
            return int(line.split()[1]) * 1024
    return 0
