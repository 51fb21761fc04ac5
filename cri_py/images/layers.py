"""A layer's tar becomes a directory that overlayfs can use, and nothing is written outside of it.

OCI image-spec layer.md (whiteouts), kernel Documentation/filesystems/overlayfs.rst (character device 0:0,
trusted.overlay.opaque). Every parent is resolved by openat2(RESOLVE_IN_ROOT): the kernel keeps ``..``, absolute and
symbolic links inside the layer, also while they change.

This runs in processes of its own (``worker``), started for a pull: what it imports is waited for.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from cri_py.errors import CriError, DataLoss, Internal, ResourceExhausted
from cri_py.images.compression import Source, inflate
from cri_py.images.sparse import Extent
from cri_py.images.tarstream import Entry, Inflow, Kind, entries
from cri_py.kernel.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS
from cri_py.kernel.syscalls import openat2

if TYPE_CHECKING:
    from cri_py.model import Digest

ENTRIES_MAX: Final = 1_000_000  # with the directories that entries imply: each may imply hundreds
IMPLIED_BYTES_MAX: Final = 16 << 20  # of their names: the daemon holds them while layers below are unpacked
_NAME_BYTES: Final = 100  # of memory that a name takes beside its own bytes: an object, and places in a list and a set
DESCRIBED_MAX: Final = 32_768  # directories that are remembered until they are finished: half a kilobyte each
BOMB_RATIO: Final = 200  # gzip reaches 1,032; what people ship stays below 50
BOMB_FLOOR: Final = 1 << 30
OPAQUE: Final = "trusted.overlay.opaque"
_WHITEOUT: Final = b".wh."
_OPAQUE_MARK: Final = b".wh..wh..opq"
_AUFS_MARK: Final = b".wh..wh."
_HIDDEN_XATTRS: Final = (b"trusted.overlay.", b"user.overlay.")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_REPLACED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # by way of a symlink: another name says so
_CACHED_DIRECTORIES: Final = 64
_ALLOCATION: Final = 4096
_HOPS_MAX: Final = 40  # as the kernel has it (path_resolution(7))
_DEPTH_MAX: Final = 256


class Unpacked(NamedTuple):
    """What an unpacked layer takes on disk, and the directories that it uses without describing them."""

    used_bytes: int
    inodes: int
    file_bytes: int  # the lengths of all files, holes too: what ``measure`` finds again as long as nothing is lost
    implied: tuple[bytes, ...] = ()  # parents before children


def plain_most(size: int) -> int:
    """How many plain bytes may come out of ``size`` compressed ones: more is a bomb."""
    return max(BOMB_FLOOR, BOMB_RATIO * size)


def unpack(
    blob: Source, target: str, *, size: int, diff_id: Digest, lowest: bool, subject: str, watch: Callable[[int], None]
) -> Unpacked:
    """Unpack the layer ``blob`` (``size`` bytes, any compression) into the empty ``target`` and verify its diff id.

    ``lowest``: nothing lies below, so whiteouts are dropped. ``subject`` names the layer in messages; ``watch`` is told
    how many plain bytes came, and may raise to end it. Nothing is synced. On an error the target is left for the caller
    to delete. Raises DataLoss (damaged, or not ``diff_id``; an entry that leaves the layer), ResourceExhausted (disk
    full, bomb), Unimplemented (a kind of entry or compression), Internal (the kernel refused).
    """
    algorithm, _, expected = diff_id.partition(":")
    hasher = hashlib.new(algorithm)
    pieces = inflate(blob, subject, plain_most(size))
    inflow = Inflow(_hashed(pieces, hasher.update, watch), subject)
    root = os.open(target, _DIRECTORY | os.O_CLOEXEC)
    try:
        writer = _Writer(root, lowest=lowest, subject=subject)
        try:
            for entry in entries(inflow, subject):
                writer.add(entry, inflow)
            writer.finish()
        finally:
            writer.close()
    finally:
        os.close(root)
    inflow.drain()
    if hasher.hexdigest() != expected:
        raise DataLoss(f"{subject} unpacks to {algorithm}:{hasher.hexdigest()}, its image's config says {diff_id}")
    return writer.unpacked()


def adopt(target: str, implied: Sequence[bytes], lowers: Sequence[str]) -> None:
    """Give directories that a layer only implies the owner, mode and mtime that they have below.

    Overlayfs shows the uppermost directory's attributes: without this, a layer that holds ``tmp/x`` but not ``tmp/``
    would turn a 1777 /tmp into 0755. ``lowers`` are the layers below, topmost first.
    """
    absent: set[bytes] = set()
    root = os.open(target, _DIRECTORY | os.O_CLOEXEC)
    try:
        for path in implied:
            found = _find_below(lowers, path) if path.rpartition(b"/")[0] not in absent else None
            if found is None:
                absent.add(path)
            else:
                _restyle(root, path, found)
    finally:
        os.close(root)


def measure(directory: str) -> tuple[int, int]:
    """Inodes and bytes of files below an unpacked layer, as ``Unpacked`` counts them, whatever its names are."""
    seen: set[int] = set()
    file_bytes = 0
    for _, directories, files, fd in os.fwalk(os.fsencode(directory)):
        seen.add(os.fstat(fd).st_ino)
        for name in (*directories, *files):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                file_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return len(seen), file_bytes


def _find_below(lowers: Sequence[str], path: bytes) -> os.stat_result | None:
    """The topmost thing of that name, if it is a directory (a whiteout or a file ends the search)."""
    for lower in lowers:
        fd = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = _stat_inside(fd, path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            return None  # a file or a link stands in the way
        finally:
            os.close(fd)
        return found if stat.S_ISDIR(found.st_mode) else None
    return None


def _stat_inside(root: int, path: bytes) -> os.stat_result:
    fd = openat2(root, path or b".", os.O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _restyle(root: int, path: bytes, found: os.stat_result) -> None:
    try:
        fd = openat2(root, path or b".", _DIRECTORY | os.O_NOFOLLOW, resolve=_INSIDE)
    except OSError as error:
        if error.errno in _REPLACED:
            return
        raise
    try:
        _own(fd, found.st_uid, found.st_gid)
        os.fchmod(fd, stat.S_IMODE(found.st_mode))
        os.utime(fd, ns=(found.st_mtime_ns, found.st_mtime_ns))
    finally:
        os.close(fd)


def _hashed(
    pieces: Iterator[bytes], update: Callable[[bytes], object], watch: Callable[[int], None]
) -> Iterator[bytes]:
    for piece in pieces:
        watch(len(piece))
        update(piece)
        yield piece


def _own(fd: int, uid: int, gid: int) -> None:
    """chown, unless it is so already: without it, tests of plain layers need no root."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.fchown(fd, uid, gid)


