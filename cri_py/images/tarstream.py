"""A tar stream becomes entries, in one pass: ustar, GNU and PAX (tar(5), POSIX.1-2017 pax).

Written for layers: names stay bytes, contents are handed through in pieces, nothing seeks. Pure: bytes in, values out.
Loaded by the processes that unpack, so that imports are few, and run once per file, so that values are plain tuples.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, NamedTuple

from cri_py.errors import DataLoss, Unimplemented
from cri_py.images import sparse
from cri_py.images.sparse import BLOCK, Extent

NAME_RECORD_LIMIT: Final = 1 << 20  # bytes of one PAX header or GNU long name
UNIVERSAL_LIMIT: Final = 16 << 10  # bytes of all that PAX headers say of all entries: each entry has it applied
ID_MAX: Final = 2**32 - 2  # (uid_t)-1 means "leave alone" to chown(2)
MTIME_MAX: Final = 2**34  # seconds; what ext4 stores, and far from overflow in ns

_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZEROS: Final = bytes(BLOCK)
_NUMBERED_PAX: Final = frozenset({b"size", b"uid", b"gid"})
_XATTR_PREFIX: Final = b"SCHILY.xattr."
_SPARSE_PREFIX: Final = b"GNU.sparse."
_SPARSE_MAP: Final = b"GNU.sparse.map"
_REPEATED_PAX: Final = frozenset({b"GNU.sparse.offset", b"GNU.sparse.numbytes"})  # format 0.0: one after the other


class Kind(Enum):
    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symlink"
    CHARACTER = "character device"
    BLOCK = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


_KINDS: Final = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


class Entry(NamedTuple):
    """One member. ``stored`` bytes of content follow it in the stream, to be taken before the next entry is asked for.

    They are the whole file, or where ``extents`` says so what of its ``size`` bytes is no hole.
    """

    kind: Kind
    path: bytes  # as written: may be absolute or hold ``..``
    mode: int
    uid: int
    gid: int
    stored: int
    mtime_ns: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    size: int = 0
    extents: tuple[Extent, ...] | None = None


class Inflow:
    """Pieces of any size, taken by exact counts."""

    def __init__(self, pieces: Iterator[bytes], subject: str) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._subject = subject

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes, or DataLoss."""
        start = self._at
        if start + count <= len(self._piece):
            self._at = start + count
            return self._piece[start : start + count]
        return b"".join(self.portions(count))

    def portions(self, count: int) -> Iterator[memoryview]:
        """``count`` bytes as views into the pieces, or DataLoss."""
        while count:
            if self._at == len(self._piece) and not self._refill():
                raise DataLoss(f"{self._subject} ends in the middle of a tar entry")
            taken = memoryview(self._piece)[self._at : self._at + count]
            self._at += len(taken)
            count -= len(taken)
            yield taken

    def skip(self, count: int) -> None:
        if self._at + count <= len(self._piece):
            self._at += count
            return
        for _ in self.portions(count):
            pass

    def skip_padding(self, count: int) -> None:
        """As skip, but the stream may end: who does not close a tar leaves the last padding out (umoci insert)."""
        while count and not self.at_end():
            passed = min(count, len(self._piece) - self._at)
            self._at += passed
            count -= passed

    def at_end(self) -> bool:
        return self._at == len(self._piece) and not self._refill()

    def drain(self) -> None:
        """Read on to the end, so that whoever hashes the pieces sees them all."""
        while not self.at_end():
            self._at = len(self._piece)

    def _refill(self) -> bool:
        self._piece, self._at = next(self._pieces, b""), 0
        return len(self._piece) > 0


class _Extension:
    """What headers before an entry say about it."""

    __slots__ = ("link", "mtime_ns", "numbers", "path", "sparse", "xattrs")

    def __init__(self) -> None:
        self.path: bytes | None = None
        self.link: bytes | None = None
        self.numbers: dict[bytes, int] = {}
        self.mtime_ns: int | None = None
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: dict[bytes, bytes] = {}


_NOTHING: Final = _Extension()


