"""A directory tree becomes a layer's tar, the same bytes for the same tree: names in order, no access times.

PAX (POSIX.1-2017), with extended attributes as libarchive and Go write them (``SCHILY.xattr.``). An overlay's upper
directory is translated: a character device 0:0 hides a name, which a layer says by a file ``.wh.NAME``, and the
attribute ``trusted.overlay.opaque`` hides what lies below, which a layer says by ``.wh..wh..opq`` (image-spec layer.md,
kernel Documentation/filesystems/overlayfs.rst). Sockets are left out, as in every layer.

A container may write to its tree meanwhile, and put a link where a directory was: no link is ever followed, and what is
described and what is read is the same open file.
"""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import stat
import tarfile
from collections.abc import Iterator
from typing import Final

from cri_py.errors import Aborted, FailedPrecondition, Internal
from cri_py.images.layers import ENTRIES_MAX
from cri_py.kernel.constants import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS
from cri_py.kernel.syscalls import openat2

_OVERLAY: Final = "trusted.overlay."
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
# What makes one host's file and says nothing of it on another.
_LEFT_OUT: Final = frozenset({"security.selinux", "system.posix_acl_access", "system.posix_acl_default"})
_INSIDE: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_PIECE: Final = 1 << 20
_END: Final = bytes(2 * tarfile.BLOCKSIZE)
_Seen = dict[tuple[int, int], str]


def layer_pieces(root: str, *, overlay: bool = False) -> Iterator[bytes]:
    """The tree below ``root`` as a tar, in pieces of at most 1 MiB. ``overlay``: it is an overlay's upper directory.

    Raises FailedPrecondition for what no layer can say (a directory redirected by overlayfs, a name that is a
    whiteout's) or is too much for one, Aborted if a file shrinks meanwhile, Internal if the tree can't be read. Blocks
    on the disk.
    """
    seen: _Seen = {}
    try:
        tree = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in _walk(tree):
                yield from _pieces(tree, name, seen, overlay=overlay)
        finally:
            os.close(tree)
    except OSError as error:
        raise Internal(f"{root} can't be made a layer: {error}") from error
    yield _END


def _walk(tree: int) -> Iterator[str]:
    """The names below the tree's root, relative, each directory before what is in it."""
    waiting = _names(tree, ENTRIES_MAX)
    left = ENTRIES_MAX - len(waiting)
    while waiting:
        name = waiting.pop()
        yield name
        try:
            fd = openat2(tree, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_INSIDE)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ENOENT, errno.ELOOP}:
                continue  # no directory, or none any more
            raise
        try:
            inside = _names(fd, left)
        finally:
            os.close(fd)
        left -= len(inside)
        waiting += [f"{name}/{inner}" for inner in inside]


def _names(directory: int, most: int) -> list[str]:
    """What is in a directory, the last first: at most so much, for who filled it need not be a friend."""
    with os.scandir(directory) as found:
        names = [entry.name for entry in itertools.islice(found, most + 1)]
    if len(names) > most:
        raise FailedPrecondition(
            f"the tree holds more than {ENTRIES_MAX} names, which no layer may", hint="remove what is not needed"
        )
    return sorted(names, reverse=True)


def _pieces(tree: int, name: str, seen: _Seen, *, overlay: bool) -> Iterator[bytes]:
    try:
        fd = openat2(tree, name, os.O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ENOENT, errno.ELOOP}:
            return  # removed meanwhile
        raise
    try:
        found = os.fstat(fd)
        if overlay and stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            parent, _, last = name.rpartition("/")
            yield _mark(f"{parent}/{_WHITEOUT}{last}".lstrip("/"))
        elif not stat.S_ISSOCK(found.st_mode):
            yield from _entry(fd, name, found, seen, overlay=overlay)
    finally:
        os.close(fd)


def _entry(fd: int, name: str, found: os.stat_result, seen: _Seen, *, overlay: bool) -> Iterator[bytes]:
    attributes = _attributes(fd)
    _check(name, attributes, overlay=overlay)
    member = _member(name, fd, found, seen)
    member.pax_headers = {
        f"SCHILY.xattr.{key}": value
        for key, value in attributes.items()
        if not key.startswith(_OVERLAY) and key not in _LEFT_OUT
    }
    yield _header(member)
    if member.isreg():
        yield from _content(fd, name, member.size)
    if overlay and member.isdir() and attributes.get(f"{_OVERLAY}opaque") == "y":
        yield _mark(f"{name}/{_OPAQUE}")


def _member(name: str, fd: int, found: os.stat_result, seen: _Seen) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.uid, member.gid = found.st_uid, found.st_gid
    member.mode, member.mtime = stat.S_IMODE(found.st_mode), int(found.st_mtime)
    inode = (found.st_dev, found.st_ino)
    if stat.S_ISDIR(found.st_mode):
        member.type = tarfile.DIRTYPE
    elif found.st_nlink > 1 and inode in seen:
        member.type, member.linkname = tarfile.LNKTYPE, seen[inode]
    elif stat.S_ISLNK(found.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink("", dir_fd=fd)
    elif stat.S_ISFIFO(found.st_mode):
        member.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        member.type = tarfile.CHRTYPE if stat.S_ISCHR(found.st_mode) else tarfile.BLKTYPE
        member.devmajor, member.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    else:
        member.size = found.st_size
    if found.st_nlink > 1:
        seen.setdefault(inode, name)
    return member


def _content(fd: int, name: str, size: int) -> Iterator[bytes]:
    """So many bytes as the header has promised, whatever is appended meanwhile."""
    with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as file:
        left = size
        while left:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise Aborted(f"{name} was cut while it was read", hint="try again, or stop who writes to it")
            left -= len(piece)
            yield piece
    if padding := -size % tarfile.BLOCKSIZE:
        yield bytes(padding)


def _attributes(fd: int) -> dict[str, str]:
    """Extended attributes; their values as text that turns into the same bytes again."""
    path = f"/proc/self/fd/{fd}"  # of a link its own: the jump ends at what the descriptor is
    try:
        return {name: os.fsdecode(os.getxattr(path, name)) for name in sorted(os.listxattr(path))}
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise


def _check(name: str, attributes: dict[str, str], *, overlay: bool) -> None:
    if name.rpartition("/")[2].startswith(_WHITEOUT):
        raise FailedPrecondition(f"{name} would hide another file: a layer keeps .wh. for that", hint="rename it")
    for key in attributes:
        if "=" in key:
            hint = f"take it away by setfattr -x {shlex.quote(key)}"
            raise FailedPrecondition(f"{name} has the attribute {key!r}, which no layer can say", hint=hint)
    for key in ("redirect", "metacopy") if overlay else ():
        if f"{_OVERLAY}{key}" in attributes:
            raise FailedPrecondition(
                f"{name} refers to the layers below by trusted.overlay.{key}, which no layer can say",
                hint="load overlay with redirect_dir=off and metacopy=off, and make the container again",
            )


def _mark(name: str) -> bytes:
    """An empty file that stands for an absence."""
    member = tarfile.TarInfo(name)
    member.mode = 0
    return _header(member)


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