def _write(fd: int, portion: memoryview) -> None:
    written = os.write(fd, portion)
    while written < len(portion):  # a disk that fills up writes less before it refuses
        written += os.write(fd, portion[written:])


def _fill(fd: int, entry: Entry, extents: Sequence[Extent], inflow: Inflow) -> None:
    """A sparse file: what is stored at its places, holes between."""
    os.ftruncate(fd, entry.size)
    for offset, length in extents:
        os.lseek(fd, offset, os.SEEK_SET)
        for portion in inflow.portions(length):
            _write(fd, portion)


class _Writer:
    """Places entries below one directory."""

    def __init__(self, root: int, *, lowest: bool, subject: str) -> None:
        self._root = root
        self._lowest = lowest
        self._subject = subject
        self._open: dict[bytes, int] = {}
        self._described: dict[bytes, Entry] = {}  # directories, to be finished when nothing touches them any more
        self._described_most = DESCRIBED_MAX
        self._finished = False  # whether some are already…
        self._before: dict[int, tuple[int, int]] = {}  # …and then of what is open: inode, and mtime_ns as it was
        self._implied: dict[bytes, None] = {}
        self._implied_bytes = 0
        self._bytes = _ALLOCATION
        self._inodes = 1
        self._file_bytes = 0
        self._entries = 0
        self._identity = (os.geteuid(), os.getegid())

    def add(self, entry: Entry, inflow: Inflow) -> None:
        """Place one entry, taking its content from ``inflow``."""
        self._admit()
        path = self._inside(entry.path)
        try:
            self._place(path, entry, inflow)
        except OSError as error:
            raise self._failed(error, entry) from error
        except (ValueError, OverflowError) as error:  # a NUL in a link or an attribute's name, a device's number
            what = f"{entry.path!r} ({entry.kind.value}) of {self._subject}"
            raise DataLoss(f"{what} holds what no filesystem takes: {error}") from error

    def _admit(self) -> None:
        self._entries += 1
        if self._entries > ENTRIES_MAX:
            raise ResourceExhausted(f"{self._subject} holds more than {ENTRIES_MAX} entries")

    def finish(self) -> None:
        """Set modes and times of directories, the deepest first: placing a file would have changed them again."""
        self.close()
        for path in sorted(self._described, reverse=True):
            entry = self._described[path]
            try:
                fd = openat2(self._root, path or b".", _DIRECTORY | os.O_NOFOLLOW, resolve=_INSIDE)
            except OSError as error:
                if error.errno in _REPLACED:
                    continue
                raise self._failed(error, entry) from error
            try:
                self._style(fd, entry)
            except OSError as error:
                raise self._failed(error, entry) from error
            except ValueError as error:
                raise DataLoss(f"{entry.path!r} of {self._subject} has an attribute's name with a NUL") from error
            finally:
                os.close(fd)

    def close(self) -> None:
        for path in list(self._open):
            self._let_go(path)

    def unpacked(self) -> Unpacked:
        implied = tuple(path for path in self._implied if path not in self._described)
        return Unpacked(self._bytes, self._inodes, self._file_bytes, implied)

    # ---------------------------------------------------------------- placing

    def _place(self, path: bytes, entry: Entry, inflow: Inflow) -> None:
        parent_path, _, name = path.rpartition(b"/")
        if name.startswith(_WHITEOUT):
            self._whiteout(parent_path, name)
            inflow.skip(entry.stored)
        elif entry.kind is Kind.DIRECTORY:
            self._directory(path, parent_path, name, entry)
        elif not name:
            raise DataLoss(f"{self._subject} holds a {entry.kind.value} in place of its root")
        elif entry.kind is Kind.FILE:
            self._file(self._parent(parent_path), path, entry, inflow)
        elif entry.kind is Kind.HARD_LINK:
            self._hard_link(path, entry)
        else:
            self._special(self._parent(parent_path), path, entry)

    def _file(self, parent: int, path: bytes, entry: Entry, inflow: Inflow) -> None:
        name = path.rpartition(b"/")[2]
        try:
            fd = os.open(name, _NEW_FILE, entry.mode, dir_fd=parent)
        except FileExistsError:
            self._clear(parent, path)
            fd = os.open(name, _NEW_FILE, entry.mode, dir_fd=parent)
        try:
            if entry.extents is None:
                for portion in inflow.portions(entry.stored):
                    _write(fd, portion)
            else:
                _fill(fd, entry, entry.extents, inflow)
            self._style(fd, entry)
        finally:
            os.close(fd)
        self._count(entry.stored)
        self._file_bytes += entry.size

    def _hard_link(self, path: bytes, entry: Entry) -> None:
        source = self._inside(entry.link)
        if source == path:
            return
        source_parent, _, source_name = source.rpartition(b"/")
        if not source_name:
            raise DataLoss(f"{self._subject} holds a hard link to its root: {entry.path!r}")
        parent, name = self._parent(path.rpartition(b"/")[0]), path.rpartition(b"/")[2]
        # Opened apart from the cache: asking it for a second directory could close the first.
        origin = openat2(self._root, source_parent or b".", _DIRECTORY, resolve=_INSIDE)
        try:
            self._fresh(
                parent,
                path,
                lambda: os.link(source_name, name, src_dir_fd=origin, dst_dir_fd=parent, follow_symlinks=False),
            )
        finally:
            os.close(origin)

    def _special(self, parent: int, path: bytes, entry: Entry) -> None:
        name = path.rpartition(b"/")[2]
        if entry.kind is Kind.SYMLINK:
            self._fresh(parent, path, lambda: os.symlink(entry.link, name, dir_fd=parent))
        elif entry.kind is Kind.FIFO:
            self._fresh(parent, path, lambda: os.mkfifo(name, 0o600, dir_fd=parent))
        else:
            kind = stat.S_IFCHR if entry.kind is Kind.CHARACTER else stat.S_IFBLK
            device = os.makedev(*entry.device)
            self._fresh(parent, path, lambda: os.mknod(name, kind | 0o600, device, dir_fd=parent))
        self._count(0)
        if (entry.uid, entry.gid) != self._identity:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)  # just made by us, so no link to follow
        if entry.xattrs:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self._label(f"/proc/self/fd/{fd}", entry)
            finally:
                os.close(fd)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _directory(self, path: bytes, parent_path: bytes, name: bytes, entry: Entry) -> None:
        if name:
            self._make_directory(self._parent(parent_path), path)
        self._described[path] = entry
        self._implied.pop(path, None)
        if len(self._described) > self._described_most:
            self._finish_early()

    def _finish_early(self) -> None:
        """Very many would fill the memory. From now on a directory gets its mtime again after each time it was open.

        Those that hand something down to what is made in them (set-gid, ACLs) have to wait.
        """
        waiting = {path: each for path, each in self._described.items() if each.mode & stat.S_ISGID or each.xattrs}
        for path in waiting:
            del self._described[path]
        self.finish()
        self._described, self._described_most = waiting, len(waiting) + DESCRIBED_MAX
        self._finished = True

    def _whiteout(self, parent_path: bytes, name: bytes) -> None:
        if self._lowest or (name.startswith(_AUFS_MARK) and name != _OPAQUE_MARK):
            return
        parent = self._parent(parent_path)
        if name == _OPAQUE_MARK:
            os.setxattr(parent, OPAQUE, b"y")
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise DataLoss(f"{self._subject} holds the whiteout {name!r}, which hides nothing")
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            # A whiteout hides what lies below, never what its own layer holds: a file covers that anyway, a
            # directory has to be told.
            found = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                self._make_opaque(parent, hidden)
            return
        self._count(0)

    # ------------------------------------------------------------ directories

    def _parent(self, path: bytes, hops: int = 0) -> int:
        """An open fd of the directory ``path``, made if missing; ours to keep until the next call."""
        fd = self._open.get(path)
        if fd is not None:
            return fd
        try:
            fd = openat2(self._root, path or b".", _DIRECTORY, resolve=_INSIDE)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                raise
            fd = self._missing_parent(path, hops)
        if len(self._open) >= _CACHED_DIRECTORIES:
            self._let_go(next(iter(self._open)))
        self._open[path] = fd
        if self._finished:
            found = os.fstat(fd)
            before = dict(self._before.values())  # it may be open by another name, and touched since then
            self._before[fd] = (found.st_ino, before.get(found.st_ino, found.st_mtime_ns))
        return fd

    def _let_go(self, path: bytes) -> None:
        """Close an open directory."""
        fd = self._open.pop(path)
        before = self._before.pop(fd, None)
        try:
            if before is not None:
                os.utime(fd, ns=(before[1], before[1]))
        finally:
            os.close(fd)

    def _missing_parent(self, path: bytes, hops: int) -> int:
        """Make the directory ``path``, or what it links to, and open it."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self._parent(parent_path, hops)
        try:
            link = os.readlink(name, dir_fd=parent)
        except OSError:  # the usual case: nothing, or no link
            if self._make_directory(parent, path):
                self._imply(path)
        else:
            if hops >= _HOPS_MAX:
                raise DataLoss(f"{self._subject} holds links that lead in a circle at {path!r}")
            self._parent(self._inside(link if link.startswith(b"/") else parent_path + b"/" + link), hops + 1)
        return openat2(self._root, path, _DIRECTORY, resolve=_INSIDE)

    def _imply(self, path: bytes) -> None:
        self._admit()
        self._implied[path] = None
        self._implied_bytes += len(path) + _NAME_BYTES
        if self._implied_bytes > IMPLIED_BYTES_MAX:
            raise ResourceExhausted(f"{self._subject} uses too many directories without describing them")

    def _make_directory(self, parent: int, path: bytes) -> bool:
        """Make a directory, over whatever has its name; False if it was there."""
        name = path.rpartition(b"/")[2]
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return False
            self._clear(parent, path)
            os.mkdir(name, 0o755, dir_fd=parent)
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                self._make_opaque(parent, name)  # it stands where this layer had a whiteout
        self._count(_ALLOCATION)
        return True

    def _make_opaque(self, parent: int, name: bytes) -> None:
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)

    def _fresh(self, parent: int, path: bytes, make: Callable[[], int | None]) -> int:
        """Run ``make``; if something has the name already, remove it and run it again."""
        try:
            return make() or 0
        except FileExistsError:
            self._clear(parent, path)
            return make() or 0

    def _clear(self, parent: int, path: bytes) -> None:
        """Remove what an earlier entry of this layer put there, whatever it is."""
        name = path.rpartition(b"/")[2]
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            for inner in self._clear_directory(parent, name):
                gone = path + inner
                self._described.pop(gone, None)
                self._implied.pop(gone, None)
        else:
            self._uncount(found)
            os.unlink(name, dir_fd=parent)
        if stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode):
            # Open directories may lie below it, or their names may have led through it.
            for cached in [each for each in self._open if self._open[each] != parent]:
                self._let_go(cached)

    def _clear_directory(self, parent: int, name: bytes) -> list[bytes]:
        """Remove a tree; returns what stood behind its name in the paths of its directories."""
        gone: list[bytes] = []
        for path, directories, files, fd in os.fwalk(name, topdown=False, dir_fd=parent):
            gone.append(path[len(name) :])
            for each in files:
                self._uncount(os.stat(each, dir_fd=fd, follow_symlinks=False))
                os.unlink(each, dir_fd=fd)
            for each in directories:
                found = os.stat(each, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(each, dir_fd=fd)
                else:  # a link to a directory
                    os.unlink(each, dir_fd=fd)
                self._uncount(found)
        self._uncount(os.stat(name, dir_fd=parent, follow_symlinks=False))
        os.rmdir(name, dir_fd=parent)
        return gone

    # -------------------------------------------------------------- attributes

    def _style(self, fd: int, entry: Entry) -> None:
        """Owner, mode, xattrs and time, in this order: chown clears set-uid bits and capabilities."""
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
            os.fchown(fd, entry.uid, entry.gid)
            os.fchmod(fd, entry.mode)
        elif stat.S_IMODE(found.st_mode) != entry.mode:  # not so where no umask has cut the mode at open
            os.fchmod(fd, entry.mode)
        if entry.xattrs:
            self._label(fd, entry)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _label(self, target: int | str, entry: Entry) -> None:
        for name, content in entry.xattrs:
            if name.startswith(_HIDDEN_XATTRS):
                continue  # overlayfs would obey them: a layer could redirect or uncover what others hold
            try:
                os.setxattr(target, name, content)
            except OSError as error:
                refused = error.errno == errno.EPERM and name.startswith(b"user.")  # on links, devices and fifos
                unsupported = error.errno == errno.ENOTSUP and name != b"security.capability"
                if error.errno in {errno.EINVAL, errno.E2BIG, errno.ERANGE}:
                    told = f"{entry.path!r} of {self._subject} has the attribute {name[:64]!r}"
                    raise DataLoss(f"{told}, which no file can have: {error.strerror}") from error
                if not (refused or unsupported):
                    raise

    def _count(self, size: int) -> None:
        self._bytes += -(-size // _ALLOCATION) * _ALLOCATION
        self._inodes += 1

    def _uncount(self, found: os.stat_result) -> None:
        """What is removed counts no more; a file with other names stays."""
        if stat.S_ISDIR(found.st_mode):
            size = _ALLOCATION
        elif found.st_nlink > 1:
            return
        else:
            size = found.st_size if stat.S_ISREG(found.st_mode) else 0
            self._file_bytes -= size
        self._bytes -= -(-size // _ALLOCATION) * _ALLOCATION
        self._inodes -= 1

    def _inside(self, path: bytes) -> bytes:
        """The path without empty parts, ``.`` and ``..``; DataLoss if it leaves the layer."""
        if b"\0" in path:
            raise DataLoss(f"{self._subject} holds a name with a NUL: {path!r}")
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not parts:
                    raise DataLoss(f"{self._subject} holds {path!r}, which leaves the layer", hint="don't trust it")
                parts.pop()
            elif part not in {b"", b"."}:
                parts.append(part)
        if len(parts) > _DEPTH_MAX:
            raise DataLoss(f"{self._subject} nests directories more than {_DEPTH_MAX} deep")
        return b"/".join(parts)

    def _failed(self, error: OSError, entry: Entry) -> CriError:
        what = f"{entry.path!r} ({entry.kind.value}) of {self._subject}"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return ResourceExhausted(f"the disk is full at {what}", hint="free space below the root directory")
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EXDEV}:
            return DataLoss(f"{what} can't be placed: {error.strerror}")
        return Internal(f"{what} can't be written: {error}")
