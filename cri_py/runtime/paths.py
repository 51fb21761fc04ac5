"""Paths that a container is not to see or not to change (OCI runtime-spec, config-linux.md), before the pivot.

Each path is opened once and then known by its descriptor alone: what stands between two looks at a name may be changed
by a container that shares a volume (the runc advisories of November 2025, CVE-2025-31133 and CVE-2025-52881). That is
why it comes before the pivot: the node's /proc, by which mount(2) reaches descriptors, can be trusted.
"""

from __future__ import annotations

import errno
import os
import stat

from cri_py.errors import FailedPrecondition, KernelError
from cri_py.kernel import labels, syscalls
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_EMPTY_PATH,
    MS_BIND,
    MS_RDONLY,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
)
from cri_py.runtime.mounts import Root

_CLONE = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
_ONTO = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_INODES = 3  # for the root of a tmpfs that is to stay empty, and a number that no other has
_NULL = os.makedev(1, 3)


def make_readonly(paths: list[str], root: Root) -> None:
    """Bind paths over themselves, read-only with all that is mounted below them."""
    for path in paths:
        target = _open(root, path)
        if target < 0:
            continue
        tree = syscalls.open_tree(target, "", _CLONE | AT_RECURSIVE)
        syscalls.mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, attr_set=MOUNT_ATTR_RDONLY)
        syscalls.move_mount(tree, "", target_dirfd=target, flags=_ONTO)
        os.close(tree)
        os.close(target)


def mask(paths: list[str], root: Root, label: str = "") -> None:
    """Hide paths: files behind /dev/null, directories behind an empty read-only tmpfs, if possible one for all.

    ``label``: SELinux's, of that.
    Raises FailedPrecondition if /dev/null, which may come from a volume, is not the device: a link from there to the
    path would hide nothing.
    """
    null = empty = -1
    for path in paths:
        target = _open(root, path)
        if target < 0:
            continue  # this kernel has no such file: nothing to hide
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            null = _open_null(root, path) if null < 0 else null
            syscalls.mount(_fd_path(null), _fd_path(target), "", MS_BIND)
        elif empty < 0:
            options = labels.with_context(f"size=4k,nr_inodes={_INODES}", label)
            syscalls.mount("tmpfs", _fd_path(target), "tmpfs", MS_RDONLY, options)
            empty = _open_empty(root, path)
        else:
            syscalls.mount(_fd_path(empty), _fd_path(target), "", MS_BIND)
        os.close(target)
    for fd in (null, empty):
        if fd >= 0:
            os.close(fd)


def _open(root: Root, path: str) -> int:
    """An O_PATH descriptor, -1 if there is nothing."""
    return syscalls.openat2(root.fd, path, os.O_PATH, 0, _INSIDE, missing_ok=True)


def _fd_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _open_empty(root: Root, path: str) -> int:
    """The tmpfs that was mounted at ``path``, -1 if what the name leads to by now is another place."""
    fd = _open(root, path)
    if fd >= 0 and os.fstatvfs(fd).f_files != _INODES:
        os.close(fd)
        return -1
    return fd


def _open_null(root: Root, path: str) -> int:
    try:
        fd = _open(root, "/dev/null")
        found = os.fstat(fd) if fd >= 0 else None
        if found is not None and stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL:
            return fd
    except KernelError as error:
        if error.errno != errno.ELOOP:
            raise
    raise FailedPrecondition(
        f"{path} can't be masked: /dev/null is not the device 1:3 in the container",
        hint="a volume at /dev has to bring the device nodes, as the node's own /dev does",
    )
