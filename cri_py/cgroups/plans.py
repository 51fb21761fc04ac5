"""From OCI ``linux.resources`` to the files and values of cgroup v1 and v2: pure, and compared with golden values.

Sources: OCI runtime-spec 1.3, config-linux.md, "Control groups"; the kernel's admin-guide/cgroup-v1 and cgroup-v2.rst.
In the spec 0 and a missing key mean "not asked for", except in ``pids.limit``, and -1 means "no limit".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cri_py.cgroups import devices, io_plans
from cri_py.cgroups.writes import Write
from cri_py.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_PERIOD_US = 100_000  # the kernel's default period of a cpu quota
_WHOLE = ("devices", "unified", "hugepageLimits", "rdma")
_APPLIED = {
    "memory": {"limit", "swap", "reservation"},
    "cpu": {"shares", "quota", "period", "burst", "idle", "cpus", "mems"},
    "pids": {"limit"},
    "blockIO": io_plans.APPLIED,
    "network": {"classID", "priorities"},
}


def cpu_weight(shares: int) -> int:
    """cpu.shares (2 to 262144) as cpu.weight (1 to 10000), so that the defaults 1024 and 100 meet.

    The curve that crun 1.23 and runc 1.3.2 have: 10^((l² + 125·l)/612 − 7/34) with l = log2(shares), rounded up.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def ignored(resources: Mapping[str, Any]) -> tuple[str, ...]:
    """The resources that are asked for and not applied, as ``intelRdt`` or ``memory.swappiness``, in order."""
    names = []
    for section, value in resources.items():
        if section in _APPLIED:
            names += [f"{section}.{key}" for key in value if key not in _APPLIED[section]]
        elif section not in _WHOLE and value:
            names.append(section)
    return tuple(sorted(names))


def _checked_memory(memory: Mapping[str, Any]) -> tuple[int, int]:
    """Limit and limit of memory with swap, in bytes."""
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if swap > 0 and limit <= 0:
        raise InvalidArgument(f"memory.swap {swap} is given without memory.limit", hint="swap counts memory and swap")
    if 0 < swap < limit:
        raise InvalidArgument(f"memory.swap {swap} is below memory.limit {limit}", hint="swap counts memory and swap")
    return limit, swap


# --------------------------------------------------------------- version 1


def v1_writes(resources: Mapping[str, Any]) -> tuple[Write, ...]:
    """The writes into a new group; a file's controller is the part of its name before the first dot."""
    if unified := resources.get("unified"):
        raise InvalidArgument(
            f"unified.{min(unified)} is asked for, which only cgroup v2 has", hint="this node runs cgroup v1"
        )
    return (
        *_v1_cpu(resources.get("cpu") or {}),
        *_v1_memory(resources.get("memory") or {}),
        *_pids(resources.get("pids") or {}),
        *_huge_pages(resources.get("hugepageLimits") or (), "limit_in_bytes"),
        *io_plans.v1_io(resources.get("blockIO") or {}),
        *_rdma(resources.get("rdma") or {}),
        *_v1_network(resources.get("network") or {}),
        *(Write(f"devices.{file}", line) for file, line in devices.v1_lines(resources.get("devices") or ())),
    )


def _v1_cpu(cpu: Mapping[str, Any]) -> Iterator[Write]:
    if shares := cpu.get("shares"):
        yield Write("cpu.shares", str(shares))
    if period := cpu.get("period"):
        yield Write("cpu.cfs_period_us", str(period))
    if quota := cpu.get("quota"):
        yield Write("cpu.cfs_quota_us", str(max(quota, -1)))
    if burst := cpu.get("burst"):  # at most the quota, which therefore comes first
        yield Write("cpu.cfs_burst_us", str(burst))
    if idle := cpu.get("idle"):
        yield Write("cpu.idle", str(idle))
    yield from _cpuset(cpu)


def _cpuset(cpu: Mapping[str, Any]) -> Iterator[Write]:
    for key in ("cpus", "mems"):
        if value := cpu.get(key):
            yield Write(f"cpuset.{key}", value)


