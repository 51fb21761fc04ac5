"""The container's view of the filesystem: planned as data, then mounted by code too dull to be wrong.

Everything happens in the mount namespace of the new process, so that nothing is to be unmounted afterwards: the
namespace dies with its last process. Every target is resolved inside the root by openat2(2), and mounted on through
/proc/self/fd, so that a symbolic link in the image can't lead a mount out of the container.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, NamedTuple

from cri_py.errors import FailedPrecondition, KernelError
from cri_py.kernel import labels, syscalls, userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
    MS_UNBINDABLE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
)

# mount(8)'s words for mount(2)'s flags: (bits to set, bits to clear)
_FLAGS = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "noatime": (MS_NOATIME, 0),
    "nodiratime": (MS_NODIRATIME, 0),
    "relatime": (MS_RELATIME, 0),
    "strictatime": (MS_STRICTATIME, 0),
    "bind": (MS_BIND, 0),
    "rbind": (MS_BIND | MS_REC, 0),
}
_PROPAGATION = {
    "private": MS_PRIVATE,
    "rprivate": MS_PRIVATE | MS_REC,
    "slave": MS_SLAVE,
    "rslave": MS_SLAVE | MS_REC,
    "shared": MS_SHARED,
    "rshared": MS_SHARED | MS_REC,
    "unbindable": MS_UNBINDABLE,
    "runbindable": MS_UNBINDABLE | MS_REC,
}
# The same for a mount and all that is mounted below it: mount_setattr(2)'s attributes.
_BELOW = {
    "rro": MOUNT_ATTR_RDONLY,
    "rnosuid": MOUNT_ATTR_NOSUID,
    "rnodev": MOUNT_ATTR_NODEV,
    "rnoexec": MOUNT_ATTR_NOEXEC,
}
_OURS = frozenset(("ridmap", "Z"))  # words for us, not for the file system
# File systems that are made for the container and can have one label for all. proc and sysfs can't.
_LABELLED = frozenset(("tmpfs", "devpts", "overlay", "mqueue", "cgroup"))
_SUBDIR = "X-mount.subdir="
_LOWER = "lowerdir="
# a remount of a bind mount may only add to these
_BIND_ATTRIBUTES = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME | MS_RELATIME


OWN = "own"  # a MountOp's fstype: what is at its destination already, as a mount of its own


class MountOp(NamedTuple):
    """One mount of the OCI document, its options sorted into what mount(2) takes."""

    fstype: str
    source: str
    destination: str
    flags: int
    propagation: int  # 0: leave as it comes
    options: str  # for the filesystem itself
    below: int = 0  # attributes that it and all mounts below it get, MOUNT_ATTR_…
    uid_map: str = ""  # id-mapped by these, as kernel.userns has them; "" is not
    gid_map: str = ""
    subdir: str = ""  # what of the source is to be seen, resolved inside it
    lower: tuple[str, ...] = ()  # an image's layers, the topmost first
    label: str = ""  # SELinux's, of the file system that is mounted
    relabel: bool = False  # whether the source gets the container's label

    @property
    def apart(self) -> bool:
        """Whether it has to be taken as a detached copy before it is mounted (``runtime.trees``)."""
        return bool(self.below or self.uid_map or self.lower)


def plan(mounts: list[dict[str, Any]], root_path: str = "/dev/null", label: str = "") -> list[MountOp]:
    """The document's ``mounts`` in order (OCI runtime-spec, config.md#mounts).

    ``root_path``: the document's; a bind from below it is of the container's own files, an image's volume. ``label``:
    its ``linux.mountLabel``.
    """
    return [_operation(mount, f"{root_path}/", label) for mount in mounts]


def _operation(mount: dict[str, Any], own: str, label: str) -> MountOp:
    flags, propagation, below, subdir, lower, rest = 0, 0, 0, "", "", []
    options = mount.get("options", ())
    for option in options:
        if option in _FLAGS:
            added, removed = _FLAGS[option]
            flags = (flags | added) & ~removed
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option in _BELOW:
            below |= _BELOW[option]
        elif option.startswith(_SUBDIR):
            subdir = option.removeprefix(_SUBDIR)
        elif option.startswith(_LOWER):
            lower = option.removeprefix(_LOWER)
        elif option not in _OURS:
            rest.append(option)
    fstype = mount.get("type", "")
    if fstype == "bind":
        flags |= MS_BIND
        fstype = OWN if mount["source"].startswith(own) else fstype
    return MountOp(
        fstype,
        mount.get("source", fstype),
        mount["destination"],
        flags,
        propagation,
        ",".join(rest),
        below,
        userns.text_of(mount.get("uidMappings", [])),
        userns.text_of(mount.get("gidMappings", [])),
        subdir,
        tuple(filter(None, lower.split(":"))),
        label if fstype in _LABELLED else "",
        "Z" in options,
    )


class Progress:
    """A file that says which of the node's paths is being mounted: who waits for a mount that hangs can tell its name,
    which the process that hangs can't."""

    def __init__(self, bundle: str, operations: list[MountOp]) -> None:
        """The file ``mounting`` in the bundle, if anything is mounted but the pod's own files, two levels above."""
        self._own = f"{os.path.dirname(os.path.dirname(bundle))}/"
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(f"{bundle}/mounting", flags, 0o600) if any(map(self._may_hang, operations)) else -1

    def _may_hang(self, operation: MountOp) -> bool:
        return operation.fstype == "bind" and not operation.source.startswith(self._own)

    def at(self, operation: MountOp) -> None:
        """This is next."""
        if self._fd >= 0 and self._may_hang(operation):
            os.pwrite(self._fd, os.fsencode(f"{operation.source}\n"), 0)

    def end(self) -> None:
        """All is mounted."""
        if self._fd >= 0:
            os.pwrite(self._fd, b"\n", 0)
            os.close(self._fd)


