"""The series that monitoring knows from cAdvisor: their names, what they say, their labels, in one table. Pure.

The names and labels are cAdvisor's (its docs/storage/prometheus.md) as the kubelet passes them on, so that rules and
dashboards made for it go on working. What the kernel can't tell is a series without a value, never a 0.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

BASE_LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")
"""What every series has, in this order; its own labels follow."""


class Kind(Enum):
    COUNTER = 0
    GAUGE = 1


class Series(NamedTuple):
    """``labels`` beside the common ones. ``nanos``: values are ns, and told in seconds."""

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...] = ()
    nanos: bool = False


class Point(NamedTuple):
    """One number; ``values`` belong to the labels that are the series' own."""

    series: Series
    values: tuple[str, ...]
    number: int


def _counter(name: str, text: str, *labels: str, nanos: bool = False) -> Series:
    return Series(f"container_{name}", text, Kind.COUNTER, labels, nanos)


def _gauge(name: str, text: str, *labels: str, nanos: bool = False) -> Series:
    return Series(f"container_{name}", text, Kind.GAUGE, labels, nanos)


# ------------------------------------------------- one number of a group each

CPU: Final = _counter("cpu_usage_seconds_total", "CPU time used", "cpu", nanos=True)

OF_COUNTERS: Final = {
    "cpu_user_ns": _counter("cpu_user_seconds_total", "CPU time used in user mode", nanos=True),
    "cpu_system_ns": _counter("cpu_system_seconds_total", "CPU time used in the kernel", nanos=True),
    "periods": _counter("cpu_cfs_periods_total", "Periods of the CPU quota that had something to run"),
    "throttled_periods": _counter("cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up"),
    "throttled_ns": _counter(
        "cpu_cfs_throttled_seconds_total", "How long the CPU quota held processes back", nanos=True
    ),
    "shares": _gauge("spec_cpu_shares", "CPU shares"),
    "period_us": _gauge("spec_cpu_period", "Period of the CPU quota in microseconds"),
    "quota_us": _gauge("spec_cpu_quota", "CPU quota in microseconds of CPU time a period"),
    "memory": _gauge("memory_usage_bytes", "Memory in use, with caches"),
    "working_set": _gauge("memory_working_set_bytes", "Memory in use less files not used of late"),
    "max_memory": _gauge("memory_max_usage_bytes", "The most memory that was in use"),
    "rss": _gauge("memory_rss", "Anonymous memory, swap caches and transparent huge pages in bytes"),
    "cache": _gauge("memory_cache", "Page cache in bytes"),
    "mapped_file": _gauge("memory_mapped_file", "Files mapped into memory in bytes"),
    "kernel": _gauge("memory_kernel_usage", "Kernel memory in bytes"),
    "swap": _gauge("memory_swap", "Swap in use in bytes"),
    "failcnt": _counter("memory_failcnt", "How often the memory limit was hit"),
    "memory_limit": _gauge("spec_memory_limit_bytes", "Memory limit, 0 for none"),
    "reservation": _gauge("spec_memory_reservation_limit_bytes", "Memory that is reclaimed last, 0 for none"),
    "swap_limit": _gauge(
        "spec_memory_swap_limit_bytes", "Limit of swap (version 1: of memory and swap together), 0 for none"
    ),
    "oom_kills": _counter("oom_events_total", "Processes that were killed for want of memory"),
    "threads": _gauge("threads", "Threads"),
    "threads_max": _gauge("threads_max", "Limit of threads, 0 for none"),
    "cpu_waiting_ns": _counter(
        "pressure_cpu_waiting_seconds_total", "How long some process waited for a CPU", nanos=True
    ),
    "cpu_stalled_ns": _counter("pressure_cpu_stalled_seconds_total", "How long all waited for a CPU", nanos=True),
    "memory_waiting_ns": _counter(
        "pressure_memory_waiting_seconds_total", "How long some process waited for memory", nanos=True
    ),
    "memory_stalled_ns": _counter(
        "pressure_memory_stalled_seconds_total", "How long all waited for memory", nanos=True
    ),
    "io_waiting_ns": _counter("pressure_io_waiting_seconds_total", "How long some process waited for I/O", nanos=True),
    "io_stalled_ns": _counter("pressure_io_stalled_seconds_total", "How long all waited for I/O", nanos=True),
}
"""By the field of ``cri_py.cgroups.counters.Numbers``."""

# ---------------------------------------------------------- several of a group

FAILURES: Final = _counter("memory_failures_total", "Page faults", "failure_type", "scope")
HUGE_PAGES: Final = _gauge("hugetlb_usage_bytes", "Huge pages in use", "pagesize")
MAX_HUGE_PAGES: Final = _gauge("hugetlb_max_usage_bytes", "The most huge pages that were in use", "pagesize")
DEVICE_BYTES: Final = _counter(
    "blkio_device_usage_total", "Bytes of block I/O by operation", "device", "major", "minor", "operation"
)
READ_BYTES: Final = _counter("fs_reads_bytes_total", "Bytes read from a device", "device")
READS: Final = _counter("fs_reads_total", "Reads from a device", "device")
WRITTEN_BYTES: Final = _counter("fs_writes_bytes_total", "Bytes written to a device", "device")
WRITES: Final = _counter("fs_writes_total", "Writes to a device", "device")

# ------------------------------------------------------------- of other sources

LAYER_BYTES: Final = _gauge("fs_usage_bytes", "What the container wrote into its own layer", "device")
FS_BYTES: Final = _gauge("fs_limit_bytes", "Size of the filesystem that holds the layer", "device")
FS_INODES: Final = _gauge("fs_inodes_total", "Inodes of the filesystem that holds the layer", "device")
FS_FREE_INODES: Final = _gauge("fs_inodes_free", "Free inodes of the filesystem that holds the layer", "device")
DESCRIPTORS: Final = _gauge("file_descriptors", "Open descriptors of all processes")
SOCKETS: Final = _gauge("sockets", "Open sockets of all processes")
PROCESSES: Final = _gauge("processes", "Processes")
ULIMITS: Final = _gauge("ulimits_soft", "Soft limits of the first process, -1 for none", "ulimit")
LAST_SEEN: Final = _gauge("last_seen", "When these numbers were read, Unix time in seconds", nanos=True)
STARTED: Final = _gauge("start_time_seconds", "When it was started, Unix time in seconds", nanos=True)

NETWORK: Final = {
    f"{way}_{counter}": _counter(
        f"network_{word}_{name}_total", f"{text} {word}d".replace("transmitd", "transmitted"), "interface"
    )
    for way, word in (("rx", "receive"), ("tx", "transmit"))
    for counter, name, text in (
        ("bytes", "bytes", "Bytes"),
        ("packets", "packets", "Packets"),
        ("errors", "errors", "Errors of packets"),
        ("dropped", "packets_dropped", "Packets dropped while they were"),
    )
}
"""By the field of ``cri_py.pods.stats_network.Interface``."""

ALL: Final = tuple(
    sorted(
        (
            *(CPU, FAILURES, HUGE_PAGES, MAX_HUGE_PAGES, DEVICE_BYTES, READ_BYTES, READS, WRITTEN_BYTES, WRITES),
            *(LAYER_BYTES, FS_BYTES, FS_INODES, FS_FREE_INODES, DESCRIPTORS, SOCKETS, PROCESSES, ULIMITS),
            *(LAST_SEEN, STARTED),
            *OF_COUNTERS.values(),
            *NETWORK.values(),
        )
    )
)
