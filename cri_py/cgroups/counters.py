"""All that the kernel counts of a group, of version 1 and 2 as the same values: what monitoring asks for.

``readings`` has the few numbers of CRI's statistics; these are the rest, from files that are opened when they are first
asked for and then stay open with the others of their group. Sources: admin-guide/cgroup-v1/{cpuacct,memory,hugetlb,
blkio-controller,pids}.rst, scheduler/sched-bwc.rst, admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from cri_py.cgroups.plans import cpu_weight
from cri_py.cgroups.readings import V1Group, field, pressure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cri_py.cgroups.readings import Group

_PAGES: Final = "/sys/kernel/mm/hugepages"
_MAX_SHARES: Final = 262144


class DeviceIo(NamedTuple):
    """What a group did on one block device: ``operations`` by the kernel's word for them (Read, Write, Discard …)."""

    device: str  # major:minor
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int
    operations: tuple[tuple[str, int], ...]  # bytes by operation


class HugePages(NamedTuple):
    """Bytes in huge pages of one size, named as the controller names it (2MB); version 2 keeps no maximum."""

    size: str
    usage: int
    max_usage: int | None


class Numbers(NamedTuple):
    """One look at a group; None where this kernel has no such counter, 0 where it counts none.

    Times are ns, amounts bytes. A limit that is not set is 0, and ``quota`` then None.
    """

    cpu_ns: int | None = None
    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    shares: int | None = None
    period_us: int | None = None
    quota_us: int | None = None
    memory: int | None = None
    working_set: int | None = None
    max_memory: int | None = None
    rss: int | None = None
    cache: int | None = None
    mapped_file: int | None = None
    kernel: int | None = None
    swap: int | None = None
    failcnt: int | None = None
    own_faults: int | None = None
    own_major_faults: int | None = None
    faults: int | None = None
    major_faults: int | None = None
    oom_kills: int | None = None
    memory_limit: int | None = None
    reservation: int | None = None
    swap_limit: int | None = None
    threads: int | None = None
    threads_max: int | None = None
    cpu_waiting_ns: int | None = None
    cpu_stalled_ns: int | None = None
    memory_waiting_ns: int | None = None
    memory_stalled_ns: int | None = None
    io_waiting_ns: int | None = None
    io_stalled_ns: int | None = None


class Counters(NamedTuple):
    """``io`` by device, None where the kernel counts none."""

    numbers: Numbers
    io: tuple[DeviceIo, ...] | None = None
    huge_pages: tuple[HugePages, ...] = ()


def count(group: Group, page_sizes: Sequence[str] = ()) -> Counters:
    """Read everything once. Raises KernelError where a file is there and can't be read."""
    if isinstance(group, V1Group):
        pages = _huge_pages(group, page_sizes, "usage_in_bytes", "max_usage_in_bytes")
        return Counters(_version1(group), _v1_io(group), pages)
    return Counters(_version2(group), _v2_io(group), _huge_pages(group, page_sizes, "current", ""))


