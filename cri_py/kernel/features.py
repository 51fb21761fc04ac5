"""What this kernel can do of what pods may ask for, found out by doing it: no version tells, since distributions carry
patches back and forth, and every file system supports id-mapped mounts or doesn't."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial

from cri_py.kernel import syscalls, userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_NEWNS,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
)

_FIRST = 65536
_MAP = f"0 {_FIRST} 65536\n"
_CLONE = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC


def probe(root: str) -> tuple[str, str]:
    """Why what is mounted below a mount can't be made read-only, and why there are no user namespaces; "" if it can.

    ``root``: the daemon's, where layers lie or will. The caller must be single-threaded; 10 ms."""
    place = os.path.abspath(root)
    while not os.path.isdir(place):
        place = os.path.dirname(place)  # what is made here later is on the same file system
    try:
        directory = tempfile.mkdtemp(prefix=".cri_py-probe-", dir=place)
    except OSError as error:
        return _failure_of(_restrict_below), f"nothing can be made in {place}: {error.strerror}"
    try:
        return _failure_of(_restrict_below), _failure_of(partial(_map_layers, directory))
    finally:
        shutil.rmtree(directory)


def _failure_of(attempt: Callable[[], None]) -> str:
    """What ``attempt`` fails with, in a process with a mount namespace of its own; "" if it succeeds."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    try:
        child = syscalls.clone3(CLONE_NEWNS)
    except OSError as error:
        os.close(told)
        os.close(tell)
        return str(error)
    if child == 0:
        try:
            syscalls.mount("", "/", "", MS_REC | MS_PRIVATE)
            attempt()
            os._exit(0)
        except BaseException as error:
            os.write(tell, str(error).encode("utf-8", "surrogateescape"))
        finally:
            os._exit(1)
    os.close(tell)
    with os.fdopen(told, "rb") as said:
        text = said.read().decode("utf-8", "surrogateescape")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text or (f"the attempt ended with {status}" if status else "")


def _restrict_below() -> None:
    """mount_setattr(2) for a mount and all below it (Linux 5.12)."""
    tree = syscalls.open_tree(AT_FDCWD, "/", _CLONE | AT_RECURSIVE)
    syscalls.mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, attr_set=MOUNT_ATTR_RDONLY)


def _map_layers(directory: str) -> None:
    """A user namespace, an id-mapped mount of what lies in ``directory``, an overlay of layers on it (Linux 5.19)."""
    owner = userns.open_new(_MAP, _MAP)
    for name in ("layers/1", "upper", "work", "target"):
        os.makedirs(f"{directory}/{name}")
    os.close(os.open(f"{directory}/layers/1/file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    tree = syscalls.open_tree(AT_FDCWD, f"{directory}/layers", _CLONE)
    syscalls.mount_setattr(tree, "", AT_EMPTY_PATH, attr_set=MOUNT_ATTR_IDMAP, userns_fd=owner)
    syscalls.move_mount(tree, f"{directory}/target")
    os.fchdir(tree)
    options = f"lowerdir=1,upperdir={directory}/upper,workdir={directory}/work"
    syscalls.mount("overlay", f"{directory}/target", "overlay", 0, options)
    seen = os.stat(f"{directory}/target/file").st_uid
    if seen != _FIRST:
        raise OSError(f"a layer's file belongs to {seen} through an id-mapped mount, not to {_FIRST}")
