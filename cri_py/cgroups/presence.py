"""Whether the CPUs and memory nodes that a cpuset asks for are on this node.

Version 2 takes absent ones without a word and runs the group on its parent's, version 1 says EINVAL and not which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_py.cgroups import files
from cri_py.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_ONLINE = {"cpus": "/sys/devices/system/cpu/online", "mems": "/sys/devices/system/node/online"}


def check(resources: Mapping[str, Any]) -> None:
    """Raises InvalidArgument for a cpuset in OCI's ``linux.resources`` that this node has not."""
    for key, file in _ONLINE.items():
        asked = (resources.get("cpu") or {}).get(key)
        if not asked:
            continue
        online = files.read_if_there(file).decode().strip() or "0"  # without NUMA there is but one node of memory
        if not covers(online, asked):
            raise InvalidArgument(
                f"cpuset_{key} is {asked!r}, but this node has {online}", hint="ask for some of these"
            )


def covers(online: str, asked: str) -> bool:
    """Whether each range of ``asked`` (0-3,7) lies in one of ``online``. Pure."""
    there = _ranges(online)
    return all(any(low <= first <= last <= high for low, high in there) for first, last in _ranges(asked))


def _ranges(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.append((int(first), int(last or first)))
    return found
