"""What the daemon and the processes that unpack for it say to each other: one packet each, over SOCK_SEQPACKET.

    daemon → worker   Job, with the blob's descriptor (SCM_RIGHTS); Ready, as the answer to each Starved
    worker → daemon   Reached now and then; Starved where the blob has not come further yet; Implied, maybe several;
                      and at the end Done or Failed

The blob may still grow while the layer is unpacked: the worker asks for more where it has read all. Pure: bytes in,
values out; few imports, for the worker is started for a pull.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cri_py.errors import Internal

PACKET_LIMIT: Final = 64 << 10
_IMPLIED_BYTES: Final = 32 << 10  # of names in one packet
_NUMBERS: Final = struct.Struct("=QQQ")
_JOB: Final = struct.Struct("=QQ??")


class Job(NamedTuple):
    """Unpack the descriptor's blob into ``target``, which is empty. Of ``size`` bytes ``available`` are there."""

    target: str
    diff_id: str
    subject: str
    size: int
    available: int
    whole: bool
    lowest: bool


class Ready(NamedTuple):
    """``available`` bytes of the blob can be read; if ``whole``, that is all of it and it is verified."""

    available: int
    whole: bool


class Reached(NamedTuple):
    """So many bytes of the blob are unpacked."""

    position: int


class Starved(NamedTuple):
    """As Reached; what lies behind is not there yet and needed: an answer is awaited."""

    position: int


class Implied(NamedTuple):
    """Directories that the layer uses without describing them, parents before children."""

    paths: tuple[bytes, ...]


class Done(NamedTuple):
    used_bytes: int
    inodes: int
    file_bytes: int


class Failed(NamedTuple):
    """``kind`` is the name of a class of errors.py."""

    kind: str
    message: str
    hint: str


Frame = Job | Ready | Reached | Starved | Implied | Done | Failed


def encode(frame: Frame) -> bytes:
    if isinstance(frame, Job):
        texts = (frame.target, frame.diff_id, frame.subject)
        return b"J" + _JOB.pack(frame.size, frame.available, frame.whole, frame.lowest) + _join(texts)
    if isinstance(frame, Failed):
        return b"F" + _join([text[: PACKET_LIMIT // 16] for text in frame])
    if isinstance(frame, Implied):
        return b"I" + b"\0".join(frame.paths)
    letters = {Ready: b"r", Reached: b"p", Starved: b"s", Done: b"d"}
    return letters[type(frame)] + _NUMBERS.pack(*(int(each) for each in (*frame, 0, 0)[:3]))


def decode(packet: bytes) -> Frame:
    """Raises Internal for what is no frame: the other end is broken."""
    letter, rest = packet[:1], packet[1:]
    try:
        if letter == b"J":
            size, available, whole, lowest = _JOB.unpack_from(rest)
            target, diff_id, subject = _split(rest[_JOB.size :])
            return Job(target, diff_id, subject, size, available, whole, lowest)
        if letter == b"F":
            return Failed(*_split(rest))
        if letter == b"I":
            return Implied(tuple(rest.split(b"\0")))
        first, second, third = _NUMBERS.unpack(rest)
    except (struct.error, ValueError, TypeError) as error:
        raise Internal(f"an unpacking process sent a damaged frame: {packet[:40]!r}") from error
    if letter == b"r":
        return Ready(first, bool(second))
    if letter == b"d":
        return Done(first, second, third)
    if letter in {b"p", b"s"}:
        return Reached(first) if letter == b"p" else Starved(first)
    raise Internal(f"an unpacking process sent an unknown frame: {packet[:40]!r}")


def implied_frames(paths: Sequence[bytes]) -> Iterator[Implied]:
    """As many as it takes: a packet is bounded by the socket's buffer."""
    portion: list[bytes] = []
    room = _IMPLIED_BYTES
    for path in paths:
        if len(path) + 1 > room and portion:
            yield Implied(tuple(portion))
            portion, room = [], _IMPLIED_BYTES
        portion.append(path)
        room -= len(path) + 1
    if portion:
        yield Implied(tuple(portion))


def _join(texts: Sequence[str]) -> bytes:
    return b"\0".join(text.replace("\0", "␀").encode(errors="surrogateescape") for text in texts)


def _split(content: bytes) -> list[str]:
    return [text.decode(errors="surrogateescape") for text in content.split(b"\0")]
