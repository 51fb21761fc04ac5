"""A directory tree becomes a layer's tar, the same bytes for the same tree: names in order, no access times.

PAX (POSIX.1-2017), with extended attributes as libarchive and Go write them (``SCHILY.xattr.``). An overlay's upper
directory is translated: a character device 0:0 hides a name, which a layer says by a file ``.wh.NAME``, and the
attribute ``trusted.overlay.opaque`` hides what lies below, which a layer says by ``.wh..wh..opq`` (image-spec layer.md,
kernel Documentation/filesystems/overlayfs.rst). Blocks; sockets are left out, as in every layer.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Final

from cri_py.errors import FailedPrecondition, Internal

_OVERLAY: Final = "trusted.overlay."
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
# What makes one host's file and says nothing of it on another.
_LEFT_OUT: Final = frozenset({"security.selinux", "system.posix_acl_access", "system.posix_acl_default"})


def write_layer(root: str, out: BinaryIO, *, overlay: bool = False) -> None:
    """Write the tree below ``root`` as a tar to ``out``. ``overlay``: it is an overlay's upper directory.

    Raises FailedPrecondition for what only this kernel's overlay can read (a redirected directory), Internal if the
    tree can't be read.
    """
    seen: dict[tuple[int, int], str] = {}
    try:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
            for name in _walk(root):
                _add(tar, root, name, seen, overlay=overlay)
    except OSError as error:
        raise Internal(f"{root} can't be made a layer: {error}") from error


def _walk(root: str) -> Iterator[str]:
    """The names below the root, relative, each directory before what is in it."""
    waiting = sorted(os.listdir(root), reverse=True)
    while waiting:
        name = waiting.pop()
        yield name
        path = f"{root}/{name}"
        if stat.S_ISDIR(os.lstat(path).st_mode):
            waiting += [f"{name}/{inner}" for inner in sorted(os.listdir(path), reverse=True)]


def _add(tar: tarfile.TarFile, root: str, name: str, seen: dict[tuple[int, int], str], *, overlay: bool) -> None:
    path = f"{root}/{name}"
    found = os.lstat(path)
    if overlay and stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
        parent, _, last = name.rpartition("/")
        _mark(tar, f"{parent}/{_WHITEOUT}{last}".lstrip("/"))
        return
    if stat.S_ISSOCK(found.st_mode):
        return
    attributes = _attributes(path)
    if overlay:
        _check_overlay(name, attributes)
    member = _member(name, path, found, seen)
    member.pax_headers = {
        f"SCHILY.xattr.{key}": value
        for key, value in attributes.items()
        if not (overlay and key.startswith(_OVERLAY)) and key not in _LEFT_OUT
    }
    if member.isreg():
        with open(path, "rb") as file:
            tar.addfile(member, file)
    else:
        tar.addfile(member)
    if overlay and stat.S_ISDIR(found.st_mode) and attributes.get(f"{_OVERLAY}opaque") == "y":
        _mark(tar, f"{name}/{_OPAQUE}")


def _member(name: str, path: str, found: os.stat_result, seen: dict[tuple[int, int], str]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.uid, member.gid = found.st_uid, found.st_gid
    member.mode, member.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    if stat.S_ISDIR(found.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(found.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
    elif stat.S_ISFIFO(found.st_mode):
        member.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        member.type = tarfile.CHRTYPE if stat.S_ISCHR(found.st_mode) else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    elif found.st_nlink > 1 and (found.st_dev, found.st_ino) in seen:
        member.type, member.linkname = tarfile.LNKTYPE, seen[found.st_dev, found.st_ino]
    else:
        seen[found.st_dev, found.st_ino] = name
        member.size = found.st_size
    return member


def _attributes(path: str) -> dict[str, str]:
    """Extended attributes; their values as text that turns into the same bytes again."""
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return {name: os.fsdecode(os.getxattr(path, name, follow_symlinks=False)) for name in names}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def _check_overlay(name: str, attributes: dict[str, str]) -> None:
    for key in ("redirect", "metacopy"):
        if f"{_OVERLAY}{key}" in attributes:
            raise FailedPrecondition(
                f"{name} refers to the layers below by trusted.overlay.{key}, which no layer can say",
                hint="load overlay with redirect_dir=off and metacopy=off, and make the container again",
            )


def _mark(tar: tarfile.TarFile, name: str) -> None:
    """An empty file that stands for an absence."""
    member = tarfile.TarInfo(name)
    member.mode = 0
    tar.addfile(member)
