"""What has to be taken of the node's files before the container's own place is entered: detached copies of mounts.

Most volumes are bound by their path, in the container's mount namespace, with mount(2). These can't be:

- one that shares its mounts with the node has to be taken while this namespace's mounts are still peers of the node's;
- one that is id-mapped, or restricted with all that is mounted below it, must get that before anybody sees it;
- with a user namespace everything of the node's: inside, nobody has rights over it.

A copy has its last attributes already, so that it only has to be moved to its place.
"""

from __future__ import annotations

import errno
import os
import stat

from cri_py.errors import FailedPrecondition, KernelError
from cri_py.kernel import syscalls, userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_STRING,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
)
from cri_py.runtime import overlay
from cri_py.runtime.mounts import MountOp, Progress, is_directory, named

_ATTRIBUTES = (
    (MS_RDONLY, MOUNT_ATTR_RDONLY),
    (MS_NOSUID, MOUNT_ATTR_NOSUID),
    (MS_NODEV, MOUNT_ATTR_NODEV),
    (MS_NOEXEC, MOUNT_ATTR_NOEXEC),
)


_STAGE = "/dev"


class Namespaces:
    """User namespaces by their mappings, for id-mapped mounts: the pod's own, and others that are made when needed."""

    def __init__(self, uid_map: str = "", gid_map: str = "", own_fd: int = -1) -> None:
        """The pod's, if it has one; ``own_fd`` is taken over."""
        self.own_fd = own_fd
        self._fds = {(uid_map, gid_map): own_fd} if own_fd >= 0 else {}

    def fd_of(self, operation: MountOp) -> int:
        """-1 for an operation that is not to be mapped."""
        key = operation.uid_map, operation.gid_map
        if not operation.uid_map:
            return -1
        if key not in self._fds:
            self._fds[key] = userns.open_new(*key)
        return self._fds[key]

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


def take_shared(operations: list[MountOp], progress: Progress) -> list[int]:
    """For each operation that shares its mounts with the node a copy of its source, else -1. The caller closes them.

    To be taken while this namespace's mounts are still peers of the node's: the copies stay so. Others that are to hear
    of the node's mounts are looked at for whether they can.
    """
    return [_take_shared(operation, progress) for operation in operations]


def _take_shared(operation: MountOp, progress: Progress) -> int:
    if operation.fstype != "bind" or not operation.propagation & (MS_SHARED | MS_SLAVE):
        return -1
    progress.at(operation)
    is_directory(operation)  # for its error
    _check_propagation(operation)
    return _take_bind(operation, -1) if operation.propagation & MS_SHARED else -1


def take_rest(
    operations: list[MountOp],
    trees: list[int],
    namespaces: Namespaces,
    place: str,
    progress: Progress,
    *,
    everything: bool = False,
) -> None:
    """Fill in the copies of what else can't be bound by its path; ``everything``: of all that is the node's.

    ``place``: an empty directory of this mount namespace, which must not share its mounts with the node any more.
    """
    for number, operation in enumerate(operations):
        if trees[number] >= 0:
            continue
        progress.at(operation)
        if operation.lower:
            userns_fd = namespaces.own_fd if everything else namespaces.fd_of(operation)
            trees[number] = _take_image(operation, place, userns_fd)
        elif operation.fstype == "bind" and (everything or operation.apart):
            trees[number] = _take_bind(operation, namespaces.fd_of(operation))


def _take_bind(operation: MountOp, userns_fd: int) -> int:
    is_directory(operation)  # for its error
    recursive = AT_RECURSIVE if operation.flags & MS_REC else 0
    try:
        tree = syscalls.open_tree(AT_FDCWD, operation.source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive)
        _dress(tree, operation, recursive)
        if userns_fd >= 0:
            _map(tree, operation, recursive, userns_fd)
    except KernelError as error:
        raise named(error, operation) from error
    return tree


def _dress(tree: int, operation: MountOp, recursive: int) -> None:
    """Its attributes and its propagation, in as few calls as they take."""
    own = sum(attribute for flag, attribute in _ATTRIBUTES if operation.flags & flag)
    propagation = operation.propagation & ~MS_REC
    if operation.below or propagation:
        flags = AT_EMPTY_PATH | recursive
        syscalls.mount_setattr(tree, "", flags, attr_set=operation.below, propagation=propagation)
    if own & ~operation.below:
        syscalls.mount_setattr(tree, "", AT_EMPTY_PATH, attr_set=own)


