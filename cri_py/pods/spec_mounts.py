"""The mounts of a container, from CRI to OCI words (runtime-spec, config.md and config-linux.md). Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import ContainerConfig, Features, Mount, MountPropagation, NamespaceMode, NamespaceOption, Sandbox
from cri_py.pods import spec_selinux, spec_userns

Json = dict[str, Any]

_PROPAGATIONS: Final = {
    MountPropagation.PRIVATE: "rprivate",
    MountPropagation.HOST_TO_CONTAINER: "rslave",
    MountPropagation.BIDIRECTIONAL: "rshared",
}
_SHM: Final = "/dev/shm"  # noqa: S108 - the mount point itself, nothing is made in it
# A restriction that what is mounted below a volume would undo is none: OCI's words for "and all below it".
_MOUNT_OPTIONS: Final = {"noexec": "rnoexec", "nodev": "rnodev", "nosuid": "rnosuid"}
ImageVolumes = Mapping[str, Sequence[str]]  # by container_path: the directories of an image, the topmost first


@dataclass(frozen=True, slots=True)
class SandboxFiles:
    """Host paths of what a sandbox shares with its containers: three files and the directory of its /dev/shm."""

    hosts: str
    hostname: str
    resolv_conf: str
    shm: str


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Of the container alone: ``images`` that mounts name, the volumes that its image has ``declared``, its root, and
    whether SELinux labels it."""

    images: ImageVolumes
    declared: Sequence[str]
    root_path: str
    labelled: bool = False


def mounts(sandbox: Sandbox, config: ContainerConfig, files: SandboxFiles, own: OwnFiles, able: Features) -> list[Json]:
    """All mounts in the order in which they are made: by depth, so that none hides one made before it.

    A mount that the kubelet sends takes the place of a standard one at the same path; one at /dev also that of the
    device file systems below it, which are the host's then. What an image declares comes last.
    """
    asked = {clean_path(mount.container_path) for mount in config.mounts}
    standard = [mount for mount in _standard(sandbox, config, files) if not _is_covered(mount, asked)]
    pod = sandbox.config.namespaces
    wanted = [*standard, *(_asked(mount, pod, own, able) for mount in config.mounts)]
    taken = {mount["destination"] for mount in wanted}
    wanted += [_declared(path, own.root_path) for path in _declared_paths(own.declared) if path not in taken]
    return sorted(wanted, key=lambda mount: mount["destination"].count("/"))


def _declared_paths(declared: Iterable[str]) -> list[str]:
    """What an image declares as volumes, each path once and inside the root, whatever it says (CVE-2022-23648)."""
    clean = ("/" + posixpath.normpath(f"/{path}").lstrip("/") for path in declared if "\0" not in path)
    return [path for path in dict.fromkeys(clean) if path != "/"]


def _declared(path: str, root_path: str) -> Json:
    """A volume of the image: what the image has there, as a mount of its own.

    So it can be written where the root is read-only, and there is nothing to copy up: the overlay does it, file by file
    when one is written. It goes with the container, as peers' anonymous volumes do.
    """
    return _mount(path, "bind", f"{root_path}{path}", ["bind", "rprivate", "rw"])


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


def _asked(mount: Mount, pod: NamespaceOption, own: OwnFiles, able: Features) -> Json:
    """One mount of the kubelet's, checked: a volume mounted otherwise than asked is a hole or a loss."""
    path = clean_path(mount.container_path)
    _check_restrictions(mount, able)
    if mount.image is not None:
        return _image_volume(mount, path, own.images)
    if not mount.host_path.startswith("/"):
        raise InvalidArgument(
            f"the mount at {path} has host_path {mount.host_path!r}", hint="host_path is an absolute path on the node"
        )
    if mount.image_sub_path:
        raise InvalidArgument(f"the mount at {path} has image_sub_path and no image", hint="leave it out")
    if mount.propagation is MountPropagation.BIDIRECTIONAL and (spec_userns.has_own(pod) or mount.uid_mappings):
        raise InvalidArgument(
            f"the mount at {path} is BIDIRECTIONAL in a user namespace, or id-mapped",
            hint="what is mounted there can't be the node's: use HOST_TO_CONTAINER",
        )
    access = "rro" if mount.recursive_read_only else "ro" if mount.readonly else "rw"
    options = ["rbind", _PROPAGATIONS[mount.propagation], access, *_restrictions(mount), *_relabelled(mount, own)]
    return _mount(path, "bind", mount.host_path, options) | _id_mappings(mount)


