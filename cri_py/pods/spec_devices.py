"""The devices of a container, from CRI to OCI words (runtime-spec, config-linux.md). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cri_py.errors import InvalidArgument
from cri_py.model import ContainerConfig, ContainerSecurity
from cri_py.pods.spec_mounts import clean_path

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device in a container's /dev, its numbers already looked up on the host."""

    path: str  # in the container
    kind: str  # c or b; of CDI also u, a character device by another name, and p, a fifo
    major: int
    minor: int
    access: str = "rwm"
    mode: int = 0o666
    uid: int = 0
    gid: int = 0


_STANDARD_DEVICES: Final = tuple(
    DeviceNode(f"/dev/{name}", "c", major, minor)
    for name, major, minor in (
        *(("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)),
    )
)
# Usable though not made as nodes: ptmx and the pseudo terminals of the container's own devpts, one of which is
# /dev/console, and tun, by which one with CAP_NET_ADMIN makes interfaces of its own. Not 5:1, the node's console.
_USABLE: Final = ((5, 2), (136, None), (10, 200))


def check(config: ContainerConfig) -> None:
    """Raises InvalidArgument if a device that the kubelet asks for is malformed."""
    for device in config.devices:
        clean_path(device.host_path, "devices.host_path")
        if device.container_path:
            clean_path(device.container_path, "devices.container_path")
        if not device.permissions or not set(device.permissions) <= set("rwm"):
            raise InvalidArgument(
                f"device {device.host_path} has permissions {device.permissions!r}", hint="use letters of 'rwm'"
            )


def merge(*layers: Sequence[DeviceNode]) -> list[DeviceNode]:
    """One node for each path: where two layers have one, the earlier layer's."""
    merged: dict[str, DeviceNode] = {}
    for node in (node for layer in layers for node in layer):
        merged.setdefault(node.path, node)
    return list(merged.values())


def owned(nodes: Iterable[DeviceNode], security: ContainerSecurity) -> list[DeviceNode]:
    """The nodes that root owns on the host, given to the user and group that the container is told to run as.

    So a program without rights can use what it was given. Names and the image's own user don't count: only the numbers
    that the kubelet sends are known before the container's root is.
    """
    uid, gid = security.run_as_user or 0, security.run_as_group or 0
    return [replace(node, uid=node.uid or uid, gid=node.gid or gid) for node in nodes]


def device_nodes(config: ContainerConfig, extra: Iterable[DeviceNode]) -> list[Json]:
    """``linux.devices``: the nodes that are made in the container; none below a /dev that is the host's own."""
    nodes = merge(tuple(extra), _STANDARD_DEVICES)
    if any(clean_path(mount.container_path) == "/dev" for mount in config.mounts):
        nodes = [node for node in nodes if not node.path.startswith("/dev/")]
    return [
        {
            "path": node.path,
            "type": node.kind,
            "major": node.major,
            "minor": node.minor,
            "fileMode": node.mode,
            "uid": node.uid,
            "gid": node.gid,
        }
        for node in nodes
    ]


def device_rules(extra: Iterable[DeviceNode], *, privileged: bool) -> list[Json]:
    """``linux.resources.devices``: nothing but what is listed, though any node may be made, which opens nothing."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[Json] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for node in (*_STANDARD_DEVICES, *extra):
        if node.kind != "p":
            rules.append(_rule("b" if node.kind == "b" else "c", node.major, node.minor, node.access))
    return rules + [_rule("c", major, minor, "rwm") for major, minor in _USABLE]


def _rule(kind: str, major: int, minor: int | None, access: str) -> Json:
    numbers = {"major": major} if minor is None else {"major": major, "minor": minor}
    return {"allow": True, "type": kind, **numbers, "access": access}
