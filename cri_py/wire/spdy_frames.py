"""Frames of SPDY/3.1 (section 2.2 and 2.6), as values and as bytes. Which may follow which is ``spdy``'s business.

The same values are events of one side and commands of the other, as in h11.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from cri_py.wire.spdy_headers import HeaderReader, HeaderWriter
from cri_py.wire.violation import ProtocolError, Rule

Buffer: TypeAlias = bytes | bytearray | memoryview

HEADER_BYTES: Final = 8
MAX_CHUNK: Final = (1 << 24) - 1  # a length has 24 bits
MAX_CONTROL: Final = 64 << 10  # the specification asks for 8 KiB at least
MAX_ID: Final = (1 << 31) - 1
FIN: Final = 1
UNIDIRECTIONAL: Final = 2
INITIAL_WINDOW_SIZE: Final = 7  # the one setting that we act on

_VERSION: Final = 0x8003
_WORD: Final = struct.Struct(">I")
_TWO: Final = struct.Struct(">II")
_CONTROL: Final = struct.Struct(">HHI")
_SYN: Final = struct.Struct(">IIBB")


class Type(IntEnum):
    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class Status(IntEnum):
    """Why a stream was reset."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    UNSUPPORTED_VERSION = 4
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_IN_USE = 8
    STREAM_ALREADY_CLOSED = 9
    FRAME_TOO_LARGE = 11


class Departure(IntEnum):
    """Why a side goes away."""

    OK = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class SynStream(NamedTuple):
    """A stream is opened. ``fin``: its opener sends nothing on it; ``unidirectional``: the other side doesn't."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False
    unidirectional: bool = False
    parent: int = 0
    priority: int = 0  # 0 is the highest, 7 the lowest


class SynReply(NamedTuple):
    stream: int
    headers: Mapping[str, str]
    fin: bool = False


class Headers(NamedTuple):
    stream: int
    headers: Mapping[str, str]
    fin: bool = False


class Chunk(NamedTuple):
    """Bytes of a stream: a whole frame of the sender, but to the receiver any piece of one, ``fin`` on the last."""

    stream: int
    payload: Buffer
    fin: bool = False


class RstStream(NamedTuple):
    stream: int
    status: int


class Settings(NamedTuple):
    values: Mapping[int, int]


class Ping(NamedTuple):
    ping: int


class GoAway(NamedTuple):
    last_stream: int
    status: int = Departure.OK


class WindowUpdate(NamedTuple):
    """The receiver of ``stream`` (0: of all streams together) has room for ``delta`` more bytes."""

    stream: int
    delta: int


ControlFrame: TypeAlias = SynStream | SynReply | Headers | RstStream | Settings | Ping | GoAway | WindowUpdate
Frame: TypeAlias = ControlFrame | Chunk


def chunk_header(stream: int, size: int, *, fin: bool = False) -> bytes:
    """The 8 bytes before ``size`` bytes of payload."""
    return _TWO.pack(stream, (FIN << 24 if fin else 0) | size)


def encode(frame: Frame, headers: HeaderWriter) -> bytes:
    """The frame as one run of bytes. ``headers`` is the connection's: blocks count on those before them."""
    if isinstance(frame, Chunk):
        return chunk_header(frame.stream, len(frame.payload), fin=frame.fin) + bytes(frame.payload)
    flags = 0
    if isinstance(frame, SynStream):
        flags = (FIN if frame.fin else 0) | (UNIDIRECTIONAL if frame.unidirectional else 0)
        kind, body = Type.SYN_STREAM, _SYN.pack(frame.stream, frame.parent, frame.priority << 5, 0)
        body += headers.write(frame.headers)
    elif isinstance(frame, SynReply | Headers):
        flags = FIN if frame.fin else 0
        kind = Type.SYN_REPLY if isinstance(frame, SynReply) else Type.HEADERS
        body = _WORD.pack(frame.stream) + headers.write(frame.headers)
    elif isinstance(frame, Settings):
        kind = Type.SETTINGS
        body = _WORD.pack(len(frame.values)) + b"".join(_TWO.pack(*entry) for entry in frame.values.items())
    elif isinstance(frame, Ping):
        kind, body = Type.PING, _WORD.pack(frame.ping)
    else:
        kind, body = _TYPES_OF_TWO[type(frame)], _TWO.pack(*frame)
    return _CONTROL.pack(_VERSION, kind, flags << 24 | len(body)) + body


