"""The mounts of a container, from CRI to OCI words (runtime-spec, config.md and config-linux.md). Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Any, Final

from cri_py.errors import InvalidArgument, Unimplemented
from cri_py.model import ContainerConfig, Mount, MountPropagation, NamespaceMode, Sandbox

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


def mounts(sandbox: Sandbox, config: ContainerConfig, files: SandboxFiles) -> list[Json]:
    """All mounts in the order in which they are made: by depth, so that none hides one made before it.

    A mount that the kubelet sends takes the place of a standard one at the same path; one at /dev also that of the
    device file systems below it, which are the host's then.
    """
    asked = {clean_path(mount.container_path) for mount in config.mounts}
    standard = [mount for mount in _standard(sandbox, config, files) if not _is_covered(mount, asked)]
    wanted = [*standard, *(_bind(mount) for mount in config.mounts)]
    return sorted(wanted, key=lambda mount: mount["destination"].count("/"))


def root_propagation(config: ContainerConfig) -> str:
    """``linux.rootfsPropagation``: a mount can only receive or send what its parent was not cut off from."""
    kinds = {mount.propagation for mount in config.mounts}
    if MountPropagation.BIDIRECTIONAL in kinds:
        return "rshared"
    return "rslave" if MountPropagation.HOST_TO_CONTAINER in kinds else "rprivate"


def _standard(sandbox: Sandbox, config: ContainerConfig, files: SandboxFiles) -> list[Json]:
    restricted = [] if config.security.privileged else ["ro"]
    quiet = ["nosuid", "noexec", "nodev"]
    shm = _SHM if sandbox.config.namespaces.ipc is NamespaceMode.NODE else files.shm
    access = "ro" if config.security.readonly_rootfs else "rw"
    return [
        _mount("/proc", "proc", "proc", quiet),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/sys", "sysfs", "sysfs", [*quiet, *restricted]),
        # gid 5 is tty in every distribution
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", quiet),
        _mount(_SHM, "bind", shm, ["rbind", "rprivate", *quiet, "rw"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, "relatime", *restricted]),
        _mount("/etc/hosts", "bind", files.hosts, ["rbind", "rprivate", access]),
        _mount("/etc/hostname", "bind", files.hostname, ["rbind", "rprivate", access]),
        _mount("/etc/resolv.conf", "bind", files.resolv_conf, ["rbind", "rprivate", access]),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Json:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _is_covered(standard: Json, asked: set[str]) -> bool:
    path = standard["destination"]
    return path in asked or (path in {"/dev/pts", "/dev/mqueue"} and "/dev" in asked)


def _bind(mount: Mount) -> Json:
    path = clean_path(mount.container_path)
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


def clean_path(path: str, field: str = "mounts.container_path") -> str:
    """The path without doubled and trailing slashes; ``..`` is refused, not resolved (CVE-2022-23648)."""
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidArgument(f"{field} {path!r} is not absolute and free of '..'", hint="name the place in full")
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean == "/":
        raise InvalidArgument(f"{field} is the container's root", hint="mount below it")
    return clean
