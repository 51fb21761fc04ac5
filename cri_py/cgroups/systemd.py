"""What systemd calls the groups that it makes, and a group's limits as properties of a unit. Pure.

With the systemd driver a pod is a slice and each container a scope in it, which systemd makes when it is asked to:

    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice    the pod, most often the kubelet's
        cri-py-holder-SANDBOX.scope                                             the pod's holder
        cri-py-CONTAINER.scope                                                  delegated to us; systemd limits it
            keep                                                                one process that only waits
            container                                                           the container's own group, ours alone

systemd removes a scope as soon as its last process ends, and with it the counters that tell of an OOM kill. The process
in ``keep`` prevents that; and since version 2 lets no group have both processes and limited children, the container
gets a child too. Its limits stand in both: systemd never touches what is below a delegated scope, and the scope's are
what counts among the pod's containers (weights, protections) and what ``systemctl`` shows.

Sources: systemd.slice(5), systemd.scope(5), systemd.resource-control(5), org.freedesktop.systemd1(5); systemd.io,
"Control Group APIs and Delegation".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from cri_py.cgroups import plans
from cri_py.cgroups.writes import Write
from cri_py.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

UNLIMITED = (1 << 64) - 1
KEEP = "keep"
OWN = "container"
_SLICE = re.compile(r"[A-Za-z0-9:_.\\@]+(-[A-Za-z0-9:_.\\@]+)*\.slice")
_NAME_MAX = 255  # UNIT_NAME_MAX without its NUL
_SCOPE = re.compile(r"cri-py-([0-9a-f]{64})\.scope")
_HIGHEST_CPU = 8191  # the kernel's largest NR_CPUS (arch/x86/Kconfig)
_SECOND_US = 1_000_000
_PERCENT_US = 10_000  # systemd keeps a quota in whole percents of a CPU, 10 ms of each second
_AMOUNTS = {
    "memory.max": "MemoryMax",
    "memory.swap.max": "MemorySwapMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "pids.max": "TasksMax",
}
_CPU_LISTS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


class Property(NamedTuple):
    """One property of a unit, as D-Bus has it: ``signature`` is of the value."""

    name: str
    signature: str
    value: int | str | bool | bytes | list[int]


# ------------------------------------------------------------------- names


def check_slice(name: str) -> None:
    """Raises InvalidArgument for a cgroup_parent that is no slice's name, or the root's."""
    if _SLICE.fullmatch(name) and len(name) <= _NAME_MAX:
        return
    raise InvalidArgument(
        f"cgroup_parent {name[:300]!r} is not the name of a slice, which the driver systemd wants",
        hint="name one such as kubepods-burstable-podUID.slice, without folders; "
        "or have kubelet and runtime use the driver cgroupfs",
    )


def slice_path(name: str) -> str:
    """Where a slice lies: below those that its name begins with, as ``/a.slice/a-b.slice`` for ``a-b.slice``."""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def own_slice(parent: str) -> str:
    """The slice for pods that name none, from the path that the config has: ``/cri_py`` is ``cri_py.slice``.

    A dash would put it into other slices, so it becomes an underscore; a slice's name is taken as it is.
    """
    last = parent.rsplit("/", 1)[-1]
    if _SLICE.fullmatch(last):
        return last
    parts = (re.sub(r"[^A-Za-z0-9:_.]", "_", part) for part in parent.strip("/").split("/"))
    return f"{'-'.join(parts)}.slice"


def child_slice(parent: str, name: str) -> str:
    """A slice inside ``parent``, which is the name of one."""
    return f"{parent.removesuffix('.slice')}-{name}.slice"


def container_scope(container_id: str) -> str:
    return f"cri-py-{container_id}.scope"


def holder_scope(sandbox_id: str) -> str:
    return f"cri-py-holder-{sandbox_id}.scope"


def container_of(scope: str) -> str:
    """The id of the container whose scope it is; "" for what is none's."""
    found = _SCOPE.fullmatch(scope)
    return found[1] if found else ""


def scope_of(group: str) -> str:
    """The path of the scope that a group is or lies in; "" for one that is in none."""
    path, ending, _ = f"{group}/".partition(".scope/")
    return f"{path}.scope" if ending else ""


# -------------------------------------------------------------- properties


def scope_writes(resources: Mapping[str, Any]) -> tuple[Write, ...]:
    """Of a container's limits (OCI's ``linux.resources``) those that its scope has too, as writes to the files there.

    One process more than was asked for: the one that keeps the scope.
    """
    return tuple(
        write._replace(text=str(int(write.text) + 1)) if write.file == "pids.max" and write.text != "max" else write
        for write in plans.v2_writes(resources)
        if _properties(write)
    )


def properties(writes: Iterable[Write]) -> list[Property]:
    """What systemd must be told so that it writes these; of two that set a property the later one counts."""
    found = {each.name: each for write in writes for each in _properties(write)}
    return [found[name] for name in sorted(found)]


def _properties(write: Write) -> list[Property]:
    """Of one file, named without folders; none where systemd has no word for it. What can't be read is for the kernel
    to refuse, to which it is written as it is, at the container's own group."""
    try:
        found = list(_translated(write.file, write.text.strip()))
    except (ValueError, TypeError, ZeroDivisionError):
        return []
    return found if all(0 <= each.value <= UNLIMITED for each in found if isinstance(each.value, int)) else []


def _translated(file: str, text: str) -> Iterator[Property]:
    if file in _AMOUNTS:
        yield Property(_AMOUNTS[file], "t", _amount(text))
    elif file == "cpu.weight":
        yield Property("CPUWeight", "t", int(text))
    elif file == "cpu.idle" and text == "1":
        yield Property("CPUWeight", "t", 0)  # CGROUP_WEIGHT_IDLE
    elif file == "cpu.max":
        yield from _quota(*text.split())
    elif file in _CPU_LISTS:
        yield Property(_CPU_LISTS[file], "ay", _mask(text))
    elif file == "io.weight" and text.startswith("default "):
        yield Property("IOWeight", "t", int(text.split()[1]))


def _amount(text: str) -> int:
    """A number, with the suffixes that the kernel takes (memparse)."""
    if text == "max":
        return UNLIMITED
    power = "KMGTPE".find(text[-1:].upper()) + 1
    return int(text[:-1]) << 10 * power if power else int(text)


def _quota(quota: str, period: str = "100000") -> Iterator[Property]:
    """Rounded up to what systemd can keep: its own limit must never be below the container's."""
    share = UNLIMITED if quota == "max" else -(-int(quota) * _SECOND_US // int(period) // _PERCENT_US) * _PERCENT_US
    yield Property("CPUQuotaPerSecUSec", "t", share)
    yield Property("CPUQuotaPeriodUSec", "t", int(period))


def _mask(text: str) -> bytes:
    """``0-3,7`` as a bit for each, the lowest first; nothing where the group above decides."""
    bits = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not low <= high <= _HIGHEST_CPU:
            raise ValueError(part)
        bits |= (1 << (high + 1)) - (1 << low)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")
