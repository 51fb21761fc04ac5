"""Block devices by their number and by their name, and the filesystem that holds the containers' layers."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from cri_py.kernel import procfs

_SYSFS: Final = "/sys/dev/block"


class Filesystem(NamedTuple):
    """``device`` as cAdvisor tells it: /dev/sda1, or the mount's source where no device of its own holds it.

    ``disk`` is the number of the whole disk, by which the kernel counts I/O; "" without a device.
    """

    device: str
    disk: str  # major:minor
    size: int
    inodes: int
    free_inodes: int


class Devices:
    """Names are asked for once: a number keeps its device while it is in use."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._places: dict[str, tuple[str, str]] = {}  # device and disk by path

    def name(self, number: str) -> str:
        """/dev/sda of 8:0; "" for a number that no device has (any more)."""
        found = self._names.get(number) or _named(number)
        if found:
            self._names[number] = found
        return found

    def filesystem(self, path: str) -> Filesystem:
        """Of the one that holds ``path``."""
        if path not in self._places:
            self._places[path] = self._place(path)
        device, disk = self._places[path]
        found = os.statvfs(path)
        return Filesystem(device, disk, found.f_blocks * found.f_frsize, found.f_files, found.f_ffree)

    def _place(self, path: str) -> tuple[str, str]:
        at = os.stat(path).st_dev
        number = f"{os.major(at)}:{os.minor(at)}"
        if name := self.name(number):
            return name, disk_of(number)
        return _source(path), ""  # over no single device: btrfs, overlay, virtiofs


def _named(number: str) -> str:
    try:
        with open(f"{_SYSFS}/{number}/uevent", encoding="ascii") as file:
            return next((f"/dev/{line[8:].strip()}" for line in file if line.startswith("DEVNAME=")), "")
    except FileNotFoundError:
        return ""


def disk_of(number: str) -> str:
    """The disk that a partition is on; any other device is one itself."""
    directory = os.path.realpath(f"{_SYSFS}/{number}")
    if not os.path.exists(f"{directory}/partition"):
        return number
    with open(f"{os.path.dirname(directory)}/dev", encoding="ascii") as file:
        return file.read().strip()


def _source(path: str) -> str:
    """What was mounted where ``path`` lies."""
    above = [each for each in procfs.mountinfo() if f"{path}/".startswith(f"{each.path.rstrip('/')}/")]
    return max(above, key=lambda each: len(each.path)).source if above else ""
