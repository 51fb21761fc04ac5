"""A tar stream becomes entries, in one pass: ustar, GNU and PAX (tar(5), POSIX.1-2017 pax).

Written for layers: names stay bytes, contents are handed through in pieces, nothing seeks. Pure: bytes in, values out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cri_py.errors import DataLoss, Unimplemented

BLOCK: Final = 512
NAME_RECORD_LIMIT: Final = 1 << 20  # bytes of one PAX header or GNU long name
ID_MAX: Final = 2**32 - 2  # (uid_t)-1 means "leave alone" to chown(2)
MTIME_MAX: Final = 2**34  # seconds; what ext4 stores, and far from overflow in ns

_HEADER: Final = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_NUMBERED_PAX: Final = frozenset({b"size", b"uid", b"gid"})
_XATTR_PREFIX: Final = b"SCHILY.xattr."


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
    b"1": Kind.HARD_LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member. ``size`` bytes of content follow it in the stream, to be taken before the next entry is asked for."""

    kind: Kind
    path: bytes  # as written: may be absolute or hold ``..``
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Inflow:
    """Pieces of any size, taken by exact counts."""

    def __init__(self, pieces: Iterator[bytes], subject: str) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._subject = subject

    def take(self, count: int) -> bytes:
        """Exactly ``count`` bytes, or DataLoss."""
        if count <= len(self._piece):
            taken, self._piece = self._piece[:count], self._piece[count:]
            return bytes(taken)
        return b"".join(self.portions(count))

    def portions(self, count: int) -> Iterator[memoryview]:
        """``count`` bytes as views into the pieces, or DataLoss."""
        while count:
            if not self._piece and not self._refill():
                raise DataLoss(f"{self._subject} ends in the middle of a tar entry")
            taken, self._piece = self._piece[:count], self._piece[count:]
            count -= len(taken)
            yield taken

    def skip(self, count: int) -> None:
        for _ in self.portions(count):
            pass

    def at_end(self) -> bool:
        return not self._piece and not self._refill()

    def drain(self) -> None:
        """Read on to the end, so that whoever hashes the pieces sees them all."""
        while not self.at_end():
            self._piece = memoryview(b"")

    def _refill(self) -> bool:
        self._piece = memoryview(next(self._pieces, b""))
        return len(self._piece) > 0


@dataclass(slots=True)
class _Extension:
    """What headers before an entry say about it."""

    path: bytes | None = None
    link: bytes | None = None
    numbers: dict[bytes, int] = field(default_factory=dict)
    mtime_ns: int | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def entries(inflow: Inflow, subject: str) -> Iterator[Entry]:
    """Yield the members of a tar stream. Contents and padding that the caller leaves are skipped.

    Raises DataLoss for what is no tar, Unimplemented for kinds of entries that no layer may hold.
    """
    universal: dict[bytes, bytes] = {}
    own: dict[bytes, bytes] = {}
    extension = _Extension()
    while not inflow.at_end():
        header = inflow.take(BLOCK)
        if header == bytes(BLOCK):
            return
        fields = _HEADER.unpack(header)
        _check_sum(header, fields[6], subject)
        flag, size = fields[7], _number(fields[4], subject)
        if flag in b"xgLK":
            content = _extension_content(inflow, size, subject)
            if flag == b"g":
                universal.update(_pax_records(content, subject))
            elif flag == b"x":
                own = _pax_records(content, subject)
            elif flag == b"L":
                extension.path = content.rstrip(b"\0")
            else:
                extension.link = content.rstrip(b"\0")
            continue
        _apply_pax(extension, universal | own, subject)
        entry = _entry(fields, extension, size, subject)
        own, extension = {}, _Extension()
        if entry is None:
            inflow.skip(-(-size // BLOCK) * BLOCK)
            continue
        yield entry
        inflow.skip(-entry.size % BLOCK)


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
    if kind in {Kind.CHARACTER, Kind.BLOCK}:
        device = (_number(fields[13], subject), _number(fields[14], subject))
    return Entry(
        kind=kind,
        path=path,
        mode=_number(fields[1], subject) & 0o7777,
        uid=uid,
        gid=gid,
        size=numbers.get(b"size", size) if kind is Kind.FILE else 0,
        mtime_ns=mtime_ns,
        link=extension.link if extension.link is not None else _cut(fields[8]),
        device=device,
        xattrs=tuple(extension.xattrs.items()),
    )


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
        if key.startswith(b"GNU.sparse."):
            raise Unimplemented(f"{subject} holds a sparse file", hint="make the image without tar's --sparse")
        records[key] = text
        position = end
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
