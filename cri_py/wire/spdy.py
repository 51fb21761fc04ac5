"""A SPDY/3.1 connection without I/O, in the shape of h11: bytes in, frames out, and the other way round.

What Kubernetes clients speak is moby/spdystream, which this module is fitted to:

- It keeps no windows. It sends neither SETTINGS nor WINDOW_UPDATE, ignores both, and sends as fast as TCP takes. A
  WINDOW_UPDATE even hurts it: each takes a place in the queues that it shares with data, so one stream that is not
  read could stop them all. So windows are kept with peers that keep them, which shows: they send SETTINGS or
  WINDOW_UPDATE, or stop at 64 KiB; a peer that sends more, having said nothing of windows, has none, and the bound
  is then the receiver's, who stops reading (``held``). Nor has one that took more from us than its windows would
  allow: what it grants afterwards must bound nobody, for it may find out what it is by the same overrun.
- It drops data that comes before the SYN_REPLY of its stream, and may send data after it has reset a stream or after
  we have: frames of streams that are forgotten are dropped.
- Ids go up from 1 by 2, priorities are 0, header names are in lower case. Any control frame that it doesn't
  understand ends the connection. GOAWAY ends its reading, so it has to be the last frame.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from cri_py.wire.spdy_frames import (
    FIN,
    HEADER_BYTES,
    INITIAL_WINDOW_SIZE,
    MAX_CHUNK,
    MAX_ID,
    Buffer,
    Chunk,
    ControlFrame,
    Departure,
    Frame,
    GoAway,
    Headers,
    Ping,
    RstStream,
    Settings,
    Status,
    SynReply,
    SynStream,
    WindowUpdate,
    check_control,
    chunk_header,
    decode,
    encode,
)
from cri_py.wire.spdy_headers import HeaderReader, HeaderWriter
from cri_py.wire.violation import ProtocolError, Rule

WINDOW: Final = 64 << 10
MAX_STREAMS: Final = 2048
_EMPTY: Final = memoryview(b"")


class Failed(NamedTuple):
    """The last event: the peer broke a rule. GOAWAY, which tells it, is among the replies."""

    error: ProtocolError


Event: TypeAlias = Frame | Failed


class Role(Enum):
    CLIENT = 1  # its streams and pings have odd ids
    SERVER = 0


class _Windows(Enum):
    """Whether the peer bounds what it sends by our windows."""

    UNKNOWN = 0
    KEPT = 1
    NONE = 2


class _Stream:
    __slots__ = ("held", "ours", "owed", "receives", "replied", "sends", "theirs")

    def __init__(self, *, sends: bool, receives: bool, replied: bool, room: int) -> None:
        self.sends = sends  # we may
        self.receives = receives  # they may
        self.replied = replied
        self.theirs = room  # what we may send; below zero if the peer keeps no windows
        self.ours = WINDOW  # what they may send
        self.held = 0  # received, not yet consumed
        self.owed = 0  # consumed, not yet granted again


class Connection:
    """Both ends of a connection speak through one of these.

    ``receive`` never raises for what the peer did: it answers Failed. ``send`` raises ProtocolError for what its
    caller must not send. Payloads are views of the bytes given to ``receive``: whoever reuses that buffer must
    have used them up.
    """

    def __init__(self, role: Role, *, max_streams: int = MAX_STREAMS) -> None:
        self._parity = role.value
        self._max_streams = max_streams
        self._streams: dict[int, _Stream] = {}
        self._next = 1 if role is Role.CLIENT else 2
        self._last = 0  # highest stream of theirs
        self._partial = bytearray()
        self._control: tuple[int, int, int] | None = None  # type, flags and size of a control frame whose body comes
        self._data: _Stream | None = None  # whose payload comes; None if it is dropped
        self._data_id = 0
        self._data_left = 0
        self._data_fin = False
        self._writer = HeaderWriter()
        self._reader = HeaderReader()
        self._replies: list[bytes] = []
        self._windows = _Windows.UNKNOWN
        self._granted = False  # the peer has granted room: what we send is bounded by it
        self._whole = _Stream(sends=True, receives=True, replied=True, room=WINDOW)  # windows of all streams together
        self._initial = WINDOW
        self._left = False  # GOAWAY was said, by whom ever
        self._failed = False

    @property
    def next_stream(self) -> int:
        """The id that a SynStream of ours has to have."""
        return self._next

    @property
    def last_stream(self) -> int:
        """The highest id of a stream of theirs, which a GoAway tells."""
        return self._last

    @property
    def within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._partial or self._control or self._data_left)

    @property
    def held(self) -> int:
        """Bytes that were given out as Chunks and not yet consumed: the bound of a peer without windows."""
        return self._whole.held

    def replies(self) -> bytes:
        """What has to be sent beside commands: answers to pings, grants of room, refusals, GOAWAY. Taken once."""
        if not self._replies:
            return b""
        taken = b"".join(self._replies)
        self._replies.clear()
        return taken

    def can_send(self, stream: int) -> bool:
        """Whether ``stream`` is open in our direction."""
        found = self._streams.get(stream)
        return found is not None and found.sends

    def room(self, stream: int) -> int:
        """How many bytes may be sent on ``stream`` now, at most what fits into one frame."""
        found = self._streams.get(stream)
        if found is None or not found.sends:
            return 0
        return max(0, min(found.theirs, self._whole.theirs, MAX_CHUNK)) if self._granted else MAX_CHUNK

    def receive(self, received: Buffer) -> list[Event]:
        """The frames in ``received`` and what came before it, in order. After Failed there is nothing any more."""
        events: list[Event] = []
        if self._failed:
            return events
        view = memoryview(received)
        at, end = 0, len(view)
        try:
            while at < end:
                take = self._take_payload if self._data_left else self._take_frame
                at = take(view, at, events)
        except ProtocolError as error:
            self._failed = self._left = True
            self._replies.append(encode(GoAway(self._last, Departure.PROTOCOL_ERROR), self._writer))
            events.append(Failed(error))
        return events

    def consumed(self, stream: int, size: int) -> None:
        """``size`` bytes of Chunks on ``stream`` have gone where they belong; their room may be granted again."""
        found = self._streams.get(stream)
        if found is not None:
            found.held -= size
            if found.receives:
                self._grant(found, stream, size)
        self._whole.held -= size
        self._grant(self._whole, 0, size)

    def send(self, frame: Frame) -> bytes:
        """The bytes of ``frame``, whose effect is taken as done. For Chunks in bulk see ``send_header``."""
        if isinstance(frame, Chunk):
            return self.send_header(frame.stream, len(frame.payload), fin=frame.fin) + bytes(frame.payload)
        if isinstance(frame, SynStream):
            self._open_ours(frame)
        elif isinstance(frame, SynReply | Headers):
            self._answer(frame)
        elif isinstance(frame, RstStream):
            self._forget(frame.stream)
        elif isinstance(frame, Settings):
            self._keep_windows()  # who speaks of windows keeps them
        elif isinstance(frame, GoAway):
            self._left = True
        return encode(frame, self._writer)

    def send_header(self, stream: int, size: int, *, fin: bool = False) -> bytes:
        """The header of a Chunk, after which exactly ``size`` bytes must be sent before anything else."""
        found = self._streams.get(stream)
        if found is None or not found.sends:
            raise ProtocolError(Rule.STREAM_CLOSED, f"stream {stream} is closed and takes no {size} bytes")
        if size > self.room(stream):
            raise ProtocolError(Rule.WINDOW, f"stream {stream} has no room for {size} bytes")
        found.theirs -= size
        self._whole.theirs -= size
        if fin:
            self._finish(stream, found, ours=True)
        return chunk_header(stream, size, fin=fin)

    def _take_payload(self, view: memoryview, at: int, events: list[Event]) -> int:
        size = min(self._data_left, len(view) - at)
        self._data_left -= size
        self._give(view[at : at + size], events)
        return at + size

    def _give(self, payload: memoryview, events: list[Event]) -> None:
        stream, size = self._data, len(payload)
        fin = self._data_fin and not self._data_left
        # A stream may be forgotten between two pieces of a frame, by a reset of ours.
        if stream is None or self._streams.get(self._data_id) is not stream:
            self._grant(self._whole, 0, size)
            return
        stream.held += size
        self._whole.held += size
        if fin:
            self._finish(self._data_id, stream, ours=False)
        if size or fin:
            events.append(Chunk(self._data_id, payload, fin))

    def _take_frame(self, view: memoryview, at: int, events: list[Event]) -> int:
        """Take a header, or the body of a control frame, as far as it is there."""
        needed = self._control[2] if self._control else HEADER_BYTES
        size = min(needed - len(self._partial), len(view) - at)
        piece: Buffer = view[at : at + size]
        if self._partial or size < needed:
            self._partial += piece
            if len(self._partial) < needed:
                return at + size
            piece = bytes(self._partial)
            self._partial.clear()
        if self._control:
            kind, flags, _ = self._control
            self._control = None
            self._act(decode(kind, flags, piece, self._reader), events)
        else:
            self._take_header(piece, events)
        return at + size

    def _take_header(self, header: Buffer, events: list[Event]) -> None:
        first, flags, size = int.from_bytes(header[:4], "big"), header[4], int.from_bytes(header[5:8], "big")
        if first >> 31:
            check_control(first >> 16, first & 0xFFFF, flags, size)
            self._control = (first & 0xFFFF, flags, size)
            return
        if flags & ~FIN:
            raise ProtocolError(Rule.FLAGS, f"data of stream {first} has flags {flags:#04x}")
        self._data = self._receiver(first)
        self._data_id, self._data_left, self._data_fin = first, size, bool(flags)
        self._count(first, size)
        if not size:
            self._give(_EMPTY, events)

    def _receiver(self, stream: int) -> _Stream | None:
        """The stream that a frame of theirs belongs to; None if it is forgotten."""
        found = self._streams.get(stream)
        if found is None:
            opened = self._last if stream % 2 != self._parity else self._next - 1
            if not 0 < stream <= opened:
                raise ProtocolError(Rule.STREAM_UNKNOWN, f"a frame comes for stream {stream}, which was not opened")
        elif not found.receives:
            raise ProtocolError(Rule.STREAM_CLOSED, f"a frame comes for stream {stream} after its last one")
        return found

    def _count(self, stream: int, size: int) -> None:
        """Take ``size`` from our windows."""
        windows = (self._whole,) if self._data is None else (self._whole, self._data)
        for window in windows:
            window.ours -= size
        if min(window.ours for window in windows) >= 0:
            return
        if self._windows is _Windows.KEPT:
            raise ProtocolError(Rule.WINDOW, f"stream {stream} overruns its window with {size} bytes")
        self._windows = _Windows.NONE

    def _grant(self, window: _Stream, stream: int, size: int) -> None:
        if self._windows is _Windows.NONE:
            return
        window.owed += size
        # Unasked, a grant is only for a peer that would otherwise wait for ever.
        late = window.ours < WINDOW // 4 if self._windows is _Windows.UNKNOWN else window.owed >= WINDOW // 2
        if late and window.owed and not self._failed:
            self._replies.append(encode(WindowUpdate(stream, window.owed), self._writer))
            window.ours += window.owed
            window.owed = 0

    def _act(self, frame: ControlFrame, events: list[Event]) -> None:
        """Do what ``frame`` says, and tell of it unless it is of no interest any more."""
        told = True
        if isinstance(frame, SynStream):
            told = self._open_theirs(frame)
        elif isinstance(frame, SynReply | Headers):
            told = self._take_headers(frame)
        elif isinstance(frame, RstStream):
            told = self._streams.pop(frame.stream, None) is not None or self._receiver(frame.stream) is not None
        elif isinstance(frame, WindowUpdate):
            self._widen(frame)
        elif isinstance(frame, Settings):
            self._set(frame)
        elif isinstance(frame, Ping):
            told = frame.ping % 2 == self._parity  # an answer to ours; theirs comes back to them
            if not told:
                self._replies.append(encode(frame, self._writer))
        else:
            self._left = True
        if told:
            events.append(frame)

    def _open_theirs(self, frame: SynStream) -> bool:
        stream = frame.stream
        if stream <= self._last or stream % 2 == self._parity:
            raise ProtocolError(Rule.STREAM_ID, f"stream {stream} is opened after stream {self._last}")
        self._last = stream
        if self._left:
            return False
        if len(self._streams) >= self._max_streams:
            self._replies.append(encode(RstStream(stream, Status.REFUSED_STREAM), self._writer))
            return False
        sends, receives = not frame.unidirectional, not frame.fin
        if sends or receives:
            self._streams[stream] = _Stream(sends=sends, receives=receives, replied=False, room=self._initial)
        return True

    def _open_ours(self, frame: SynStream) -> None:
        if frame.stream != self._next or frame.stream > MAX_ID:
            raise ProtocolError(Rule.STREAM_ID, f"stream {frame.stream} is to be opened, the next id is {self._next}")
        if self._left:
            raise ProtocolError(Rule.GONE_AWAY, f"stream {frame.stream} is to be opened after GOAWAY")
        self._next += 2
        sends, receives = not frame.fin, not frame.unidirectional
        if sends or receives:
            stream = _Stream(sends=sends, receives=receives, replied=False, room=self._initial)
            self._streams[frame.stream] = stream

    def _answer(self, frame: SynReply | Headers) -> None:
        found = self._streams.get(frame.stream)
        if found is None or not found.sends:
            raise ProtocolError(Rule.STREAM_CLOSED, f"stream {frame.stream} is closed and takes no headers")
        if isinstance(frame, SynReply):
            if found.replied or frame.stream % 2 == self._parity:
                raise ProtocolError(Rule.REPLIED_TWICE, f"stream {frame.stream} needs no reply of ours")
            found.replied = True
        if frame.fin:
            self._finish(frame.stream, found, ours=True)

    def _take_headers(self, frame: SynReply | Headers) -> bool:
        found = self._receiver(frame.stream)
        if isinstance(frame, SynReply) and (frame.stream % 2 != self._parity or (found and found.replied)):
            raise ProtocolError(Rule.REPLIED_TWICE, f"a reply comes for stream {frame.stream}, which awaits none")
        if found is None:
            return False
        if isinstance(frame, SynReply):
            found.replied = True
        if frame.fin:
            self._finish(frame.stream, found, ours=False)
        return True

    def _finish(self, stream: int, found: _Stream, *, ours: bool) -> None:
        """One direction of ``stream`` ends; with the other it is forgotten."""
        if ours:
            found.sends = False
        else:
            found.receives = False
        if not (found.sends or found.receives):
            self._forget(stream)

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)

    def _widen(self, frame: WindowUpdate) -> None:
        self._keep_windows()
        found = self._streams.get(frame.stream) if frame.stream else self._whole
        if found is None or not found.sends:
            return
        found.theirs += frame.delta
        if found.theirs > MAX_ID:
            raise ProtocolError(Rule.WINDOW_DELTA, f"the window of stream {frame.stream} grows to {found.theirs}")

    def _set(self, frame: Settings) -> None:
        initial = frame.values.get(INITIAL_WINDOW_SIZE)
        if initial is None:
            return
        if initial > MAX_ID:
            raise ProtocolError(Rule.WINDOW_DELTA, f"windows of streams are to have {initial} bytes at first")
        self._keep_windows()
        for stream in self._streams.values():
            stream.theirs += initial - self._initial
        self._initial = initial

    def _keep_windows(self) -> None:
        """Windows are spoken of: from now on both sides heed them, unless they were overrun already."""
        if not self._granted and (self._windows is _Windows.NONE or self._has_overrun()):
            self._windows = _Windows.NONE
            return
        self._granted = True
        self._windows = _Windows.KEPT

    def _has_overrun(self) -> bool:
        return self._whole.theirs < 0 or any(stream.theirs < 0 for stream in self._streams.values())
