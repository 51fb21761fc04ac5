"""What monitoring asks of pods and containers, for ListPodSandboxMetrics and /metrics/cadvisor.

A call reads the kernel there and then, on the thread of the statistics and from the files that they keep open. A pod
has the series of its cgroup, with ``container`` "" as cAdvisor has it, and those of its network, with ``container``
POD; a container has those of its cgroup, its layer and its processes. What has ended has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import structlog

from cri_py.cgroups.counters import Counters, Numbers, count, huge_page_sizes
from cri_py.cgroups.readings import Group
from cri_py.errors import KernelError
from cri_py.model import Container, Created, FilesystemUsage, Nanos, Ready, Running, Sandbox
from cri_py.pods import metrics_series as series
from cri_py.pods.ledger import Ledger
from cri_py.pods.metrics_devices import Devices, Filesystem
from cri_py.pods.metrics_processes import opened
from cri_py.pods.metrics_series import Point
from cri_py.pods.stats import Member, Statistics
from cri_py.pods.stats_network import Interface

log = structlog.get_logger()
NETWORK_CONTAINER: Final = "POD"
_FIELDS: Final = tuple(
    (at, series.OF_COUNTERS[name]) for at, name in enumerate(Numbers._fields) if name in series.OF_COUNTERS
)
_NOT_OF_PODS: Final = frozenset((series.OF_COUNTERS["oom_kills"],))
"""Version 1 counts a kill in the victim's own group alone, so that a pod's number would be none of the pod's."""


class Metrics(NamedTuple):
    """The series of one cgroup, or of one network: ``labels`` are the values of BASE_LABELS."""

    id: str  # of the sandbox or container
    labels: tuple[str, ...]
    points: list[Point]


class SandboxMetrics(NamedTuple):
    at: Nanos
    own: tuple[Metrics, ...]
    containers: tuple[Metrics, ...]


class PodMetrics:
    """Reads for whoever asks; nothing is kept but names of devices."""

    def __init__(
        self, *, ledger: Ledger, statistics: Statistics, layers_directory: str, clock: Callable[[], Nanos]
    ) -> None:
        self._ledger = ledger
        self._statistics = statistics
        self._layers_directory = layers_directory
        self._clock = clock
        self._devices = Devices()
        self._page_sizes = huge_page_sizes()

    async def sandboxes(self) -> Sequence[SandboxMetrics]:
        """Of every sandbox that is ready, and its containers that have not ended."""
        found = [each for each in self._ledger.sandboxes() if isinstance(each.state, Ready)]
        return await self._statistics.run(self._read_all, await self._statistics.with_members(found))

    # --------------------------------------------- on the statistics' thread

    def _read_all(self, sandboxes: Sequence[tuple[Sandbox, Sequence[Member]]]) -> list[SandboxMetrics]:
        filesystem = self._devices.filesystem(self._layers_directory)
        return [self._read(sandbox, members, filesystem) for sandbox, members in sandboxes]

    def _read(self, sandbox: Sandbox, members: Sequence[Member], filesystem: Filesystem) -> SandboxMetrics:
        at = self._clock()
        own = [Metrics(sandbox.id, labels_of(sandbox), list(self._of_pod(sandbox, at, filesystem)))]
        interfaces = self._statistics.interfaces(sandbox)
        if interfaces:
            labels = labels_of(sandbox, container=NETWORK_CONTAINER, name=sandbox.id)
            own.append(Metrics(sandbox.id, labels, list(_of_interfaces(interfaces))))
        containers = tuple(
            Metrics(
                container.id,
                labels_of(sandbox, container),
                list(self._of_container(container, layer, at, filesystem)),
            )
            for container, layer in members
            if isinstance(container.state, Created | Running)
        )
        return SandboxMetrics(at, tuple(own), containers)

    def _of_pod(self, sandbox: Sandbox, at: Nanos, filesystem: Filesystem) -> Iterator[Point]:
        for point in self._of_group(self._group_of(sandbox), filesystem):
            if point.series not in _NOT_OF_PODS:
                yield point
        yield Point(series.STARTED, (), sandbox.created_at)
        yield Point(series.LAST_SEEN, (), at)

    def _of_container(
        self, container: Container, layer: FilesystemUsage | None, at: Nanos, filesystem: Filesystem
    ) -> Iterator[Point]:
        group = self._group_of(container)
        yield from self._of_group(group, filesystem)
        yield from _of_processes(group)
        yield from _of_layer(layer, filesystem)
        started = container.state.started_at if isinstance(container.state, Running) else container.created_at
        yield Point(series.STARTED, (), started)
        yield Point(series.LAST_SEEN, (), at)

    def _group_of(self, owner: Sandbox | Container) -> Group:
        return self._statistics.group(owner)

    def _of_group(self, group: Group, filesystem: Filesystem) -> list[Point]:
        """A group that can't be read costs its own numbers; the others' still come."""
        try:
            counters = count(group, self._page_sizes)
        except KernelError as error:
            log.warning("a group's metrics can't be read", cause=str(error))
            return []
        numbers = counters.numbers
        points = [Point(each, (), number) for at, each in _FIELDS if (number := numbers[at]) is not None]
        if numbers.cpu_ns is not None:
            points.append(Point(series.CPU, ("total",), numbers.cpu_ns))
        points += _faults(numbers)
        points += self._io(counters, filesystem)
        for pages in counters.huge_pages:
            points.append(Point(series.HUGE_PAGES, (pages.size,), pages.usage))
            if pages.max_usage is not None:
                points.append(Point(series.MAX_HUGE_PAGES, (pages.size,), pages.max_usage))
        return points

    def _io(self, counters: Counters, filesystem: Filesystem) -> Iterator[Point]:
        """By device; the layers' disk is told too if nothing was read or written there yet: then it is 0."""
        if counters.io is None:
            return
        told = set()
        for io in counters.io:
            name = self._devices.name(io.device)
            if not name:
                continue
            told.add(io.device)
            major, _, minor = io.device.partition(":")
            for operation, number in io.operations:
                yield Point(series.DEVICE_BYTES, (name, major, minor, operation), number)
            yield from _reads_and_writes(name, io.read_bytes, io.reads, io.written_bytes, io.writes)
        if filesystem.disk and filesystem.disk not in told:
            yield from _reads_and_writes(self._devices.name(filesystem.disk), 0, 0, 0, 0)


