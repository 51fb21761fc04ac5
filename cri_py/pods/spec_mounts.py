"""The mounts and devices of a container, from CRI to OCI words (runtime-spec, config.md and config-linux.md). Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cri_py.errors import InvalidArgument, Unimplemented
from cri_py.model import ContainerConfig, Mount, MountPropagation, NamespaceMode, Sandbox
from cri_py.pods import spec_userns

Json = dict[str, Any]

_PROPAGATIONS: Final = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}
_SHM: Final = "/dev/shm"  # noqa: S108 - the mount point itself, nothing is made in it
_MOUNT_OPTIONS: Final = ("noexec", "nodev", "nosuid")


@dataclass(frozen=True, slots=True)
class SandboxFiles:
    """Host paths of what a sandbox shares with its containers: three files and the directory of its /dev/shm."""

    hosts: str
    hostname: str
    resolv_conf: str
    shm: str


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device in a container's /dev, its numbers already looked up on the host."""

    path: str  # in the container
    kind: str  # c or b
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
# Usable though not made as nodes: console, ptmx and the pseudo terminals of the container's own devpts.
_TERMINALS: Final = ((5, 1), (5, 2), (136, None))


def mounts(sandbox: Sandbox, config: ContainerConfig, files: SandboxFiles) -> list[Json]:
    """All mounts in the order in which they are made: by depth, so that none hides one made before it.

    A mount that the kubelet sends takes the place of a standard one at the same path; one at /dev also that of the
    device file systems below it, which are the host's then.
    """
    asked = {_clean(mount.container_path) for mount in config.mounts}
    standard = [mount for mount in _standard(sandbox, config, files) if not _is_covered(mount, asked)]
    wanted = [*standard, *(_bind(mount) for mount in config.mounts)]
    return sorted(wanted, key=lambda mount: mount["destination"].count("/"))


def has_host_dev(config: ContainerConfig) -> bool:
    """Whether a mount takes the place of /dev, so that no node may be made there."""
    return any(_clean(mount.container_path) == "/dev" for mount in config.mounts)


def root_propagation(config: ContainerConfig) -> str:
    """``linux.rootfsPropagation``: a mount can only receive or send what its parent was not cut off from."""
    kinds = {mount.propagation for mount in config.mounts}
    if MountPropagation.BIDIRECTIONAL in kinds:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in kinds else "rprivate"


def device_nodes(config: ContainerConfig, extra: Iterable[DeviceNode]) -> list[Json]:
    """``linux.devices``: the nodes that are made in the container's /dev."""
    if has_host_dev(config):
        return []
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
        for node in (*_STANDARD_DEVICES, *extra)
    ]


def device_rules(extra: Iterable[DeviceNode], *, privileged: bool) -> list[Json]:
    """``linux.resources.devices``: nothing but what is listed, though any node may be made, which opens nothing."""
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[Json] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for node in (*_STANDARD_DEVICES, *extra):
        rules.append(_rule(node.kind, node.major, node.minor, node.access))
    return rules + [_rule("c", major, minor, "rwm") for major, minor in _TERMINALS]


def _rule(kind: str, major: int, minor: int | None, access: str) -> Json:
    numbers = {"major": major} if minor is None else {"major": major, "minor": minor}
    return {"allow": True, "type": kind, **numbers, "access": access}


def check_devices(config: ContainerConfig, looked_up: Sequence[DeviceNode] | None) -> None:
    """Raises if a device that the kubelet asks for is malformed, or if nobody looked its numbers up."""
    for device in config.devices:
        _clean(device.container_path, "devices.container_path")
        if not device.permissions or not set(device.permissions) <= set("rwm"):
            raise InvalidArgument(
                f"device {device.host_path} has permissions {device.permissions!r}", hint="use letters of 'rwm'"
            )
    if config.devices and looked_up is None:
        raise Unimplemented(f"devices ({config.devices[0].host_path}) are not supported by this version")
    if config.cdi_devices:
        raise Unimplemented(f"CDI devices ({config.cdi_devices[0]}) are not supported by this version")


