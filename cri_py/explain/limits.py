"""What a container may use up: the sections on its cgroup and on what is set on the process itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from cri_py.cgroups import cpu_weight
from cri_py.cgroups.limits import Reading, is_unlimited
from cri_py.explain import words
from cri_py.explain.facts import Fact, Json, Origin, Section, Seen, Subject
from cri_py.explain.origins import RESOURCES, look_up, of_container, of_sandbox
from cri_py.kernel.isolation import ResourceLimit

_PAGE: Final = 4096
_PERIOD_US: Final = 100_000
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
# File of a cgroup: field of LinuxContainerResources, and what it means.
_FILES: Final = {
    "cpu.shares": ("cpu_shares", "weight against its siblings when all want the CPU; the default is 1024"),
    "cpu.weight": ("cpu_shares", "weight against its siblings when all want the CPU; the default is 100"),
    "cpu.cfs_quota_us": ("cpu_quota", "µs of CPU that it gets in each period, over all CPUs; then it waits"),
    "cpu.cfs_period_us": ("cpu_period", "length of a period in µs"),
    "cpu.max": ("cpu_quota", "µs of CPU that it gets in each period, and the period; then it waits"),
    "cpuset.cpus": ("cpuset_cpus", "the CPUs that it runs on"),
    "cpuset.mems": ("cpuset_mems", "the memory nodes that its pages come from"),
    "cpuset.cpus.effective": ("cpuset_cpus", "the CPUs that it runs on"),
    "cpuset.mems.effective": ("cpuset_mems", "the memory nodes that its pages come from"),
    "memory.limit_in_bytes": ("memory_limit_in_bytes", "who needs more, and nothing can be reclaimed, is killed"),
    "memory.max": ("memory_limit_in_bytes", "who needs more, and nothing can be reclaimed, is killed"),
    "memory.memsw.limit_in_bytes": ("memory_swap_limit_in_bytes", "memory and swap together"),
    "memory.swap.max": ("memory_swap_limit_in_bytes", "swap alone: what was asked for, less memory.max"),
    "memory.soft_limit_in_bytes": ("", "above it the kernel reclaims from here first"),
    "memory.high": ("", "above it the kernel slows it down and reclaims"),
    "memory.low": ("", "below it nothing is reclaimed while others have something to give"),
    "pids.max": ("", "processes and threads; a fork bomb ends here. The kubelet sets it on the pod's group"),
    "freezer.state": ("", "FROZEN: none of its processes gets to run"),
    "cgroup.freeze": ("", "1: none of its processes gets to run"),
}
_BYTES: Final = ("memory.", "hugetlb.")


def cgroup(subject: Subject, seen: Seen) -> Section:
    order = [*_FILES, *(reading.file for reading in seen.cgroups)]
    found = sorted(seen.cgroups, key=lambda reading: order.index(reading.file))
    facts = [group(subject), *(_reading(subject, reading) for reading in found if reading.file != "devices.list")]
    return words.section("cgroup", facts)


def group(subject: Subject) -> Fact:
    origin = of_sandbox(subject.asked, "linux.cgroup_parent")
    return Fact("path", subject.cgroup, subject.cgroup, origin, means="below the root of every hierarchy")


def _reading(subject: Subject, reading: Reading) -> Fact:
    field, means = _FILES.get(reading.file, ("", ""))
    unlimited = is_unlimited(reading.value) and not reading.file.startswith("cpuset")
    value = {
        "value": reading.value,
        "unlimited": unlimited,
        "used": int(reading.used) if reading.used.isdigit() else None,
        "above": [above._asdict() for above in reading.above],
    }
    return Fact(
        name=reading.file,
        value=value,
        text=_reading_text(reading, unlimited=unlimited),
        origin=reading_origin(subject, reading.file, field),
        read=f"{reading.directory}/{reading.file}",
        means=means,
        differs=_difference(subject.resources, reading),
    )


def reading_origin(subject: Subject, file: str, field: str) -> Origin:
    """Files of version 2 may be asked for by their own names, which have the last word."""
    unified = look_up(subject.resources, "unified", {})
    if file in unified:
        return Origin("container", f"{RESOURCES}.unified[{file}]", unified[file])
    if file.startswith("hugetlb."):
        size = file.split(".")[1]
        limits = look_up(subject.resources, "hugepage_limits", ())
        asked = next((int(each.get("limit", 0)) for each in limits if each.get("page_size") == size), None)
        return Origin("container", f"{RESOURCES}.hugepage_limits[{size}]", asked)
    if not field:
        return Origin("runtime")
    asked = look_up(subject.resources, field)
    if field == "memory_swap_limit_in_bytes" and not asked:  # a limit without one for swap is one for both
        limit = look_up(subject.resources, "memory_limit_in_bytes")
        return Origin("container", f"{RESOURCES}.memory_limit_in_bytes", limit)
    return Origin("container", f"{RESOURCES}.{field}", asked)


def _reading_text(reading: Reading, *, unlimited: bool) -> str:
    told = "no limit here" if unlimited else _amount(reading.file, reading.value)
    if reading.used.isdigit():
        told += f", {_amount(reading.file, reading.used)} used"
    if reading.above:
        nearest = ", ".join(f"{_amount(reading.file, above.value)} by {above.directory}" for above in reading.above)
        told += f"; above: {nearest}"
    return told


def _amount(file: str, value: str) -> str:
    if not file.startswith(_BYTES) or not value.isdigit():
        return value or "empty"
    amount, units = float(value), iter(_UNITS)
    unit = next(units)
    while amount >= 1024 and (larger := next(units, "")):
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"


def _difference(resources: Json, reading: Reading) -> str:
    expected = _expected(resources).get(reading.file)
    if expected is None or expected == reading.value or (expected == "unlimited" and is_unlimited(reading.value)):
        return ""
    return f"asked for is {expected}"


def _expected(resources: Json) -> dict[str, str]:
    """What files should say; where nothing is asked for, nothing is expected."""

    def asked(field: str) -> int:
        return int(look_up(resources, field, 0))

    limit, quota, period = asked("memory_limit_in_bytes"), asked("cpu_quota"), asked("cpu_period")
    swap = asked("memory_swap_limit_in_bytes") or limit
    found = dict(_sizes(limit, swap))
    if shares := asked("cpu_shares"):
        found |= {"cpu.shares": str(max(shares, 2)), "cpu.weight": str(cpu_weight(shares))}
    if quota:
        found["cpu.cfs_quota_us"] = str(max(quota, -1))
    if period:
        found["cpu.cfs_period_us"] = str(period)
    if quota or period:
        found["cpu.max"] = f"{quota if quota > 0 else 'max'} {period or _PERIOD_US}"
    return found | dict(look_up(resources, "unified", {}))


def _sizes(limit: int, swap: int) -> Iterator[tuple[str, str]]:
    if limit:
        for file in ("memory.limit_in_bytes", "memory.max"):
            yield file, _whole_pages(limit)
    if swap:
        yield "memory.memsw.limit_in_bytes", _whole_pages(swap)
        yield "memory.swap.max", _whole_pages(swap - limit if swap > 0 else swap)


def _whole_pages(size: int) -> str:
    return "unlimited" if size < 0 else str(size // _PAGE * _PAGE)


# ------------------------------------------------------------ the process


def process(subject: Subject, seen: Seen) -> Section:
    facts = [_oom(subject, seen)]
    facts += [_limit(subject, seen.pid, limit) for limit in sorted(seen.limits, key=lambda limit: limit.soft < 0)]
    return words.section("process", facts)


def _oom(subject: Subject, seen: Seen) -> Fact:
    have = seen.oom_score_adj
    asked = look_up(subject.resources, "oom_score_adj", 0)
    return Fact(
        name="oom_score_adj",
        value=have,
        text=str(have),
        origin=of_container(subject.asked, f"{RESOURCES}.oom_score_adj", 0),
        read=f"/proc/{seen.pid}/oom_score_adj",
        means="-1000 is never killed, 1000 goes first",
        differs="" if have == asked else f"asked for is {asked}: to go below its own the daemon needs CAP_SYS_RESOURCE",
    )


def _limit(subject: Subject, pid: int, limit: ResourceLimit) -> Fact:
    planned = subject.asked.document.get("process", {}).get("rlimits", ())
    asked: dict[str, Any] | None = next((each for each in planned if each["type"] == limit.name), None)
    differs = ""
    if asked and (asked["soft"], asked["hard"]) != (limit.soft, limit.hard):
        differs = f"asked for is {asked['soft']}: the program has changed it, or the daemon may not raise its own"
    origin = Origin("node", "runtime.nofile", asked["soft"]) if asked else Origin("runtime")
    return Fact(
        name=limit.name,
        value={"soft": limit.soft, "hard": limit.hard, "unit": limit.unit},
        text=limit_text(limit),
        origin=origin,
        read=f"/proc/{pid}/limits",
        differs=differs,
    )


def limit_text(limit: ResourceLimit) -> str:
    unit = f" {limit.unit}" if limit.unit else ""
    if limit.soft == limit.hard:
        return "unlimited" if limit.soft < 0 else f"{limit.soft}{unit}"
    hard = "without end" if limit.hard < 0 else f"to {limit.hard}"
    return f"{limit.soft}{unit}, may be raised {hard}" if limit.soft >= 0 else f"unlimited, hard {limit.hard}"
