"""From OCI ``linux.resources.blockIO`` to the files of both versions: weights, and rates by device. Pure.

Sources: OCI runtime-spec, config-linux.md, "Block IO"; admin-guide/cgroup-v1/blkio-controller.rst; cgroup-v2.rst, "IO".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_py.cgroups.writes import Write
from cri_py.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

APPLIED = {
    *("weight", "weightDevice", "throttleReadBpsDevice", "throttleWriteBpsDevice"),
    *("throttleReadIOPSDevice", "throttleWriteIOPSDevice"),
}
_WEIGHTS = (10, 1000)


_RATES = {  # by OCI's word: version 1's file, version 2's key in io.max
    "throttleReadBpsDevice": ("blkio.throttle.read_bps_device", "rbps"),
    "throttleWriteBpsDevice": ("blkio.throttle.write_bps_device", "wbps"),
    "throttleReadIOPSDevice": ("blkio.throttle.read_iops_device", "riops"),
    "throttleWriteIOPSDevice": ("blkio.throttle.write_iops_device", "wiops"),
}


def v1_io(io: Mapping[str, Any]) -> Iterator[Write]:
    """Weights are bfq's, the one scheduler of version 1 that has them; a rate of 0 takes a limit away."""
    for device, weight in _weights(io):
        if device:
            yield Write("blkio.bfq.weight_device", f"{device} {weight}", optional=True)
        else:
            yield Write("blkio.bfq.weight", str(weight), optional=True)
    for word, (file, _) in _RATES.items():
        for device, rate in _rates(io, word):
            yield Write(file, f"{device} {rate}")


def v2_io(io: Mapping[str, Any]) -> Iterator[Write]:
    """As v1_io; a weight is told to bfq as it is, and to io.cost on its own scale."""
    for device, weight in _weights(io):
        yield Write("io.bfq.weight", f"{device or 'default'} {weight}", optional=True)
        yield Write("io.weight", f"{device or 'default'} {io_weight(weight)}", optional=True)
    for word, (_, key) in _RATES.items():
        for device, rate in _rates(io, word):
            yield Write("io.max", f"{device} {key}={rate or 'max'}")


def io_weight(weight: int) -> int:
    """10 to 1000 as 1 to 10000, on a line, as crun and runc have it."""
    low, high = _WEIGHTS
    return 1 + (weight - low) * 9999 // (high - low)


def _weights(io: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Of the group, with "" as its device, and of devices; 0 asks for nothing."""
    low, high = _WEIGHTS
    found = [
        ("", io.get("weight") or 0),
        *((_device(each), each.get("weight") or 0) for each in io.get("weightDevice") or ()),
    ]
    for device, weight in found:
        if weight and not low <= weight <= high:
            raise InvalidArgument(f"blockIO.weight is {weight}{device and f' for {device}'}", hint=f"{low} to {high}")
        if weight:
            yield device, weight


def _rates(io: Mapping[str, Any], word: str) -> Iterator[tuple[str, int]]:
    for each in io.get(word) or ():
        rate = each.get("rate") or 0
        if rate < 0:
            raise InvalidArgument(
                f"blockIO.{word} is {rate} for {_device(each)}", hint="a number a second, 0 for no limit"
            )
        yield _device(each), rate


def _device(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('major', 0)}:{entry.get('minor', 0)}"