def huge_page_sizes(directory: str = _PAGES) -> tuple[str, ...]:
    """The sizes that this node has, as the hugetlb controller writes them: 64KB, 2MB, 1GB."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ()  # a kernel without huge pages
    return tuple(_size(number) for number in sorted(int(name[10:-2]) for name in names))  # hugepages-2048kB


def _size(kilobytes: int) -> str:
    if kilobytes >= 1 << 20:
        return f"{kilobytes >> 20}GB"
    return f"{kilobytes >> 10}MB" if kilobytes >= 1 << 10 else f"{kilobytes}KB"


# --------------------------------------------------------------- version 1


def _version1(group: V1Group) -> Numbers:
    cpu, stat = group.read("cpu.stat"), group.read("memory.stat")
    usage, quota = group.number("memory.usage_in_bytes"), group.number("cpu.cfs_quota_us")
    limited = quota is not None and quota > 0
    return Numbers(
        cpu_ns=group.number("cpuacct.usage"),
        cpu_user_ns=group.number("cpuacct.usage_user"),
        cpu_system_ns=group.number("cpuacct.usage_sys"),
        periods=field(cpu, b"nr_periods") if limited else None,
        throttled_periods=field(cpu, b"nr_throttled") if limited else None,
        throttled_ns=field(cpu, b"throttled_time") if limited else None,
        shares=group.number("cpu.shares"),
        period_us=group.number("cpu.cfs_period_us"),
        quota_us=quota if limited else None,
        memory=usage,
        working_set=None if usage is None else max(usage - field(stat, b"total_inactive_file"), 0),
        max_memory=group.number("memory.max_usage_in_bytes"),
        rss=_field(stat, b"total_rss"),
        cache=_field(stat, b"total_cache"),
        mapped_file=_field(stat, b"total_mapped_file"),
        kernel=group.number("memory.kmem.usage_in_bytes"),
        swap=_field(stat, b"total_swap"),
        failcnt=group.number("memory.failcnt"),
        own_faults=_field(stat, b"pgfault"),
        own_major_faults=_field(stat, b"pgmajfault"),
        faults=_field(stat, b"total_pgfault"),
        major_faults=_field(stat, b"total_pgmajfault"),
        oom_kills=_field(group.read("memory.oom_control"), b"oom_kill"),
        memory_limit=_v1_limit(group, "memory.limit_in_bytes"),
        reservation=_v1_limit(group, "memory.soft_limit_in_bytes"),
        swap_limit=_v1_limit(group, "memory.memsw.limit_in_bytes"),
        threads=group.processes(),
        threads_max=_v2_limit(group, "pids.max"),  # the one file that both versions have
    )


def _v1_limit(group: V1Group, file: str) -> int | None:
    """0 for no limit; None where the kernel has not the file."""
    return None if not group.read(file) else group.limit(file) or 0


def _v1_io(group: Group) -> tuple[DeviceIo, ...] | None:
    """From the throttling layer, which counts with every I/O scheduler: lines ``8:0 Read 4096``."""
    amounts = group.read("blkio.throttle.io_service_bytes_recursive")
    if not amounts:
        return None
    counts = _by_device(group.read("blkio.throttle.io_serviced_recursive"))
    found = []
    for device, by_operation in _by_device(amounts).items():
        times = counts.get(device, {})
        found.append(
            DeviceIo(
                device,
                by_operation.get("Read", 0),
                by_operation.get("Write", 0),
                times.get("Read", 0),
                times.get("Write", 0),
                tuple(by_operation.items()),
            )
        )
    return tuple(found)


def _by_device(text: bytes) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in text.decode().splitlines():
        words = line.split()
        if len(words) == 3:  # the last line is the sum of all
            found.setdefault(words[0], {})[words[1]] = int(words[2])
    return found


# --------------------------------------------------------------- version 2


def _version2(group: Group) -> Numbers:
    cpu, stat, events = group.read("cpu.stat"), group.read("memory.stat"), group.read("memory.events")
    usage, (quota, period) = group.number("memory.current"), _bandwidth(group.read("cpu.max"))
    for_cpu, for_memory, for_io = (_pressure(group, resource) for resource in ("cpu", "memory", "io"))
    return Numbers(
        cpu_ns=_microseconds(cpu, b"usage_usec"),
        cpu_user_ns=_microseconds(cpu, b"user_usec"),
        cpu_system_ns=_microseconds(cpu, b"system_usec"),
        periods=field(cpu, b"nr_periods") if quota else None,
        throttled_periods=field(cpu, b"nr_throttled") if quota else None,
        throttled_ns=_microseconds(cpu, b"throttled_usec") if quota else None,
        shares=_shares(group.number("cpu.weight")),
        period_us=period,
        quota_us=quota,
        memory=usage,
        working_set=None if usage is None else max(usage - field(stat, b"inactive_file"), 0),
        max_memory=group.number("memory.peak"),
        rss=_field(stat, b"anon"),
        cache=_field(stat, b"file"),
        mapped_file=_field(stat, b"file_mapped"),
        kernel=_field(stat, b"kernel"),
        swap=group.number("memory.swap.current"),
        failcnt=_field(events, b"max"),
        own_faults=_field(stat, b"pgfault"),
        own_major_faults=_field(stat, b"pgmajfault"),
        faults=_field(stat, b"pgfault"),  # version 2 counts up the tree by itself
        major_faults=_field(stat, b"pgmajfault"),
        oom_kills=_field(events, b"oom_kill"),
        memory_limit=_v2_limit(group, "memory.max"),
        reservation=_v2_limit(group, "memory.low"),
        swap_limit=_v2_limit(group, "memory.swap.max"),
        threads=group.processes(),
        threads_max=_v2_limit(group, "pids.max"),
        cpu_waiting_ns=for_cpu[0],
        cpu_stalled_ns=for_cpu[1],
        memory_waiting_ns=for_memory[0],
        memory_stalled_ns=for_memory[1],
        io_waiting_ns=for_io[0],
        io_stalled_ns=for_io[1],
    )


def _microseconds(stat: bytes, name: bytes) -> int | None:
    return field(stat, name) * 1000 if stat else None


def _bandwidth(text: bytes) -> tuple[int | None, int | None]:
    """Quota and period of cpu.max: ``max 100000`` or ``20000 100000``."""
    if not text:
        return None, None
    quota, period = text.split()
    return None if quota == b"max" else int(quota), int(period)


def _shares(weight: int | None) -> int | None:
    """The smallest cpu.shares that would have given this weight."""
    if weight is None:
        return None
    low, high = 2, _MAX_SHARES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cpu_weight(middle) >= weight else (middle + 1, high)
    return low


def _v2_limit(group: Group, file: str) -> int | None:
    """0 for no limit; None where the kernel has not the file."""
    return None if not group.read(file) else group.number(file) or 0


def _v2_io(group: Group) -> tuple[DeviceIo, ...] | None:
    """Lines ``8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6``; without a line nothing was read or written."""
    if not group.has("io.stat"):
        return None
    found = []
    for line in group.read("io.stat").decode().splitlines():
        device, *pairs = line.split()
        numbers = {name: int(number) for name, _, number in (pair.partition("=") for pair in pairs) if number.isdigit()}
        read, written = numbers.get("rbytes", 0), numbers.get("wbytes", 0)
        operations = (("Read", read), ("Write", written), ("Discard", numbers.get("dbytes", 0)))
        found.append(DeviceIo(device, read, written, numbers.get("rios", 0), numbers.get("wios", 0), operations))
    return tuple(found)


def _pressure(group: Group, resource: str) -> tuple[int | None, int | None]:
    """How long some process waited, and all did, in ns."""
    found = pressure(group.read(f"{resource}.pressure"))
    return (None, None) if found is None else (found.some.total_ns, found.full.total_ns)


# --------------------------------------------------------------------- both


def _field(stat: bytes, name: bytes) -> int | None:
    """None where no line has the name."""
    start = stat.find(b"\n%b " % name) + 1
    if not start and not stat.startswith(b"%b " % name):
        return None
    start += len(name) + 1
    return int(stat[start : stat.index(b"\n", start)])


def _huge_pages(group: Group, page_sizes: Sequence[str], usage: str, most: str) -> tuple[HugePages, ...]:
    found = []
    for size in page_sizes:
        used = group.number(f"hugetlb.{size}.{usage}")
        if used is not None:
            found.append(HugePages(size, used, group.number(f"hugetlb.{size}.{most}") if most else None))
    return tuple(found)