def make_sources(operations: list[MountOp]) -> None:
    """Make directories of the host paths that are not there."""
    for operation in operations:
        if operation.fstype == "bind" and not os.path.lexists(operation.source):
            os.makedirs(operation.source, 0o755, exist_ok=True)


class Root:
    """The container's root while it is still a directory of the host's tree."""

    def __init__(self, path: str = "", fd: int = -1) -> None:
        """By its path, or the descriptor of a mount, whose owner the caller remains."""
        self.fd = fd if fd >= 0 else os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
        """Open ``path`` with every link and ``..`` resolved inside the root; magic links are refused."""
        return syscalls.openat2(self.fd, path, flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)

    def target(self, path: str, *, directory: bool) -> int:
        """An O_PATH descriptor of a mount target, made if it is missing."""
        try:
            return self.open(path)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
        if directory:
            return self.make_directories(path)
        parent, name = os.path.split(path.rstrip("/"))
        parent_fd = self.make_directories(parent)
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent_fd))
        except FileExistsError:
            return self.target(_behind(parent_fd, parent, name), directory=False)
        finally:
            os.close(parent_fd)
        return self.open(path)

    def make_directories(self, path: str, mode: int = 0o755) -> int:
        """Like mkdir -p inside the root; returns an O_PATH descriptor of the last directory."""
        reached = ""
        for part in path.split("/"):
            if part in ("", "."):
                continue
            parent_fd = self.open(reached or "/", os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(part, mode, dir_fd=parent_fd)
            except FileExistsError:
                self._make_goal(parent_fd, reached, part, mode)
            finally:
                os.close(parent_fd)
            reached = f"{reached}/{part}"
        return self.open(reached or "/", os.O_PATH | os.O_DIRECTORY)

    def _make_goal(self, parent_fd: int, reached: str, part: str, mode: int) -> None:
        """A directory needs nothing, nor does a link to one; the goal of a link that leads nowhere yet is made."""
        try:
            os.close(self.open(f"{reached}/{part}"))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            os.close(self.make_directories(_behind(parent_fd, reached, part), mode))


def _behind(parent_fd: int, parent: str, name: str) -> str:
    """Where a link in ``parent`` leads: /run for /var/run. Images have links to what only a running system makes."""
    return os.path.join(parent or "/", os.readlink(name, dir_fd=parent_fd))


def _fd_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def execute(operation: MountOp, root: Root, tree: int = -1) -> None:
    """Mount one operation inside ``root``. Raises KernelError that names source and destination.

    ``tree``: what ``runtime.trees`` has taken for it, instead of its source; stays open.
    """
    bind = bool(operation.flags & MS_BIND)
    if tree >= 0:
        directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    else:
        directory = not bind or operation.fstype == OWN or is_directory(operation)
    fd = _place(operation, root, directory=directory)
    try:
        if tree >= 0:
            syscalls.move_mount(tree, "", target_dirfd=fd, flags=MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
        elif operation.fstype == OWN:
            syscalls.mount(_fd_path(fd), _fd_path(fd), "", MS_BIND)
        elif bind:
            _bind(operation, root, fd)
        elif operation.fstype == "sysfs":
            _mount_sysfs(operation, root, fd)
        elif operation.fstype == "mqueue":
            _mount_mqueue(operation, root, fd)
        else:
            options = labels.with_context(operation.options, operation.label)
            syscalls.mount(operation.source, _fd_path(fd), operation.fstype, operation.flags, options)
    except KernelError as error:
        if error.errno == errno.ENOTDIR:
            raise FailedPrecondition(
                f"{operation.source} can't be mounted on {operation.destination}: one is a directory, the other is not",
                hint="mount a file on a file, a directory on a directory",
            ) from error
        raise named(error, operation) from error
    finally:
        os.close(fd)


_ASTRAY = frozenset(
    (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EEXIST, errno.EROFS, errno.EXDEV, errno.EINVAL, errno.ENAMETOOLONG)
)
_FORBIDDEN = frozenset((errno.EACCES, errno.EPERM))


def _place(operation: MountOp, root: Root, *, directory: bool) -> int:
    """An O_PATH descriptor of the operation's target. Raises FailedPrecondition if image or volumes are in the way."""
    if operation.fstype in ("proc", "sysfs"):
        _refuse_link(operation, root)
    try:
        return root.target(operation.destination, directory=directory)
    except OSError as error:
        if error.errno in _ASTRAY:
            hint = "a link, a file or a read-only volume of the image or the pod is in the way: mount it elsewhere"
        elif error.errno in _FORBIDDEN:
            hint = "root of the pod's user namespace has no rights there: let it write or make the directory before"
        else:
            raise
        raise FailedPrecondition(
            f"{operation.source} can't be mounted: {operation.destination} can't be reached or made in the container: "
            f"{error.strerror}",
            hint=hint,
        ) from error


def _refuse_link(operation: MountOp, root: Root) -> None:
    """What hides parts of /proc and /sys finds them by their path: a link there could be turned to another place
    between the mount and that, from a container that shares a volume (CVE-2019-19921)."""
    try:
        os.close(
            syscalls.openat2(
                root.fd, operation.destination, os.O_PATH | os.O_DIRECTORY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS
            )
        )
    except KernelError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            return  # not there: it will be made
        raise FailedPrecondition(
            f"{operation.destination} is no directory in the image", hint="remove the link or file from the image"
        ) from error


def is_directory(operation: MountOp) -> bool:
    """Whether a bind's source is one. CRI asks for an error where the node has no such path (Mount.host_path)."""
    try:
        return stat.S_ISDIR(os.stat(operation.source).st_mode)
    except OSError as error:
        raise FailedPrecondition(
            f"the volume at {operation.destination} can't be mounted: {operation.source}: {error.strerror}",
            hint="the host path has to be there before the container is created",
        ) from error


def named(error: KernelError, operation: MountOp) -> KernelError:
    """The same error, told of the whole mount."""
    subject = f"{operation.source or operation.fstype} on {operation.destination}"
    return KernelError(error.errno or 0, error.strerror or "", error.syscall, subject)


def _bind(operation: MountOp, root: Root, fd: int) -> None:
    syscalls.mount(operation.source, _fd_path(fd), "", operation.flags & (MS_BIND | MS_REC))
    attributes = operation.flags & _BIND_ATTRIBUTES
    if not attributes and not operation.propagation:
        return
    mounted = root.open(operation.destination)  # the descriptor from before shows what lies under the mount
    try:
        if attributes:
            kept = _attributes_of(mounted)
            syscalls.mount("", _fd_path(mounted), "", MS_REMOUNT | MS_BIND | attributes | kept)
        if operation.propagation:
            syscalls.mount("", _fd_path(mounted), "", operation.propagation)
    finally:
        os.close(mounted)


def _mount_sysfs(operation: MountOp, root: Root, fd: int) -> None:
    """Read-only, if at all, as a mount: all of a network namespace share one superblock, and if that became read-only
    with the first container of a pod, so would /sys of a privileged one that comes later."""
    syscalls.mount(operation.source, _fd_path(fd), "sysfs", operation.flags & ~MS_RDONLY, operation.options)
    if operation.flags & MS_RDONLY:
        mounted = root.open(operation.destination)
        try:
            syscalls.mount("", _fd_path(mounted), "", MS_REMOUNT | MS_BIND | operation.flags)
        finally:
            os.close(mounted)


def _mount_mqueue(operation: MountOp, root: Root, fd: int) -> None:
    """All of an IPC namespace share one superblock, whose label can't be chosen any more; that of its directory can."""
    syscalls.mount(operation.source, _fd_path(fd), "mqueue", operation.flags, operation.options)
    if not operation.label:
        return
    mounted = root.open(operation.destination)
    try:
        labels.give(_fd_path(mounted), operation.label, follow=True)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # as it is in a user namespace, whose mounts keep no labels
            raise
    finally:
        os.close(mounted)


def _attributes_of(fd: int) -> int:
    """The flags that a mount has already; a remount has to repeat them (ST_* and MS_* agree up to noexec)."""
    flags = os.fstatvfs(fd).f_flag
    kept = flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    return kept | (MS_NOATIME if flags & os.ST_NOATIME else 0) | (MS_NODIRATIME if flags & os.ST_NODIRATIME else 0)


def mount_cgroup(operation: MountOp, root: Root, groups: tuple[str, ...]) -> None:
    """/sys/fs/cgroup: a bind of the one group of v2, or a directory with a bind of each hierarchy's of v1.

    ``groups``: what is to be seen of each hierarchy. In a cgroup namespace a bind of the group that is its root looks
    like a file system of its own. That can't be had in a user namespace without one (EPERM), nor where a volume has
    brought the node's /sys (EBUSY).
    """
    fd = root.target(operation.destination, directory=True)
    flags = operation.flags & ~MS_BIND
    try:
        if len(groups) == 1:
            _bind(operation._replace(source=groups[0], flags=flags | MS_BIND), root, fd)
        else:
            options = labels.with_context("mode=755,size=64k", operation.label)
            syscalls.mount("tmpfs", _fd_path(fd), "tmpfs", flags & ~MS_RDONLY, options)
            _bind_groups(operation.destination, root, groups, flags)
    except KernelError as error:
        raise named(error, operation) from error
    finally:
        os.close(fd)


def _bind_groups(destination: str, root: Root, groups: tuple[str, ...], flags: int) -> None:
    """One detached copy per hierarchy, made read-only before it is seen, moved to its place; then the directory."""
    attributes = (MOUNT_ATTR_RDONLY if flags & MS_RDONLY else 0) | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    top = root.open(destination, os.O_PATH | os.O_DIRECTORY)
    for group in groups:
        name = group.split("/")[4]  # /sys/fs/cgroup/NAME/…
        os.mkdir(name, 0o555, dir_fd=top)
        copy = syscalls.open_tree(AT_FDCWD, group, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        syscalls.mount_setattr(copy, "", AT_EMPTY_PATH, attr_set=attributes | MOUNT_ATTR_NOEXEC)
        syscalls.move_mount(copy, name, target_dirfd=top)
        os.close(copy)
    if flags & MS_RDONLY:
        syscalls.mount("", _fd_path(top), "", MS_REMOUNT | MS_BIND | flags)
    os.close(top)


# ------------------------------------------------------------------ devices

_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)


def make_devices(
    devices: list[dict[str, Any]], root: Root, directory: str = "/dev", owner: tuple[int, int] = (0, 0)
) -> None:
    """The device nodes of the document and the links that OCI runtime-spec (config-linux.md#default-devices) asks.

    ``directory``: where /dev is in ``root``; ``owner``: (uid, gid) of the links.
    """
    for device in devices:
        make_device(device, root)
    fd = root.open(directory, os.O_PATH | os.O_DIRECTORY)
    for target, name in _LINKS:
        try:
            os.symlink(target, name, dir_fd=fd)
            if owner != (0, 0):
                os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            continue  # the image or a volume brings its own
    os.close(fd)


def make_device(device: dict[str, Any], root: Root) -> None:
    """One device node, at its path in ``root``."""
    parent, name = os.path.split(device["path"])
    fd = root.make_directories(parent)
    kinds = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
    number = os.makedev(device.get("major", 0), device.get("minor", 0))
    try:
        # The mode is whole, the umask is 0 here; a chmod afterwards would follow what somebody has put there meanwhile.
        os.mknod(name, kinds[device["type"]] | device.get("fileMode", 0o666), number, dir_fd=fd)
        os.chown(name, device.get("uid", 0), device.get("gid", 0), dir_fd=fd, follow_symlinks=False)
    except FileExistsError:
        _check_same(device["path"], os.stat(name, dir_fd=fd, follow_symlinks=False), kinds[device["type"]], number)
    finally:
        os.close(fd)


def _check_same(path: str, found: os.stat_result, kind: int, number: int) -> None:
    """What the image or a volume has there is fine only if it is the very device that was asked for."""
    if stat.S_IFMT(found.st_mode) != kind or (kind != stat.S_IFIFO and found.st_rdev != number):
        raise FailedPrecondition(
            f"the device {path} can't be made: the image or a volume has something else there",
            hint="name another place in the container",
        )


# --------------------------------------------------------------- after pivot


def pivot(root: Root) -> None:
    """Make ``root`` the namespace's root and let the host's tree go."""
    os.fchdir(root.fd)
    # Old and new root on the same place: no directory in the image has to be there for the old one.
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", MNT_DETACH)  # stays here: no mount of the old tree is a peer of the host's any more
    os.chdir("/")


def make_root_readonly() -> None:
    """The root's mount itself, not what is mounted inside."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    syscalls.mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | _attributes_of(fd))
    os.close(fd)