def _v1_memory(memory: Mapping[str, Any]) -> Iterator[Write]:
    limit, swap = _checked_memory(memory)
    if limit:
        yield Write("memory.limit_in_bytes", str(max(limit, -1)))
    if swap:  # after the limit, below which the kernel refuses it; the file is there with swap accounting only
        yield Write("memory.memsw.limit_in_bytes", str(max(swap, -1)), optional=True)
    if reservation := memory.get("reservation"):
        yield Write("memory.soft_limit_in_bytes", str(max(reservation, -1)))


def _pids(pids: Mapping[str, Any]) -> Iterator[Write]:
    limit = pids.get("limit")
    if limit is not None:
        yield Write("pids.max", "max" if limit < 0 else str(limit))


def _huge_pages(limits: Sequence[Mapping[str, Any]], ending: str) -> Iterator[Write]:
    """By size. To forbid what the node has not is fine; to grant it is an error that names the file.

    Reservations (rsvd, Linux 5.7) are limited too: what is only reserved by mmap(2) else takes others' pages.
    """
    for each in limits:
        size, limit = each["pageSize"], each["limit"]
        yield Write(f"hugetlb.{size}.{ending}", str(limit), optional=not limit)
        yield Write(f"hugetlb.{size}.rsvd.{ending}", str(limit), optional=True)


def _rdma(rdma: Mapping[str, Mapping[str, int]]) -> Iterator[Write]:
    for device, limits in rdma.items():
        words = {"hca_handle": limits.get("hcaHandles"), "hca_object": limits.get("hcaObjects")}
        asked = [f"{word}={number}" for word, number in words.items() if number is not None]
        if asked:
            yield Write("rdma.max", " ".join((device, *asked)))


def _v1_network(network: Mapping[str, Any]) -> Iterator[Write]:
    if class_id := network.get("classID"):
        yield Write("net_cls.classid", str(class_id))
    for each in network.get("priorities") or ():
        yield Write("net_prio.ifpriomap", f"{each['name']} {each['priority']}")


# --------------------------------------------------------------- version 2


def v2_writes(resources: Mapping[str, Any]) -> tuple[Write, ...]:
    """The writes into a group; ``unified`` comes last and so has the last word."""
    if network := resources.get("network"):
        raise InvalidArgument(
            f"network.{min(network)} is asked for, which only cgroup v1 has", hint="this node runs cgroup v2"
        )
    return (
        *_v2_cpu(resources.get("cpu") or {}),
        *_v2_memory(resources.get("memory") or {}),
        *_pids(resources.get("pids") or {}),
        *_huge_pages(resources.get("hugepageLimits") or (), "max"),
        *io_plans.v2_io(resources.get("blockIO") or {}),
        *_rdma(resources.get("rdma") or {}),
        *_unified(resources.get("unified") or {}),
    )


def _v2_cpu(cpu: Mapping[str, Any]) -> Iterator[Write]:
    if shares := cpu.get("shares"):
        yield Write("cpu.weight", str(cpu_weight(shares)))
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
    if quota or period:
        yield Write("cpu.max", f"{quota if quota > 0 else 'max'} {period or _PERIOD_US}")
    if burst := cpu.get("burst"):
        yield Write("cpu.max.burst", str(burst))
    if idle := cpu.get("idle"):
        yield Write("cpu.idle", str(idle))
    yield from _cpuset(cpu)


def _v2_memory(memory: Mapping[str, Any]) -> Iterator[Write]:
    limit, swap = _checked_memory(memory)
    if limit:
        yield Write("memory.max", _amount(limit))
    if swap:  # version 2 limits swap alone
        yield Write("memory.swap.max", _amount(swap - limit if swap > 0 else swap), optional=True)
    if reservation := memory.get("reservation"):
        yield Write("memory.low", _amount(reservation))


def _amount(value: int) -> str:
    return "max" if value < 0 else str(value)


def _unified(unified: Mapping[str, str]) -> Iterator[Write]:
    for file, text in unified.items():
        if "/" in file or "." not in file or file.startswith("cgroup."):
            raise InvalidArgument(
                f"unified.{file} is not a controller's file", hint="name a file such as memory.high, without folders"
            )
        for line in text.splitlines() or [text]:  # of io.max and its like the kernel takes a device at a time
            yield Write(file, line)