def _relabelled(mount: Mount, own: OwnFiles) -> list[str]:
    """podman's word for: label it for this pod alone. CRI has none for a label that pods share."""
    if not (mount.selinux_relabel and own.labelled):
        return []
    spec_selinux.check_relabelled(mount.host_path)
    return ["Z"]


def _image_volume(mount: Mount, path: str, images: ImageVolumes) -> Json:
    """Read-only, and of no use to who wants to become another user or to reach a device."""
    faults = {
        "readonly is false": not mount.readonly,
        "host_path is set too": bool(mount.host_path),
        f"propagation is {mount.propagation.name}": mount.propagation is not MountPropagation.PRIVATE,
        f"image_sub_path is {mount.image_sub_path!r}": _leaves(mount.image_sub_path),
    }
    for fault, found in faults.items():
        if found:
            raise InvalidArgument(
                f"ImageVolumeMountFailed: the image volume at {path}: {fault}",
                hint="image volumes are readonly and PRIVATE; a sub path is relative and has no '..'",
            )
    lower = [f"lowerdir={':'.join(images[mount.container_path])}"]
    subdir = [f"X-mount.subdir={mount.image_sub_path}"] if mount.image_sub_path else []
    options = ["ro", "nosuid", "nodev", *_restrictions(mount), *lower, *subdir]
    return _mount(path, "overlay", "overlay", options) | _id_mappings(mount)


def _leaves(sub_path: str) -> bool:
    return sub_path.startswith("/") or ".." in sub_path.split("/") or "\0" in sub_path


def _restrictions(mount: Mount) -> list[str]:
    for option in mount.mount_options:
        if option not in _MOUNT_OPTIONS:
            raise InvalidArgument(
                f"the mount at {mount.container_path} has the option {option!r}",
                hint=f"options are {', '.join(_MOUNT_OPTIONS)}",
            )
    return [_MOUNT_OPTIONS[option] for option in dict.fromkeys(mount.mount_options)]


def _check_restrictions(mount: Mount, able: Features) -> None:
    path = mount.container_path
    if mount.recursive_read_only and not (mount.readonly and mount.propagation is MountPropagation.PRIVATE):
        raise InvalidArgument(
            f"the mount at {path} asks for recursive_read_only", hint="it needs readonly and propagation PRIVATE too"
        )
    if (mount.recursive_read_only or mount.mount_options) and able.no_recursive_read_only:
        raise FailedPrecondition(
            f"RROUnsupported: recursive_read_only or mount_options of the mount at {path} can't be enforced on what is "
            f"mounted below it: {able.no_recursive_read_only}",
            hint="Linux 5.12 can",
        )


def _id_mappings(mount: Mount) -> Json:
    """``uidMappings`` and ``gidMappings`` of the mount: both or none."""
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        raise InvalidArgument(
            f"the mount at {mount.container_path} has only one of uidMappings and gidMappings", hint="give both or none"
        )
    if not mount.uid_mappings:
        return {}
    spec_userns.check_mappings(f"mounts.uidMappings (at {mount.container_path})", mount.uid_mappings)
    spec_userns.check_mappings(f"mounts.gidMappings (at {mount.container_path})", mount.gid_mappings)
    return {"uidMappings": spec_userns.oci(mount.uid_mappings), "gidMappings": spec_userns.oci(mount.gid_mappings)}


def clean_path(path: str, field: str = "mounts.container_path") -> str:
    """The path without doubled and trailing slashes; ``..`` is refused, not resolved (CVE-2022-23648)."""
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidArgument(f"{field} {path!r} is not absolute and free of '..'", hint="name the place in full")
    clean = "/" + posixpath.normpath(path).lstrip("/")
    if clean == "/":
        raise InvalidArgument(f"{field} is the container's root", hint="mount below it")
    return clean