def _map(tree: int, operation: MountOp, recursive: int, userns_fd: int) -> None:
    flags = AT_EMPTY_PATH | recursive
    try:
        syscalls.mount_setattr(tree, "", flags, attr_set=MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
    except KernelError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
        raise FailedPrecondition(
            f"the volume at {operation.destination} can't be id-mapped: the file system of {operation.source}, or one "
            "that is mounted below it, does not support it, or is mapped already",
            hint="put the volume on another file system (ext4, xfs, btrfs, tmpfs), or run the pod in the node's",
        ) from error


def _take_image(operation: MountOp, place: str, userns_fd: int) -> int:
    try:
        tree = overlay.take_image(operation.lower, operation.subdir, place, userns_fd, operation.label)
        _dress(tree, operation, 0)
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise named(error, operation) from error
        raise FailedPrecondition(
            f"ImageVolumeMountFailed: the image of the volume at {operation.destination} has no {operation.subdir!r}",
            hint="image_sub_path names a directory or a file of the image",
        ) from error
    return tree


def stage(trees: list[int]) -> list[int]:
    """Put the trees where a mount namespace that is made next, in a user namespace, gets copies of them: what comes to
    it that way is locked. Nobody inside can take a part of it off, to see what it hides, or take an attribute from it
    (mount_namespaces(7), "Restrictions on mount namespaces"). Returns the numbers of those that were there.

    The place is the node's /dev, in this mount namespace alone; everybody can walk there.
    """
    syscalls.mount("tmpfs", _STAGE, "tmpfs", 0, "mode=755")
    staged = [number for number, tree in enumerate(trees) if tree >= 0]
    for number in staged:
        place = f"{_STAGE}/{number}"
        if stat.S_ISDIR(os.fstat(trees[number]).st_mode):
            os.mkdir(place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        syscalls.move_mount(trees[number], place)
        os.close(trees[number])
    return staged


def take_staged(trees: list[int], staged: list[int]) -> None:
    """The same, taken up in that mount namespace."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    for number in staged:
        trees[number] = syscalls.open_tree(AT_FDCWD, f"{_STAGE}/{number}", flags)


def take_devices(uid: int, gid: int, operation: MountOp) -> int:
    """A tmpfs for /dev that belongs to ``uid`` and ``gid`` of the node: one that is made here can hold device nodes,
    one that is made in a user namespace can't. The caller owns it."""
    context = syscalls.fsopen("tmpfs")
    label = (f"context={operation.label}",) if operation.label else ()
    try:
        for option in (*operation.options.split(","), f"uid={uid}", f"gid={gid}", *label):
            name, _, value = option.partition("=")
            syscalls.fsconfig(context, FSCONFIG_SET_STRING, name, value)
        syscalls.fsconfig(context, FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME)
    finally:
        os.close(context)


def _check_propagation(operation: MountOp) -> None:
    """Where nothing would travel, one who waits for it would wait for ever: CRI asks for an error for BIDIRECTIONAL,
    and peers refuse HOST_TO_CONTAINER too (mount_namespaces(7), Mount.propagation)."""
    fd = os.open(operation.source, os.O_PATH | os.O_CLOEXEC)
    try:
        number = _field(f"/proc/self/fdinfo/{fd}", b"mnt_id:")
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", "rb") as file:
        line = next((line for line in file if line.split(b" ", 1)[0] == number), b"")
    tags = {tag.partition(b":")[0] for tag in line.partition(b" - ")[0].split(b" ")[6:]}
    both = bool(operation.propagation & MS_SHARED)
    if not tags & ({b"shared"} if both else {b"shared", b"master"}):
        raise FailedPrecondition(
            f"the volume at {operation.destination} can't be {'bidirectional' if both else 'host to container'}: "
            f"{operation.source} is on {'no shared' if both else 'a private'} mount",
            hint="mount --make-rshared the mount that it is on, or ask for another propagation",
        )


def _field(path: str, name: bytes) -> bytes:
    with open(path, "rb") as file:
        return next(line.split()[1] for line in file if line.startswith(name))
