"""A /dev/null for processes in containers, by which they can't change the node's.

Whoever has a descriptor has the inode behind it: to root in a container, even without capabilities, fchmod(2) of an
inherited /dev/null is allowed, and 0000 would close the node's own to every other user. So it is opened through a
detached mount that is read-only: a device can be written to there, but neither its mode nor its owner nor its times.
"""

from __future__ import annotations

import errno
import os

from cri_py.errors import KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MOUNT_ATTR_RDONLY,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
)

_PATH = "/dev/null"
_mounted: list[str] = []  # where it is opened: made once in a process, and with its descriptor inherited by a fork


def open_null(flags: int) -> int:
    """A descriptor of its own, close-on-exec, which the caller owns. Raises OSError."""
    if not _mounted:
        _mounted.append(_mount())
    return os.open(_mounted[0], flags | os.O_CLOEXEC)


def _mount() -> str:
    """The path of the mount, whose descriptor stays open."""
    try:
        fd = syscalls.open_tree(AT_FDCWD, _PATH, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        return _PATH  # without CAP_SYS_ADMIN, where no container runs
    try:
        syscalls.mount_setattr(fd, "", AT_EMPTY_PATH, attr_set=MOUNT_ATTR_RDONLY)
    except BaseException:
        os.close(fd)
        raise
    return f"/proc/self/fd/{fd}"
