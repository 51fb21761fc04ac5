"""New limits for a group that is in use: in an order in which no step breaks a limit, and taken back if one fails.

Two pairs of version 1 are two writes each, between which processes run: memory must never be above memory with swap,
and quota by period must never be above both the old and the new share (a pod's group refuses more than it has itself).
"""

from __future__ import annotations

import os
import re
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
_AMOUNT = re.compile(r"(\d+)([kmgtpe]?)", re.ASCII | re.IGNORECASE)
# Of a file with a line for each device: what takes a device's line away.
_NO_LINE = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.weight": "default",
    "io.bfq.weight": "default",
    "io.latency": "target=0",
    "rdma.max": "hca_handle=max hca_object=max",
    "blkio.bfq.weight_device": "0",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.write_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
    "blkio.throttle.write_iops_device": "0",
    "net_prio.ifpriomap": "0",
}


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
            undo.insert(0, way_back(write, current[write.file]))
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


def way_back(write: Write, current: str) -> Write:
    """What undoes ``write`` where the file had the content ``current``: of a file of lines, the same device's. Pure."""
    none = _NO_LINE.get(os.path.basename(write.file))
    if none is None:
        return Write(write.file, current)
    device = write.text.split(" ", 1)[0]
    had = [line for line in current.splitlines() if line.split(" ", 1)[0] == device]
    return Write(write.file, had[0] if had else f"{device} {none}")


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
    asked = _AMOUNT.fullmatch(write.text)
    if asked is None or not write.file.endswith(_V2_MEMORY):
        return  # no limit; or no number, which the kernel refuses
    used = int(files.read(write.file.removesuffix("max") + "current"))
    if int(asked[1]) << 10 * " kmgtpe".index(asked[2].lower() or " ") < used:  # as the kernel reads it (lib/cmdline.c)
        raise KernelError(EBUSY, f"{used} bytes are in use", "write", f"{write.text} to {write.file}")