def labels_of(
    sandbox: Sandbox, owner: Container | None = None, *, container: str = "", name: str = ""
) -> tuple[str, ...]:
    """The values of BASE_LABELS; of a pod's own group ``container``, ``image`` and ``name`` are empty."""
    metadata = sandbox.config.metadata
    if owner is None:
        return container, sandbox.cgroup, "", name, metadata.namespace, metadata.name
    image = owner.config.image.user_specified_image or owner.config.image.image
    return owner.config.metadata.name, owner.cgroup, image, owner.id, metadata.namespace, metadata.name


def _faults(numbers: Numbers) -> Iterator[Point]:
    for failure, scope, number in (
        ("pgfault", "container", numbers.own_faults),
        ("pgfault", "hierarchy", numbers.faults),
        ("pgmajfault", "container", numbers.own_major_faults),
        ("pgmajfault", "hierarchy", numbers.major_faults),
    ):
        if number is not None:
            yield Point(series.FAILURES, (failure, scope), number)


def _reads_and_writes(device: str, read_bytes: int, reads: int, written_bytes: int, writes: int) -> Iterator[Point]:
    of = (device,)
    yield Point(series.READ_BYTES, of, read_bytes)
    yield Point(series.READS, of, reads)
    yield Point(series.WRITTEN_BYTES, of, written_bytes)
    yield Point(series.WRITES, of, writes)


def _of_processes(group: Group) -> Iterator[Point]:
    try:
        pids = group.members()
    except KernelError as error:
        log.warning("a group's processes can't be read", cause=str(error))
        return
    if pids is None:
        return
    found = opened(pids)
    yield Point(series.PROCESSES, (), found.processes)
    for each, number in ((series.DESCRIPTORS, found.descriptors), (series.SOCKETS, found.sockets)):
        if number is not None:
            yield Point(each, (), number)
    if found.soft_limit is not None:
        yield Point(series.ULIMITS, ("max_open_files",), found.soft_limit)


def _of_layer(layer: FilesystemUsage | None, filesystem: Filesystem) -> Iterator[Point]:
    device = (filesystem.device,)
    if layer is not None:
        yield Point(series.LAYER_BYTES, device, layer.used_bytes)
    yield Point(series.FS_BYTES, device, filesystem.size)
    yield Point(series.FS_INODES, device, filesystem.inodes)
    yield Point(series.FS_FREE_INODES, device, filesystem.free_inodes)


def _of_interfaces(interfaces: Sequence[Interface]) -> Iterator[Point]:
    for interface in interfaces:
        of = (interface.name,)
        for name, each in series.NETWORK.items():
            yield Point(each, of, getattr(interface, name))
