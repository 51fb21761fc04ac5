"""New limits for a group that is in use: in an order in which no step breaks a limit, and taken back if one fails.

Two pairs of version 1 are two writes each, between which processes run: memory must never be above memory with swap,
and quota by period must never be above both the old and the new share (a pod's group refuses more than it has itself).
"""

from __future__ import annotations

import os
from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING

from cri_py.cgroups import files
from cri_py.cgroups.writes import Write
from cri_py.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cri_py.cgroups.hierarchy import Cgroups

_MEMORY = "/memory.limit_in_bytes"
_MEMORY_AND_SWAP = "/memory.memsw.limit_in_bytes"
_PERIOD = "/cpu.cfs_period_us"
_QUOTA = "/cpu.cfs_quota_us"
_V2_MEMORY = "/memory.max"


def change(cgroups: Cgroups, path: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
    """Write what ``resources`` (OCI's ``linux.resources``) ask for; returns the writes that take it back, in order.

    Raises KernelError for the write that the kernel refused; the group is then as it was. A memory limit below what
    is in use is EBUSY: the kernel of version 1 says so itself, that of version 2 would kill.
    """
    planned = [write for write in cgroups.plan(path, resources) if not write.optional or os.path.exists(write.file)]
    current = {write.file: _current(write) for write in planned}
    undo: list[Write] = []
    try:
        for write in in_order(planned, current):
            _check_usage(write)
            files.write(write.file, write.text)
            undo.insert(0, Write(write.file, current[write.file]))
    except BaseException:
        take_back(undo)
        raise
    return tuple(undo)


def _current(write: Write) -> str:
    if not os.path.exists(write.file):
        raise KernelError(ENODEV, "the group has no such file", "write", f"{write.text} to {write.file}")
    return files.read(write.file).decode().strip()


def take_back(undo: Sequence[Write]) -> None:
    """Carry out what ``change`` returned; a group that is gone by now needs nothing."""
    for write in undo:
        files.write_if_there(write.file, write.text)


def in_order(planned: Sequence[Write], current: Mapping[str, str]) -> list[Write]:
    """The writes that change something, the pairs in the right order. Pure."""
    ordered = [write for write in planned if current[write.file] != write.text]
    _arrange(ordered, current, first=_MEMORY_AND_SWAP, second=_MEMORY, by=_MEMORY)  # raised: the outer limit first
    _arrange(ordered, current, first=_PERIOD, second=_QUOTA, by=_PERIOD)  # a longer period gives less, until the quota
    return ordered


def _arrange(writes: list[Write], current: Mapping[str, str], *, first: str, second: str, by: str) -> None:
    """Put ``first`` before ``second`` where the value of ``by`` is raised, and after it where it is lowered."""
    places = {file: at for at, write in enumerate(writes) for file in (first, second) if write.file.endswith(file)}
    if len(places) < 2:
        return
    pair = {file: writes[at] for file, at in places.items()}
    raised = _amount(pair[by].text) > _amount(current[pair[by].file])
    order = (first, second) if raised else (second, first)
    for at, file in zip(sorted(places.values()), order, strict=True):
        writes[at] = pair[file]


def _amount(text: str) -> float:
    return float("inf") if text in ("-1", "max") else int(text)


def _check_usage(write: Write) -> None:
    if not write.file.endswith(_V2_MEMORY) or write.text == "max":
        return
    used = int(files.read(write.file.removesuffix("max") + "current"))
    if int(write.text) < used:
        raise KernelError(EBUSY, f"{used} bytes are in use", "write", f"{write.text} to {write.file}")
