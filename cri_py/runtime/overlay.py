"""Images' layers as one tree: a container's root, and image volumes.

With a user namespace the layers are seen through one id-mapped mount of the directory that holds them all: however many
there are, it is one mount and two system calls (a mount for each layer took minutes where many pods start at once).
"""

from __future__ import annotations

import os
from typing import Any

from cri_py.kernel import labels, syscalls
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MNT_DETACH,
    MOUNT_ATTR_IDMAP,
    MOVE_MOUNT_F_EMPTY_PATH,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
)

_PAGE = 4096
_CLONE = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC


def mount_root(rootfs: dict[str, Any], target: str, userns_fd: int = -1, label: str = "") -> None:
    """Mount an image's layers under a writable one.

    ``rootfs``: {lower (the topmost first), upper, work}; ``userns_fd``: whose ids the layers' files get; ``label``:
    what SELinux sees on all files.
    ``volatile`` leaves out the sync at unmount (3 ms); it also means that the kernel refuses to mount this upper
    directory again after a crash, which we never do: a container's root is mounted once.
    """
    relative = _enter(rootfs["lower"], target, userns_fd)
    options = f"lowerdir={':'.join(relative)},upperdir={rootfs['upper']},workdir={rootfs['work']},volatile"
    options = labels.with_context(options, label)
    if len(options) < _PAGE:
        syscalls.mount("overlay", target, "overlay", 0, options)
    else:
        _mount_deep(relative, target, label, upperdir=rootfs["upper"], workdir=rootfs["work"])
    os.chdir("/")


def take_image(lower: tuple[str, ...], subdir: str, place: str, userns_fd: int = -1, label: str = "") -> int:
    """A detached mount of an image's files, or of what is at ``subdir`` inside; the caller owns it.

    ``place``: a directory on which it may be mounted for the moment, in this mount namespace alone. ``label``: what
    SELinux sees on its files. Raises KernelError, with ENOENT or ENOTDIR if there is no ``subdir``, whose links are
    resolved inside the image.
    """
    relative = _enter(list(lower), place, userns_fd)
    mounted = 1 if userns_fd >= 0 else 0
    if len(relative) == 1 and label:  # a layer belongs to many pods: only a mount of its own can have a label
        relative.append(_make_empty(place))
    if len(relative) == 1:  # overlayfs wants two
        top = os.open(relative[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        options = labels.with_context(f"lowerdir={':'.join(relative)}", label)
        if len(options) < _PAGE:
            syscalls.mount("overlay", place, "overlay", 0, options)
        else:
            _mount_deep(relative, place, label)
        mounted += 1
        top = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("/")
    inside = -1
    try:
        inside = syscalls.openat2(top, subdir or ".", os.O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        return syscalls.open_tree(inside, "", _CLONE | AT_EMPTY_PATH)
    finally:
        for fd in (top, inside):
            if fd >= 0:
                os.close(fd)
        for _ in range(mounted):
            syscalls.umount2(place, MNT_DETACH)


def _make_empty(place: str) -> str:
    """An empty directory beside ``place``, as the second layer that overlayfs wants."""
    path = f"{place}.empty"
    os.makedirs(path, exist_ok=True)
    return path


def _enter(lower: list[str], target: str, userns_fd: int) -> list[str]:
    """Go where relative paths, short enough for a hundred layers within the page that mount(2) takes, lead to them."""
    above = os.path.commonpath(lower) if len(lower) > 1 else os.path.dirname(lower[0])
    if userns_fd < 0:
        os.chdir(above)
    else:
        tree = syscalls.open_tree(AT_FDCWD, above, _CLONE)
        syscalls.mount_setattr(tree, "", AT_EMPTY_PATH, attr_set=MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
        # Attached, since overlayfs takes no layers from detached mounts before Linux 6.15; what it is mounted on next
        # hides it.
        syscalls.move_mount(tree, target, flags=MOVE_MOUNT_F_EMPTY_PATH)
        os.fchdir(tree)
        os.close(tree)
    return [os.path.relpath(path, above) for path in lower]


def _mount_deep(lower: list[str], target: str, label: str, **directories: str) -> None:
    """The same, layer by layer through the new mount API (``lowerdir+``, Linux 6.5)."""
    context = syscalls.fsopen("overlay")
    try:
        for path in lower:
            syscalls.fsconfig(context, FSCONFIG_SET_STRING, "lowerdir+", path)
        for name, path in directories.items():
            syscalls.fsconfig(context, FSCONFIG_SET_STRING, name, path)
        if label:
            syscalls.fsconfig(context, FSCONFIG_SET_STRING, "context", label)
        if directories:
            syscalls.fsconfig(context, FSCONFIG_SET_FLAG, "volatile")
        syscalls.fsconfig(context, FSCONFIG_CMD_CREATE)
        fd = syscalls.fsmount(context)
    finally:
        os.close(context)
    try:
        syscalls.move_mount(fd, target)
    finally:
        os.close(fd)
