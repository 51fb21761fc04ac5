"""Remote commands and port-forwards over SPDY, also where SPDY itself goes through the messages of a WebSocket."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from cri_py.wire import spdy, websocket
from cri_py.wire import spdy_frames as frames
from cri_py.wire.channels import (
    ERROR,
    LANES,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Buffer,
    Outcome,
    Sizes,
    Streams,
    forwarded_port,
    status,
)
from cri_py.wire.events import (
    MOST_HELD,
    Dropped,
    Event,
    Gone,
    HalfClosed,
    Opened,
    Ready,
    Received,
    Resized,
)
from cri_py.wire.violation import ProtocolError, Rule

_TEXT_BYTES: Final = 4096


class _SpdySession(ABC):
    """A connection, what it has to send, and the tunnel around it."""

    splices: Final = True

    def __init__(self, *, tunnelled: bool) -> None:
        self._spdy = spdy.Connection(spdy.Role.SERVER)
        self._tunnel = websocket.Connection() if tunnelled else None
        self._pieces: list[Buffer] = []
        self._gone = False

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def wants_input(self) -> bool:
        return not self._gone and self._spdy.held < MOST_HELD

    def pieces(self) -> list[Buffer]:
        taken, self._pieces = self._pieces, []
        return taken

    def receive(self, received: Buffer) -> list[Event]:
        events: list[Event] = []
        if self._gone:
            return events
        if self._tunnel is None:
            self._take(received, events)
            return events
        for found in self._tunnel.receive(received):
            if isinstance(found, websocket.Piece):
                if found.text:
                    self._fail(ProtocolError(Rule.OPCODE, "a tunnel of SPDY has binary messages, not text"), events)
                else:
                    self._take(found.payload, events)
            else:
                self._end(found.error if isinstance(found, websocket.Failed) else None, events)
            if self._gone:
                break
        self._put_raw(self._tunnel.replies())
        return events

    def receive_eof(self) -> list[Event]:
        events: list[Event] = []
        if not self._gone:
            within = self._spdy.within or (self._tunnel is not None and self._tunnel.within)
            self._end(ProtocolError(Rule.ENDED, "the connection ends within a frame") if within else None, events)
        return events

    def leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._put(self._spdy.send(frames.GoAway(self._spdy.last_stream)))
            if self._tunnel is not None:
                self._put_raw(self._tunnel.close(websocket.Code.NORMAL))

    @abstractmethod
    def _on(self, event: spdy.Event, events: list[Event]) -> None:
        """Turn an event of the connection into events of the session."""

    def _take(self, received: Buffer, events: list[Event]) -> None:
        for event in self._spdy.receive(received):
            if isinstance(event, spdy.Failed):
                self._put(self._spdy.replies())
                self._end(event.error, events)
                return
            try:
                self._on(event, events)
            except ProtocolError as error:
                self._fail(error, events)
                return
        self._put(self._spdy.replies())

    def _fail(self, error: ProtocolError, events: list[Event]) -> None:
        departure = frames.GoAway(self._spdy.last_stream, frames.Departure.PROTOCOL_ERROR)
        self._put(self._spdy.replies(), self._spdy.send(departure))
        self._end(error, events)

    def _end(self, error: ProtocolError | None, events: list[Event]) -> None:
        self._gone = True
        if error is not None and self._tunnel is not None:
            self._tunnel.fail(error)
            self._put_raw(self._tunnel.replies())
        events.append(Gone(error))

    def _put(self, *pieces: Buffer, following: int = 0) -> None:
        """Send ``pieces``, after which the caller sends ``following`` bytes more."""
        size = sum(map(len, pieces)) + following
        if size and self._tunnel is not None:
            self._put_raw(websocket.frame_header(size))
        self._put_raw(*pieces)

    def _put_raw(self, *pieces: Buffer) -> None:
        self._pieces += filter(len, pieces)

    def _send(self, stream: int, payload: Buffer, *, fin: bool = False) -> None:
        self._put(self._spdy.send_header(stream, len(payload), fin=fin), payload)

    def _finish(self, stream: int) -> None:
        """End ``stream`` in our direction, if that is still to do."""
        if self._spdy.can_send(stream):
            self._send(stream, b"", fin=True)

    def _credit(self, stream: int, size: int) -> None:
        self._spdy.consumed(stream, size)
        if not self._gone:
            self._put(self._spdy.replies())


class SpdyCommand(_SpdySession):
    def __init__(self, protocol: str, streams: Streams) -> None:
        super().__init__(tunnelled=False)
        self._protocol = protocol
        self._awaited = set(streams.lanes(protocol))
        self._lanes: dict[int, int] = {}  # by stream
        self._streams: dict[int, int] = {}  # by lane
        self._sizes = Sizes()

    def room(self, lane: int) -> int:
        return 0 if self._gone else self._spdy.room(self._streams.get(lane, 0))

    def send(self, lane: int, payload: Buffer) -> None:
        self._send(self._streams.get(lane, 0), payload)

    def send_header(self, lane: int, size: int) -> None:
        self._put(self._spdy.send_header(self._streams.get(lane, 0), size), following=size)

    def consumed(self, lane: int, size: int) -> None:
        self._credit(self._streams.get(lane, 0), size)

    def close(self, lane: int) -> None:
        self._finish(self._streams.get(lane, 0))

    def finish(self, outcome: Outcome) -> None:
        if self._gone:
            return
        for lane in (STDOUT, STDERR):
            self.close(lane)
        said = status(self._protocol, outcome)
        error = self._streams.get(ERROR, 0)
        if said and self._spdy.can_send(error):
            self._send(error, said, fin=True)
        for lane in (ERROR, STDIN, RESIZE):
            self.close(lane)
        self.leave()

    def _on(self, event: spdy.Event, events: list[Event]) -> None:
        if isinstance(event, frames.SynStream):
            self._open(event, events)
        lane = self._lanes.get(getattr(event, "stream", 0))
        if isinstance(event, frames.Chunk):
            self._take_chunk(event, lane, events)
        if lane is None or lane in {ERROR, RESIZE}:
            return
        if isinstance(event, frames.RstStream):
            events.append(Dropped(lane))
        elif lane == STDIN and getattr(event, "fin", False):
            events.append(HalfClosed(STDIN))

    def _open(self, event: frames.SynStream, events: list[Event]) -> None:
        kind = event.headers.get("streamtype", "")
        lane = LANES.get(kind)
        if lane not in self._awaited:
            raise ProtocolError(Rule.STREAM_TYPE, f"a stream has the type {kind[:20]!r}, which is not awaited")
        self._awaited.remove(lane)
        self._lanes[event.stream] = lane
        self._streams[lane] = event.stream
        if self._spdy.can_send(event.stream):
            self._put(self._spdy.send(frames.SynReply(event.stream, {})))
        if not self._awaited:
            events.append(Ready())

    def _take_chunk(self, event: frames.Chunk, lane: int | None, events: list[Event]) -> None:
        size = len(event.payload)
        if lane == STDIN:
            if size:
                events.append(Received(STDIN, event.payload))
            return
        if lane == RESIZE:
            events += [Resized(*found) for found in self._sizes.read(event.payload)]
        self._spdy.consumed(event.stream, size)


class _Request:
    """The two streams of a forwarded connection."""

    __slots__ = ("data", "error", "port")

    def __init__(self) -> None:
        self.data = 0
        self.error = 0
        self.port = 0


class SpdyForward(_SpdySession):
    """A lane has the id of its data stream."""

    def __init__(self, *, tunnelled: bool) -> None:
        super().__init__(tunnelled=tunnelled)
        self._halves: dict[str, _Request] = {}  # that lack a stream, by request id
        self._requests: dict[int, _Request] = {}  # by each of their streams
        self._open: dict[int, _Request] = {}  # by lane

    def room(self, lane: int) -> int:
        return 0 if self._gone or lane not in self._open else self._spdy.room(lane)

    def send(self, lane: int, payload: Buffer) -> None:
        self._send(lane, payload)

    def send_header(self, lane: int, size: int) -> None:
        self._put(self._spdy.send_header(lane, size), following=size)

    def consumed(self, lane: int, size: int) -> None:
        self._credit(lane, size)

    def close(self, lane: int) -> None:
        """The error stream ends as well: older clients, which don't reset the data stream, keep the connection to their
        user open until it has."""
        if (request := self._open.get(lane)) is not None:
            self._finish(lane)
            self._finish(request.error)

    def fail(self, lane: int, text: str) -> None:
        request = self._open.get(lane)
        said = text.encode("utf-8", "replace")[:_TEXT_BYTES]
        if request is not None and said and self._spdy.room(request.error) >= len(said):
            self._send(request.error, said, fin=True)

    def end(self, lane: int) -> None:
        request = self._open.pop(lane, None)
        if request is not None:
            for stream in (request.error, request.data):
                self._finish(stream)
                self._requests.pop(stream, None)

    def _on(self, event: spdy.Event, events: list[Event]) -> None:
        if isinstance(event, frames.SynStream):
            self._pair(event, events)
        stream = getattr(event, "stream", 0)
        if isinstance(event, frames.Chunk):
            self._take_chunk(event, events)
        if stream not in self._requests:
            return
        if isinstance(event, frames.RstStream):
            self._drop(stream, events)
        elif stream in self._open and getattr(event, "fin", False):
            events.append(HalfClosed(stream))

    def _pair(self, event: frames.SynStream, events: list[Event]) -> None:
        kind = event.headers.get("streamtype", "")
        port = forwarded_port(event.headers)
        # Clients of old open the error stream, then at once the data stream, and name no request.
        unnamed = str(event.stream - 2 if kind == "data" else event.stream)
        identity = event.headers.get("requestid", unnamed)
        request = self._halves.get(identity) or _Request()
        # A stream that is closed both ways from its first frame would be remembered without counting as open.
        if event.unidirectional:
            raise ProtocolError(Rule.FORWARD, f"request {identity[:20]!r} has a stream that takes no answer")
        if kind not in {"data", "error"} or getattr(request, kind):
            raise ProtocolError(Rule.FORWARD, f"request {identity[:20]!r} has one more stream of type {kind[:20]!r}")
        setattr(request, kind, event.stream)
        self._halves[identity] = self._requests[event.stream] = request
        if kind == "data":
            request.port = port
        if self._spdy.can_send(event.stream):
            self._put(self._spdy.send(frames.SynReply(event.stream, {})))
        if request.data and request.error:
            del self._halves[identity]
            self._open[request.data] = request
            events.append(Opened(request.data, request.port))

    def _take_chunk(self, event: frames.Chunk, events: list[Event]) -> None:
        size = len(event.payload)
        if event.stream in self._open and size:
            events.append(Received(event.stream, event.payload))
        else:
            self._spdy.consumed(event.stream, size)

    def _drop(self, stream: int, events: list[Event]) -> None:
        request = self._requests.pop(stream)
        if stream in self._open:
            events.append(Dropped(stream))
        for identity, half in list(self._halves.items()):
            if half is request:
                del self._halves[identity]
