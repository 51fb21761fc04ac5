"""Classes of block I/O: how a pod asks for one, and what it is in OCI's words (runtime-spec, config-linux.md). Pure.

CRI has no field for I/O. Peers take classes by these annotations of a pod (goresctrl, docs/blockio.md), which is the
one way on cgroup v1; on v2 ``unified`` has io.max as well. What a class is, the node's config says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cri_py.config import BlockIoClass
from cri_py.errors import InvalidArgument

Json = dict[str, Any]
_POD: Final = "blockio.resources.beta.kubernetes.io/pod"
_CONTAINER: Final = "blockio.resources.beta.kubernetes.io/container."
_RATES: Final = {
    "throttleReadBpsDevice": "read_bytes_s",
    "throttleWriteBpsDevice": "write_bytes_s",
    "throttleReadIOPSDevice": "read_ops_s",
    "throttleWriteIOPSDevice": "write_ops_s",
}


def class_of(container: str, annotations: Mapping[str, str]) -> str:
    """The class that a pod's annotations name for one of its containers; "" for none."""
    return annotations.get(f"{_CONTAINER}{container}") or annotations.get(_POD, "")


def find(name: str, classes: Mapping[str, BlockIoClass]) -> BlockIoClass:
    """Raises InvalidArgument for a class that this node has not."""
    if name not in classes:
        raise InvalidArgument(
            f"the class of block I/O {name!r} is not one that this node has",
            hint=f"its config has {', '.join(sorted(classes)) or 'none'}: runtime.block_io_classes",
        )
    wanted = classes[name]
    if not wanted.devices and any(getattr(wanted, field) for field in _RATES.values()):
        raise InvalidArgument(
            f"the class of block I/O {name!r} limits rates, but names no disk",
            hint=f"set runtime.block_io_classes.{name}.devices",
        )
    return wanted


def section(wanted: BlockIoClass, disks: Sequence[tuple[int, int]]) -> Json:
    """``linux.resources.blockIO``; ``disks`` are the numbers of the class's devices."""
    found: Json = {}
    if wanted.weight and disks:
        found["weightDevice"] = [_at(disk, weight=wanted.weight) for disk in disks]
    elif wanted.weight:
        found["weight"] = wanted.weight
    for word, field in _RATES.items():
        if rate := getattr(wanted, field):
            found[word] = [_at(disk, rate=rate) for disk in disks]
    return found


def _at(disk: tuple[int, int], **amount: int) -> Json:
    major, minor = disk
    return {"major": major, "minor": minor, **amount}