class _Pending:
    """Headers that precede the one that they describe: PAX for one entry or for all that follow, GNU's long names."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._universal: dict[bytes, bytes] = {}
        self._own: dict[bytes, bytes] = {}
        self._extension = _NOTHING

    def add(self, flag: bytes, content: bytes) -> None:
        if self._extension is _NOTHING:
            self._extension = _Extension()
        if flag == b"g":
            self._universal |= _pax_records(content, self._subject)
            if sum(len(key) + len(text) for key, text in self._universal.items()) > UNIVERSAL_LIMIT:
                raise DataLoss(f"{self._subject} says more than {UNIVERSAL_LIMIT >> 10} KiB of all its entries at once")
        elif flag == b"x":
            self._own = _pax_records(content, self._subject)
        elif flag == b"L":
            self._extension.path = content.rstrip(b"\0")
        else:
            self._extension.link = content.rstrip(b"\0")

    def take(self) -> _Extension:
        """All that was said of the next entry."""
        extension = self._extension
        if self._universal or self._own:
            extension = _Extension() if extension is _NOTHING else extension
            _apply_pax(extension, self._universal | self._own, self._subject)
            self._own = {}
        self._extension = _NOTHING
        return extension


def entries(inflow: Inflow, subject: str) -> Iterator[Entry]:
    """Yield the members of a tar stream; contents have to be taken, padding is skipped.

    Raises DataLoss for what is no tar, Unimplemented for kinds of entries that no layer may hold.
    """
    pending = _Pending(subject)
    while not inflow.at_end():
        header = inflow.take(BLOCK)
        if header == _ZEROS:
            return
        fields = _HEADER.unpack(header)
        _check_sum(header, fields[6], subject)
        flag, size = fields[7], _number(fields[4], subject)
        if size < 0:
            raise DataLoss(f"{subject} has a tar entry of the size {size}")
        if flag in b"xgLK":
            pending.add(flag, _extension_content(inflow, size, subject))
            continue
        extension = pending.take()
        entry = _entry(fields, extension, size, subject)
        if entry is None:
            inflow.skip(-(-size // BLOCK) * BLOCK)
            continue
        if entry.kind is Kind.FILE and (flag == b"S" or extension.sparse):
            entry = _sparse(entry, header, extension.sparse, inflow, subject)
        yield entry
        inflow.skip_padding(-entry.stored % BLOCK)


def _entry(fields: tuple[bytes, ...], extension: _Extension, size: int, subject: str) -> Entry | None:
    flag = fields[7]
    if flag == b"V":  # GNU volume label
        return None
    path = extension.path if extension.path is not None else _ustar_path(fields)
    kind = _KINDS.get(flag)
    if kind is None:
        raise Unimplemented(f"{subject} holds {path!r} of the unknown tar type {flag!r}")
    if flag == b"\0" and path.endswith(b"/"):  # before ustar, a slash was the mark of a directory
        kind = Kind.DIRECTORY
    numbers = extension.numbers
    uid = numbers[b"uid"] if b"uid" in numbers else _number(fields[2], subject)
    gid = numbers[b"gid"] if b"gid" in numbers else _number(fields[3], subject)
    if not (0 <= uid <= ID_MAX and 0 <= gid <= ID_MAX):
        raise DataLoss(f"{subject} gives {path!r} the impossible owner {uid}:{gid}")
    mtime_ns = extension.mtime_ns
    if mtime_ns is None:
        mtime_ns = _clamped_ns(_number(fields[5], subject))
    device = (0, 0)
    if kind is Kind.CHARACTER or kind is Kind.BLOCK:
        device = (_number(fields[13], subject), _number(fields[14], subject))
    stored = numbers.get(b"size", size) if kind is Kind.FILE else 0
    return Entry(
        kind,
        path,
        _number(fields[1], subject) & 0o7777,
        uid,
        gid,
        stored,
        mtime_ns,
        extension.link if extension.link is not None else _cut(fields[8]),
        device,
        tuple(extension.xattrs.items()),
        stored,
    )


def _sparse(entry: Entry, header: bytes, said: dict[bytes, bytes], inflow: Inflow, subject: str) -> Entry:
    """The entry with its map and its true size and name, which each format keeps in another place."""

    def number(raw: bytes) -> int:
        return _number(raw, subject)

    def block() -> bytes:
        return inflow.take(BLOCK)

    stored, path = entry.stored, said.get(b"name", entry.path)
    if not said:
        extents, size = sparse.old_map(header, block, number, subject), sparse.old_size(header, number)
    else:
        text = said.get(b"realsize", said.get(b"size", b""))
        if not text.isdigit():
            raise DataLoss(f"{subject} holds a sparse file {path!r} without a size")
        size = int(text[:20])
        if said.get(b"major") == b"1":
            extents, taken = sparse.stored_map(block, subject)
            stored -= taken
        else:
            extents = sparse.pax_map(said[b"map"].split(b",") if said.get(b"map") else [], subject)
    whole = sparse.checked((each for each in extents if each[1]), stored, size, f"{path!r} of {subject}")
    return entry._replace(path=path, stored=stored, size=size, extents=whole)


def _ustar_path(fields: tuple[bytes, ...]) -> bytes:
    name = _cut(fields[0])
    # The prefix exists in POSIX headers only; GNU's magic ends in a space and keeps times there.
    prefix = _cut(fields[15]) if fields[9] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extension_content(inflow: Inflow, size: int, subject: str) -> bytes:
    if size > NAME_RECORD_LIMIT:
        raise DataLoss(f"{subject} has an extended tar header of {size} bytes; at most {NAME_RECORD_LIMIT} are read")
    content = inflow.take(size)
    inflow.skip(-size % BLOCK)
    return content


def _pax_records(content: bytes, subject: str) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n`` repeated; the length counts itself."""
    records: dict[bytes, bytes] = {}
    extents: list[bytes] = []
    position = 0
    while position < len(content):
        space = content.find(b" ", position, position + 10)
        length = content[position:space]
        if space < 0 or not length.isdigit():
            raise DataLoss(f"{subject} has a damaged PAX header")
        end = position + int(length)
        key, equals, text = content[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or content[end - 1 : end] != b"\n" or not equals:
            raise DataLoss(f"{subject} has a damaged PAX header")
        if key in _REPEATED_PAX:
            extents.append(text)
        else:
            records[key] = text
        position = end
    if extents:
        records[_SPARSE_MAP] = b",".join(extents)
    return records


def _apply_pax(extension: _Extension, records: dict[bytes, bytes], subject: str) -> None:
    for key, text in records.items():
        if key == b"path":
            extension.path = text
        elif key == b"linkpath":
            extension.link = text
        elif key in _NUMBERED_PAX:
            if not text.isdigit():
                raise DataLoss(f"{subject} has a PAX header whose {key.decode()} is {text[:40]!r}")
            extension.numbers[key] = int(text[:20])
        elif key == b"mtime":
            extension.mtime_ns = _pax_time(text, subject)
        elif key.startswith(_SPARSE_PREFIX):
            extension.sparse[key[len(_SPARSE_PREFIX) :]] = text
        elif key.startswith(_XATTR_PREFIX):
            extension.xattrs[key[len(_XATTR_PREFIX) :]] = text


def _pax_time(text: bytes, subject: str) -> int:
    """Decimal seconds, exactly: a float would lose nanoseconds."""
    seconds, _, fraction = text.partition(b".")
    digits = seconds.removeprefix(b"-")
    if not digits.isdigit() or (fraction and not fraction.isdigit()):
        raise DataLoss(f"{subject} has a PAX header whose mtime is {text[:40]!r}")
    nanos = int((fraction + b"0" * 9)[:9])
    whole = int(digits[:20])
    return -_clamped_ns(whole) - nanos if seconds.startswith(b"-") else _clamped_ns(whole) + nanos


def _clamped_ns(seconds: int) -> int:
    return max(-MTIME_MAX, min(seconds, MTIME_MAX)) * 1_000_000_000


def _number(raw: bytes, subject: str) -> int:
    """Octal digits, or GNU's base 256 when the top bit is set."""
    if raw[0] & 0x80:
        return int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big") - (1 << (8 * len(raw) - 1)) * (raw[0] >> 6 & 1)
    digits = raw.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError as error:
        raise DataLoss(f"{subject} has a tar header with the number {raw!r}") from error


def _check_sum(header: bytes, recorded: bytes, subject: str) -> None:
    computed = sum(header) - sum(header[148:156]) + 8 * 0x20
    if _number(recorded, subject) != computed:
        raise DataLoss(f"{subject} is no tar archive: a header's checksum is wrong")


def _cut(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]
