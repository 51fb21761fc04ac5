"""The files that limit a group, read back: those of version 1 and 2, what they say, and what groups above say.

A process is held by the tightest limit on its way to the root, so each reading carries those of the groups above.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cri_py.cgroups import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cri_py.kernel.procfs import Membership, MountPoint

# By controller: the files that hold a limit, each with the file that tells how much of it is used, or "".
_V1 = {
    "cpu": (("cpu.shares", ""), ("cpu.cfs_quota_us", ""), ("cpu.cfs_period_us", "")),
    "cpuset": (("cpuset.cpus", ""), ("cpuset.mems", "")),
    "memory": (
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
        ("memory.soft_limit_in_bytes", ""),
    ),
    "pids": (("pids.max", "pids.current"),),
    "devices": (("devices.list", ""),),
    "freezer": (("freezer.state", ""),),
}
_V2 = {
    "cpu": (("cpu.weight", ""), ("cpu.max", "")),
    "cpuset": (("cpuset.cpus.effective", ""), ("cpuset.mems.effective", "")),
    "memory": (
        ("memory.max", "memory.current"),
        ("memory.swap.max", "memory.swap.current"),
        ("memory.high", ""),
        ("memory.low", ""),
    ),
    "pids": (("pids.max", "pids.current"),),
    "": (("cgroup.freeze", ""),),
}
# Where a limit of a group above holds as well, and is not merely passed on.
_BINDS_BELOW = frozenset(
    (
        *("cpu.cfs_quota_us", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
        *("pids.max", "cpu.max", "memory.max", "memory.swap.max"),
    )
)
_TOLD = frozenset(file for known in (_V1, _V2) for pairs in known.values() for pair in pairs for file in pair if file)
_NONE = ("max", "-1", "")
_V1_UNLIMITED = 1 << 62  # the kernel rounds its largest number down to a page


class Above(NamedTuple):
    """A limit of a group above the one that was asked about."""

    directory: str
    value: str


class Reading(NamedTuple):
    """One file. ``used`` is "" where the kernel counts nothing; ``above`` has the nearest group first."""

    controller: str  # "" for what every group of version 2 has
    directory: str
    file: str
    value: str
    used: str
    above: tuple[Above, ...]


def is_unlimited(value: str) -> bool:
    """Whether the content of a file means that there is no limit."""
    first = value.partition(" ")[0]
    return first in _NONE or (first.isdigit() and int(first) >= _V1_UNLIMITED)


def readings(
    memberships: Sequence[Membership], mounts: Sequence[MountPoint], unified: Iterable[str] = ()
) -> tuple[Reading, ...]:
    """What limits a process that is in ``memberships`` (/proc/PID/cgroup), read where ``mounts`` (ours) show it.

    ``unified``: files of version 2 that are of interest beside the usual ones.
    """
    found: list[Reading] = []
    for membership in memberships:
        for mount in _mounts_of(membership, mounts):
            directory = _directory(membership.path, mount)
            if directory and os.path.isdir(directory):
                found += _read_group(directory, mount, membership.controllers)
                if mount.fstype == "cgroup2":
                    found += _read_more(directory, unified, {reading.file for reading in found})
                break  # mounted twice it is still one
    return tuple(found)


def values(directories: Iterable[str]) -> dict[str, str]:
    """What the files of a group say of its limits and what is used of them, by file; empty for a group that is gone."""
    found = {}
    for directory in directories:
        try:
            there = os.listdir(directory)
        except FileNotFoundError:
            continue
        found.update({file: _text(f"{directory}/{file}") for file in sorted(_TOLD.intersection(there))})
    return found


def _mounts_of(membership: Membership, mounts: Sequence[MountPoint]) -> Iterator[MountPoint]:
    for mount in mounts:
        if membership.hierarchy == 0:
            if mount.fstype == "cgroup2":
                yield mount
        elif mount.fstype == "cgroup" and set(membership.controllers) <= set(mount.super_options):
            yield mount


def _directory(path: str, mount: MountPoint) -> str:
    """Where the group lies; "" if the mount does not show it."""
    if mount.root == "/":
        return f"{mount.path}{path}".rstrip("/")
    if path == mount.root or path.startswith(f"{mount.root}/"):
        return f"{mount.path}{path[len(mount.root) :]}"
    return ""


def _read_group(directory: str, mount: MountPoint, controllers: Sequence[str]) -> Iterator[Reading]:
    known = _V2 if mount.fstype == "cgroup2" else {name: _V1[name] for name in controllers if name in _V1}
    for controller, pairs in known.items():
        for file, usage in pairs:
            if not os.path.exists(f"{directory}/{file}"):
                continue  # this kernel, or the group above, has not this controller
            above = tuple(_limits_above(directory, mount.path, file)) if file in _BINDS_BELOW else ()
            used = _text(f"{directory}/{usage}") if usage else ""
            yield Reading(controller, directory, file, _text(f"{directory}/{file}"), used, above)
    yield from _huge_pages(directory, "hugetlb" in controllers, mount.fstype == "cgroup2")


def _read_more(directory: str, names: Iterable[str], read: set[str]) -> Iterator[Reading]:
    for file in sorted(set(names) - read):
        if "/" not in file and os.path.exists(f"{directory}/{file}"):
            yield Reading(file.partition(".")[0], directory, file, _text(f"{directory}/{file}"), "", ())


def _huge_pages(directory: str, version1: bool, version2: bool) -> Iterator[Reading]:
    """One file for each size of pages; the reservations (rsvd) repeat them."""
    ending = ".max" if version2 else ".limit_in_bytes"
    try:
        names = sorted(os.listdir(directory)) if version1 or version2 else []
    except FileNotFoundError:
        names = []  # the group went meanwhile
    for file in names:
        if file.startswith("hugetlb.") and file.endswith(ending) and ".rsvd." not in file:
            yield Reading("hugetlb", directory, file, _text(f"{directory}/{file}"), "", ())


def _limits_above(directory: str, top: str, file: str) -> Iterator[Above]:
    while (directory := os.path.dirname(directory)).startswith(top) and directory != top:
        value = _text(f"{directory}/{file}")
        if not is_unlimited(value):
            yield Above(directory, value)


def _text(file: str) -> str:
    return files.read_if_there(file).decode(errors="replace").strip()
