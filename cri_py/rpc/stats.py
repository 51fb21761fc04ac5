"""Statistics as CRI's messages, joined from encoded parts.

Names, labels and annotations of an object never change while its value lives, so they are encoded once (see
``listing``); the numbers are appended to them, which for protobuf is the same as one message. A list of 100 takes a
third of the time that way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

from cri_py import model
from cri_py.cgroups.readings import Memory, Pressure, Stall, Swap, Usage
from cri_py.pods.stats import ContainerUsage, GroupUsage, SandboxUsage
from cri_py.pods.stats_network import Interface
from cri_py.rpc import answers
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.listing import BATCH, Listing

_T = TypeVar("_T")
_ITEM: Final = b"\x0a"  # field 1, length-delimited: the items of every list, its stream, and the one of a single answer
_LINUX: Final = b"\x12"  # PodSandboxStats.linux = 2
_MEMBER: Final = b"\x2a"  # LinuxPodSandboxStats.containers = 5


class StatsEncoding:
    """Keeps what does not change of each object."""

    def __init__(self) -> None:
        self._containers: Listing[model.Container] = Listing(_container_attributes)
        self._sandboxes: Listing[model.Sandbox] = Listing(_sandbox_attributes)

    def containers(self, found: Iterable[ContainerUsage]) -> bytes:
        """An encoded ListContainerStatsResponse, or ContainerStatsResponse of one."""
        return b"".join([_framed(self._container(each)) for each in found])

    def sandboxes(self, found: Iterable[SandboxUsage]) -> bytes:
        """An encoded ListPodSandboxStatsResponse, or PodSandboxStatsResponse of one."""
        return b"".join([_framed(self._sandbox(each)) for each in found])

    def container_parts(self, found: Sequence[ContainerUsage]) -> Iterator[bytes]:
        """The messages of StreamContainerStats: none is empty (KEP-5825)."""
        return (self.containers(part) for part in _parts(found))

    def sandbox_parts(self, found: Sequence[SandboxUsage]) -> Iterator[bytes]:
        """The messages of StreamPodSandboxStats."""
        return (self.sandboxes(part) for part in _parts(found))

    def _container(self, found: ContainerUsage) -> bytes:
        return self._containers.whole([found.container]) + _container_numbers(found).SerializeToString()

    def _sandbox(self, found: SandboxUsage) -> bytes:
        members = b"".join([_framed(self._container(each), _MEMBER) for each in found.containers])
        linux = _sandbox_numbers(found).SerializeToString() + members
        return self._sandboxes.whole([found.sandbox]) + _framed(linux, _LINUX)


def _parts(found: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (found[start : start + BATCH] for start in range(0, len(found), BATCH))


def _framed(encoded: bytes, tag: bytes = _ITEM) -> bytes:
    """A length-delimited field: tag, length as a varint, content."""
    length, size = len(encoded), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return b"".join((tag, size, encoded))


# ----------------------------------------------------------------- names


def _container_attributes(value: model.Container) -> bytes:
    attributes = pb.ContainerAttributes(
        id=value.id,
        metadata=pb.ContainerMetadata(name=value.config.metadata.name, attempt=value.config.metadata.attempt),
        labels=value.config.labels,
        annotations=value.config.annotations,
    )
    return pb.ContainerStats(attributes=attributes).SerializeToString()


def _sandbox_attributes(value: model.Sandbox) -> bytes:
    attributes = pb.PodSandboxAttributes(
        id=value.id,
        metadata=answers.sandbox_metadata(value.config.metadata),
        labels=value.config.labels,
        annotations=value.config.annotations,
    )
    return pb.PodSandboxStats(attributes=attributes).SerializeToString()


# --------------------------------------------------------------- numbers


def _container_numbers(found: ContainerUsage) -> pb.ContainerStats:
    stats = pb.ContainerStats()
    if found.layer is not None:
        stats.writable_layer.CopyFrom(answers.filesystem(found.layer))
    if found.group is None:
        return stats
    at, usage = found.group.at, found.group.usage
    _tell_cpu(stats.cpu, found.group)
    if usage.memory is not None:
        _tell_memory(stats.memory, at, usage.memory, usage.memory_pressure)
    if usage.swap is not None:
        _tell_swap(stats.swap, at, usage.swap, found.swap_free)
    _tell_io(stats, at, usage)
    return stats


def _sandbox_numbers(found: SandboxUsage) -> pb.LinuxPodSandboxStats:
    stats = pb.LinuxPodSandboxStats()
    if found.group is None:
        return stats
    at, usage = found.group.at, found.group.usage
    _tell_cpu(stats.cpu, found.group)
    if usage.memory is not None:
        _tell_memory(stats.memory, at, usage.memory, usage.memory_pressure)
    _tell_io(stats, at, usage)
    if found.group.processes is not None:
        stats.process.timestamp = at
        stats.process.process_count.value = found.group.processes
    attachment = found.sandbox.attachment
    if found.interfaces is not None and attachment is not None:
        _tell_network(stats.network, at, found.interfaces, attachment.interface)
    return stats


def _tell_cpu(message: pb.CpuUsage, group: GroupUsage) -> None:
    if group.usage.cpu_ns is None:
        return
    message.timestamp = group.at
    message.usage_core_nano_seconds.value = group.usage.cpu_ns
    message.usage_nano_cores.value = group.nano_cores or 0
    _tell_pressure(message, group.usage.cpu_pressure)


def _tell_memory(message: pb.MemoryUsage, at: model.Nanos, memory: Memory, pressure: Pressure | None) -> None:
    """Without a limit nothing can be said of what is available: the node's free memory is not the container's."""
    message.timestamp = at
    message.working_set_bytes.value = memory.working_set
    if memory.limit is not None:
        message.available_bytes.value = max(memory.limit - memory.working_set, 0)
    message.usage_bytes.value = memory.usage
    message.rss_bytes.value = memory.rss
    message.page_faults.value = memory.faults
    message.major_page_faults.value = memory.major_faults
    _tell_pressure(message, pressure)


def _tell_swap(message: pb.SwapUsage, at: model.Nanos, swap: Swap, free: int) -> None:
    """A container can swap as much as its limit leaves, and never more than the node has free."""
    message.timestamp = at
    message.swap_usage_bytes.value = swap.usage
    message.swap_available_bytes.value = free if swap.limit is None else min(max(swap.limit - swap.usage, 0), free)


def _tell_io(message: pb.ContainerStats | pb.LinuxPodSandboxStats, at: model.Nanos, usage: Usage) -> None:
    if usage.io_pressure is not None:
        message.io.timestamp = at
        _tell_pressure(message.io, usage.io_pressure)


def _tell_pressure(message: pb.CpuUsage | pb.MemoryUsage | pb.IoUsage, pressure: Pressure | None) -> None:
    if pressure is not None:
        _tell_stall(message.psi.Some, pressure.some)
        _tell_stall(message.psi.Full, pressure.full)


def _tell_stall(message: pb.PsiData, stall: Stall) -> None:
    message.Total, message.Avg10, message.Avg60, message.Avg300 = stall
    message.SetInParent()


def _tell_network(message: pb.NetworkUsage, at: model.Nanos, found: Iterable[Interface], default: str) -> None:
    message.timestamp = at
    for interface in found:
        into = message.default_interface if interface.name == default else message.interfaces.add()
        into.name = interface.name
        into.rx_bytes.value = interface.rx_bytes
        into.rx_errors.value = interface.rx_errors
        into.tx_bytes.value = interface.tx_bytes
        into.tx_errors.value = interface.tx_errors