def check_control(version: int, kind: int, flags: int, size: int) -> None:
    """The header of a control frame, before its body is awaited. ``version`` still has the control bit."""
    if version != _VERSION:
        raise ProtocolError(Rule.VERSION, f"a frame has version {version & 0x7FFF}")
    if kind not in _LENGTHS:
        raise ProtocolError(Rule.FRAME_TYPE, f"a control frame has type {kind}")
    least, most, allowed = _LENGTHS[kind]
    if not least <= size <= most:
        raise ProtocolError(Rule.CONTROL_LENGTH, f"a {Type(kind).name} frame has {size} bytes")
    if flags & ~allowed:
        raise ProtocolError(Rule.FLAGS, f"a {Type(kind).name} frame has flags {flags:#04x}")


def decode(kind: int, flags: int, body: Buffer, headers: HeaderReader) -> ControlFrame:
    """A control frame from its body, whose length ``check_control`` has passed."""
    return _DECODERS[kind](flags, memoryview(body), headers)


def _syn_stream(flags: int, body: memoryview, headers: HeaderReader) -> SynStream:
    stream, parent, priority, _slot = _SYN.unpack_from(body)
    found = headers.read(body[_SYN.size :])
    fin, unidirectional = bool(flags & FIN), bool(flags & UNIDIRECTIONAL)
    return SynStream(stream & MAX_ID, found, fin, unidirectional, parent & MAX_ID, priority >> 5)


def _syn_reply(flags: int, body: memoryview, headers: HeaderReader) -> SynReply:
    return SynReply(_word(body), headers.read(body[4:]), bool(flags & FIN))


def _headers(flags: int, body: memoryview, headers: HeaderReader) -> Headers:
    return Headers(_word(body), headers.read(body[4:]), bool(flags & FIN))


def _rst_stream(_flags: int, body: memoryview, _headers: HeaderReader) -> RstStream:
    stream, status = _TWO.unpack(body)
    if not status:
        raise ProtocolError(Rule.STATUS, f"stream {stream} is reset without a reason")
    return RstStream(stream & MAX_ID, status)


def _settings(_flags: int, body: memoryview, _headers: HeaderReader) -> Settings:
    (count,) = _WORD.unpack_from(body)
    if len(body) != 4 + 8 * count:
        raise ProtocolError(Rule.SETTINGS, f"{count} settings take {len(body)} bytes")
    # An id has 24 bits, with flags before them that tell how long to keep a value; the first of an id counts.
    entries = [_TWO.unpack_from(body, at) for at in range(4, len(body), 8)]
    return Settings({identity & 0xFFFFFF: value for identity, value in reversed(entries)})


def _ping(_flags: int, body: memoryview, _headers: HeaderReader) -> Ping:
    (ping,) = _WORD.unpack(body)
    if not ping:
        raise ProtocolError(Rule.PING_ID, "a ping has the id 0")
    return Ping(ping)


def _goaway(_flags: int, body: memoryview, _headers: HeaderReader) -> GoAway:
    last, status = _TWO.unpack(body)
    return GoAway(last & MAX_ID, status)


def _window_update(_flags: int, body: memoryview, _headers: HeaderReader) -> WindowUpdate:
    stream, delta = _TWO.unpack(body)
    if not 1 <= delta <= MAX_ID:
        raise ProtocolError(Rule.WINDOW_DELTA, f"the window of stream {stream} is to grow by {delta}")
    return WindowUpdate(stream & MAX_ID, delta)


def _word(body: memoryview) -> int:
    (word,) = _WORD.unpack_from(body)
    return int(word) & MAX_ID


_DECODERS: Final[Mapping[int, Callable[[int, memoryview, HeaderReader], ControlFrame]]] = MappingProxyType(
    {
        Type.SYN_STREAM: _syn_stream,
        Type.SYN_REPLY: _syn_reply,
        Type.RST_STREAM: _rst_stream,
        Type.SETTINGS: _settings,
        Type.PING: _ping,
        Type.GOAWAY: _goaway,
        Type.HEADERS: _headers,
        Type.WINDOW_UPDATE: _window_update,
    }
)
# The least and the most bytes of a body, and the flags that may be set.
_LENGTHS: Final[Mapping[int, tuple[int, int, int]]] = MappingProxyType(
    {
        Type.SYN_STREAM: (10, MAX_CONTROL, FIN | UNIDIRECTIONAL),
        Type.SYN_REPLY: (4, MAX_CONTROL, FIN),
        Type.RST_STREAM: (8, 8, 0),
        Type.SETTINGS: (4, MAX_CONTROL, 1),  # CLEAR_SETTINGS: we keep none from one connection to the next
        Type.PING: (4, 4, 0),
        Type.GOAWAY: (8, 8, 0),
        Type.HEADERS: (4, MAX_CONTROL, FIN),
        Type.WINDOW_UPDATE: (8, 8, 0),
    }
)
_TYPES_OF_TWO: Final[Mapping[type, Type]] = MappingProxyType(
    {RstStream: Type.RST_STREAM, GoAway: Type.GOAWAY, WindowUpdate: Type.WINDOW_UPDATE}
)
