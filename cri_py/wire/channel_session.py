"""Remote commands and port-forwards over a WebSocket, whose messages begin with the number of their channel."""

from __future__ import annotations

import binascii
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from cri_py.wire import channels, websocket
from cri_py.wire.channels import (
    ERROR,
    IN_BASE64,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Base64,
    Buffer,
    Outcome,
    Sizes,
    Streams,
)
from cri_py.wire.events import MOST_HELD, MOST_SENT, Event, Gone, HalfClosed, Opened, Ready, Received, Resized
from cri_py.wire.violation import ProtocolError, Rule

_TEXT_BYTES: Final = 4096
_ZERO: Final = ord("0")


class _ChannelSession(ABC):
    """A connection, what it has to send, and the message that is coming in. There are no windows: TCP is the bound."""

    def __init__(self, protocol: str) -> None:
        self._websocket = websocket.Connection()
        self._protocol = protocol
        self._text = protocol in IN_BASE64
        self._base64 = Base64()
        self._pieces: list[Buffer] = []
        self._channel: int | None = None  # of the message that comes
        self._held = 0
        self._begun = self._gone = False
        self._closed: set[int] = set()  # lanes on which we send nothing more

    @property
    def splices(self) -> bool:
        return not self._text

    @property
    def gone(self) -> bool:
        return self._gone

    @property
    def wants_input(self) -> bool:
        return not self._gone and self._held < MOST_HELD

    def pieces(self) -> list[Buffer]:
        taken, self._pieces = self._pieces, []
        return taken

    def receive(self, received: Buffer) -> list[Event]:
        events: list[Event] = []
        if self._gone:
            return events
        if not self._begun:
            self._begun = True
            self._begin(events)
        for found in self._websocket.receive(received):
            if isinstance(found, websocket.Piece):
                try:
                    self._take(found, events)
                except ProtocolError as error:
                    self._websocket.fail(error)
                    self._end(error, events)
                    break
            else:
                self._end(found.error if isinstance(found, websocket.Failed) else None, events)
        self._put(self._websocket.replies())
        return events

    def receive_eof(self) -> list[Event]:
        events: list[Event] = []
        if not self._gone:
            within = self._websocket.within
            self._end(ProtocolError(Rule.ENDED, "the connection ends within a message") if within else None, events)
        return events

    def consumed(self, _lane: int, size: int) -> None:
        self._held -= size

    def room(self, lane: int) -> int:
        return 0 if self._gone or lane in self._closed or not self._is_lane(lane) else MOST_SENT

    def send(self, lane: int, payload: Buffer) -> None:
        self._check(lane, len(payload))
        self._send(self._number(lane), payload)

    def send_header(self, lane: int, size: int) -> None:
        self._check(lane, size)
        if self._text:
            raise ProtocolError(Rule.BASE64, f"{size} bytes for lane {lane} have to be encoded")
        self._put(websocket.frame_header(1 + size) + bytes((self._number(lane),)))

    def close(self, lane: int) -> None:
        self._closed.add(lane)  # there is no word for it that clients know

    def leave(self) -> None:
        if not self._gone:
            self._gone = True
            self._put(self._websocket.close(websocket.Code.NORMAL))

    @abstractmethod
    def _begin(self, events: list[Event]) -> None:
        """Say what has to be said before the client speaks."""

    @abstractmethod
    def _is_lane(self, lane: int) -> bool:
        """Whether there is such a lane to send on."""

    @abstractmethod
    def _number(self, lane: int) -> int:
        """The channel on which ``lane`` is sent."""

    @abstractmethod
    def _check_channel(self, channel: int) -> None:
        """Raise ProtocolError for one that does not exist."""

    @abstractmethod
    def _on(self, channel: int, payload: Buffer, *, last: bool, events: list[Event]) -> None:
        """Turn bytes of a message, after its first, into events."""

    def _take(self, piece: websocket.Piece, events: list[Event]) -> None:
        payload: Buffer = piece.payload
        if piece.first:
            self._channel = None
        if self._channel is None:
            if not payload:
                return
            self._channel = payload[0] - _ZERO if self._text else payload[0]
            self._check_channel(self._channel)
            payload = memoryview(payload)[1:]
        if self._text:
            payload = self._base64.decode(payload, last=piece.last)
        self._on(self._channel, payload, last=piece.last, events=events)

    def _give(self, lane: int, payload: Buffer, events: list[Event]) -> None:
        if payload:
            self._held += len(payload)
            events.append(Received(lane, payload))

    def _check(self, lane: int, size: int) -> None:
        if size > self.room(lane):
            raise ProtocolError(Rule.CHANNEL, f"lane {lane} is closed or takes no {size} bytes at once")

    def _send(self, channel: int, payload: Buffer) -> None:
        if not self._text:
            self._put(websocket.frame_header(1 + len(payload)) + bytes((channel,)), payload)
            return
        text = bytes((_ZERO + channel,)) + binascii.b2a_base64(payload, newline=False)
        self._put(websocket.frame_header(len(text), websocket.Opcode.TEXT), text)

    def _put(self, *pieces: Buffer) -> None:
        self._pieces += filter(len, pieces)

    def _end(self, error: ProtocolError | None, events: list[Event]) -> None:
        self._gone = True
        events.append(Gone(error))


