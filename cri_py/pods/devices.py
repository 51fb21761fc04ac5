"""Looks on the node for the devices that a container gets: numbers, owners and modes. Blocking."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from cri_py.cdi import edits
from cri_py.errors import InvalidArgument, NotFound
from cri_py.model import Device
from cri_py.pods.metrics_devices import disk_of
from cri_py.pods.spec_devices import DeviceNode

# What a container has of its own in /dev.
_OWN: Final = frozenset(("pts", "shm", "fd", "mqueue", "console", "ptmx"))


def look_up(device: Device) -> list[DeviceNode]:
    """The device of the kubelet's words, or all that are in a directory, at the same places below the container's.

    Links of the node are followed, but those inside of a directory, which may lead anywhere, are left out. Raises
    NotFound for what is not there, InvalidArgument for what is no device.
    """
    inside = device.container_path.rstrip("/") or device.host_path
    found = _stat(device.host_path)
    if stat.S_ISDIR(found.st_mode):
        nodes = [
            _node(each, inside + path.removeprefix(device.host_path.rstrip("/")), device.permissions)
            for path, each in _below(device.host_path.rstrip("/"))
        ]
        if not nodes:
            raise InvalidArgument(f"{device.host_path} is a directory without devices", hint="name a device")
        return nodes
    if not _is_device(found):
        raise InvalidArgument(f"{device.host_path} is not a device", hint="name a character or block device")
    return [_node(found, inside, device.permissions)]


def disk(path: str) -> tuple[int, int]:
    """Major and minor number of the disk that a block device is, or is a part of: I/O is limited by disks."""
    found = _stat(path)
    if not stat.S_ISBLK(found.st_mode):
        raise InvalidArgument(f"{path} is no block device", hint="name a disk")
    major, minor = disk_of(f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}").split(":")
    return int(major), int(minor)


def look_up_cdi(node: edits.Node) -> DeviceNode:
    """A device node of a CDI file, with what the file leaves open as the node has it."""
    if node.kind == "p":
        return DeviceNode(node.path, "p", 0, 0, node.access, node.mode or 0o666, node.uid or 0, node.gid or 0)
    if node.kind and node.major is not None and node.minor is not None:
        mode = 0o666 if node.mode is None else node.mode
        return DeviceNode(node.path, node.kind, node.major, node.minor, node.access, mode, node.uid or 0, node.gid or 0)
    path = node.host_path or node.path
    found = _stat(path)
    if not _is_device(found):
        raise InvalidArgument(f"{path}, which a CDI file names, is not a device")
    seen = _node(found, node.path, node.access)
    if node.kind and {"u": "c"}.get(node.kind, node.kind) != seen.kind:
        raise InvalidArgument(f"{path} is of type {seen.kind}, a CDI file has it of type {node.kind}")
    return DeviceNode(
        node.path,
        seen.kind,
        seen.major if node.major is None else node.major,
        seen.minor if node.minor is None else node.minor,
        node.access,
        seen.mode if node.mode is None else node.mode,
        seen.uid if node.uid is None else node.uid,
        seen.gid if node.gid is None else node.gid,
    )


def all_of_the_node() -> list[DeviceNode]:
    """Every device node in /dev, less what a container has of its own."""
    return [_node(found, path) for path, found in _below("/dev") if path.split("/")[2] not in _OWN]


def _below(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of each device in the directory and in those below it; links are left out."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path)
            continue
        try:
            found = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # unplugged meanwhile
        if _is_device(found):
            yield entry.path, found


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise NotFound(f"the device {path} is not on this node: {error.strerror}") from error


def _is_device(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)


def _node(found: os.stat_result, path: str, access: str = "rwm") -> DeviceNode:
    kind = "c" if stat.S_ISCHR(found.st_mode) else "b"
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return DeviceNode(path, kind, major, minor, access, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