def _standard(sandbox: Sandbox, config: ContainerConfig, files: SandboxFiles) -> list[Json]:
    restricted = [] if config.security.privileged else ["ro"]
    quiet = ["nosuid", "noexec", "nodev"]
    shm = _SHM if sandbox.config.namespaces.ipc is NamespaceMode.NODE else files.shm
    access = "ro" if config.security.readonly_rootfs else "rw"
    # gid 5 is tty in every distribution
    tty = ["gid=5"] if spec_userns.has_tty_group(sandbox.config.namespaces) else []
    return [
        _mount("/proc", "proc", "proc", quiet),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _sys(sandbox, [*quiet, *restricted]),
        _mount("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *tty]),
        _mount("/dev/mqueue", "mqueue", "mqueue", quiet),
        _mount(_SHM, "bind", shm, ["rbind", "rprivate", *quiet, "rw"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, "relatime", *restricted]),
        _mount("/etc/hosts", "bind", files.hosts, ["rbind", "rprivate", access]),
        _mount("/etc/hostname", "bind", files.hostname, ["rbind", "rprivate", access]),
        _mount("/etc/resolv.conf", "bind", files.resolv_conf, ["rbind", "rprivate", access]),
    ]


def _sys(sandbox: Sandbox, options: list[str]) -> Json:
    """A sysfs shows a network, and only who has rights over that can mount one: a pod with a user namespace on the
    node's network gets the node's own /sys, with nothing below it writable."""
    namespaces = sandbox.config.namespaces
    if spec_userns.has_own(namespaces) and namespaces.network is NamespaceMode.NODE:
        return _mount("/sys", "bind", "/sys", ["rbind", "rprivate", "rro", "rnosuid", "rnoexec", "rnodev"])
    return _mount("/sys", "sysfs", "sysfs", options)


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Json:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _is_covered(standard: Json, asked: set[str]) -> bool:
    path = standard["destination"]
    return path in asked or (path in {"/dev/pts", "/dev/mqueue"} and "/dev" in asked)


def _bind(mount: Mount) -> Json:
    path = _clean(mount.container_path)
    _refuse_unsupported(mount)
    if not mount.host_path.startswith("/"):
        raise InvalidArgument(
            f"the mount at {path} has host_path {mount.host_path!r}", hint="host_path is an absolute path on the node"
        )
    for option in mount.mount_options:
        if option not in _MOUNT_OPTIONS:
            raise InvalidArgument(
                f"the mount at {path} has the option {option!r}", hint=f"options are {', '.join(_MOUNT_OPTIONS)}"
            )
    options = ["rbind", _PROPAGATIONS[mount.propagation], "ro" if mount.readonly else "rw"]
    return _mount(path, "bind", mount.host_path, [*options, *dict.fromkeys(mount.mount_options)])


def _refuse_unsupported(mount: Mount) -> None:
    """A wish that this version can't grant is named: a volume mounted otherwise than asked is a hole or a loss."""
    path = mount.container_path
    if mount.recursive_read_only and not (mount.readonly and mount.propagation is MountPropagation.PRIVATE):
        raise InvalidArgument(
            f"the mount at {path} asks for recursive_read_only", hint="it needs readonly and propagation PRIVATE too"
        )
    unsupported = {
        "image": mount.image is not None,
        "image_sub_path": bool(mount.image_sub_path),
        "uidMappings": bool(mount.uid_mappings),
        "gidMappings": bool(mount.gid_mappings),
        "recursive_read_only": mount.recursive_read_only,
    }
    for field, asked in unsupported.items():
        if asked:
            raise Unimplemented(f"mounts.{field} (at {path}) is not supported by this version")


def _clean(path: str, field: str = "mounts.container_path") -> str:
    """The path without doubled and trailing slashes; ``..`` is refused, not resolved (CVE-2022-23648)."""
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidArgument(f"{field} {path!r} is not absolute and free of '..'", hint="name the place in full")
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean == "/":
        raise InvalidArgument(f"{field} is the container's root", hint="mount below it")
    return clean