class ChannelCommand(_ChannelSession):
    def __init__(self, protocol: str, streams: Streams) -> None:
        super().__init__(protocol)
        self._streams = streams
        self._sizes = Sizes()
        self._closing = b""  # the message on channel 255 that comes
        self._half_closed = False

    def finish(self, outcome: Outcome) -> None:
        if self._gone:
            return
        if said := channels.status(self._protocol, outcome):
            self._send(ERROR, said)
        self.leave()

    def _begin(self, events: list[Event]) -> None:
        # An empty message on the first channel that we write to tells clients that the command has begun.
        first = next((lane for lane in (STDOUT, STDERR) if self._is_lane(lane)), ERROR)
        self._send(first, b"")
        events.append(Ready())

    def _is_lane(self, lane: int) -> bool:
        streams = self._streams
        return {STDOUT: streams.stdout, STDERR: streams.stderr and not streams.tty, ERROR: True}.get(lane, False)

    def _number(self, lane: int) -> int:
        return lane

    def _check_channel(self, channel: int) -> None:
        if not (STDIN <= channel <= RESIZE or (channel == channels.CLOSE and self._protocol == channels.V5)):
            raise ProtocolError(Rule.CHANNEL, f"a message comes on channel {channel}")

    def _on(self, channel: int, payload: Buffer, *, last: bool, events: list[Event]) -> None:
        if channel == channels.CLOSE:
            self._take_close(payload, last=last, events=events)
        elif channel == STDIN and self._streams.stdin:
            if self._half_closed:
                raise ProtocolError(Rule.CLOSE_CHANNEL, "bytes come on channel 0 after it was closed")
            self._give(STDIN, payload, events)
        elif channel == RESIZE and self._streams.tty:
            events += [Resized(*size) for size in self._sizes.read(payload)]

    def _take_close(self, payload: Buffer, *, last: bool, events: list[Event]) -> None:
        self._closing += payload
        if len(self._closing) > 1 or (last and not self._closing):
            raise ProtocolError(Rule.CLOSE_CHANNEL, f"a message on channel 255 has {len(self._closing)} bytes or more")
        if not last:
            return
        (closed,) = self._closing
        self._closing = b""
        if closed > RESIZE:
            raise ProtocolError(Rule.CLOSE_CHANNEL, f"channel {closed} is to be closed")
        if closed == STDIN and self._streams.stdin and not self._half_closed:
            self._half_closed = True
            events.append(HalfClosed(STDIN))


class ChannelForward(_ChannelSession):
    """Lane n is the nth of the ports that were asked for: channel 2n has its bytes, 2n+1 its error."""

    def __init__(self, protocol: str, ports: Sequence[int]) -> None:
        super().__init__(protocol)
        self._ports = tuple(ports)

    def fail(self, lane: int, text: str) -> None:
        said = text.encode("utf-8", "replace")[:_TEXT_BYTES]
        if self._is_lane(lane) and not self._gone and said:
            self._send(2 * lane + 1, said)

    def end(self, lane: int) -> None:
        self.close(lane)

    def _begin(self, events: list[Event]) -> None:
        for lane, port in enumerate(self._ports):
            for channel in (2 * lane, 2 * lane + 1):
                self._send(channel, port.to_bytes(2, "little"))
            events.append(Opened(lane, port))

    def _is_lane(self, lane: int) -> bool:
        return 0 <= lane < len(self._ports)

    def _number(self, lane: int) -> int:
        return 2 * lane

    def _check_channel(self, channel: int) -> None:
        if not 0 <= channel < 2 * len(self._ports):
            raise ProtocolError(Rule.CHANNEL, f"a message comes on channel {channel}")

    def _on(self, channel: int, payload: Buffer, *, last: bool, events: list[Event]) -> None:
        lane, is_error = divmod(channel, 2)
        if not is_error and lane not in self._closed:
            self._give(lane, payload, events)
