"""The server's side of a WebSocket connection after its handshake (RFC 6455), without I/O.

Messages come in pieces as they arrive, so no size of frame or message is ever held in memory; sent frames are whole
messages, given as headers, so that payloads need no copy. There are no extensions. Text is passed on as bytes: the
protocols above take base64 in it or, as the kubelet does, raw bytes, so its UTF-8 is not checked.

Why not a library: docs/adr/0007-websocket-frames.md.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from cri_py.wire.violation import ProtocolError, Rule

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_MESSAGE: Final = 32 << 20
_CONTROL_BYTES: Final = 125
_NO_CODE: Final = 1005
_IDENTITY: Final = int.from_bytes(bytes(range(256)), "big")
_ONES: Final = int.from_bytes(b"\1" * 256, "big")


class Opcode(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Code(IntEnum):
    """Why a side closes (RFC 6455 7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NOT_CONSISTENT = 1007
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011


class Piece(NamedTuple):
    """Bytes of a message, unmasked; ``last`` with the end of the message, where they may be none."""

    payload: bytearray
    first: bool
    last: bool
    text: bool


class Closed(NamedTuple):
    """The peer has closed; 1005 is a close frame without a code. Nothing follows."""

    code: int


class Failed(NamedTuple):
    """The peer broke a rule. Nothing follows."""

    error: ProtocolError


Event: TypeAlias = Piece | Closed | Failed


def frame_header(size: int, opcode: Opcode = Opcode.BINARY) -> bytes:
    """What stands before ``size`` bytes of payload, in a frame that is a whole message."""
    first = 0x80 | opcode
    if size < 126:
        return bytes((first, size))
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big")
    return bytes((first, 127)) + size.to_bytes(8, "big")


def unmask(payload: Buffer, key: bytes) -> bytearray:
    """``payload`` xor ``key``, over and over. Twice as fast as xor of large integers: about 900 MiB/s."""
    plain = bytearray(payload)
    for at in range(4):
        if key[at]:
            table = (_IDENTITY ^ _ONES * key[at]).to_bytes(256, "big")
            plain[at::4] = plain[at::4].translate(table)
    return plain


class Connection:
    """Reads frames of a client. ``receive`` never raises for what the client did: it answers Failed."""

    def __init__(self, *, max_message: int = MAX_MESSAGE) -> None:
        self._max_message = max_message
        self._partial = bytearray()
        self._control: Opcode | None = None  # whose payload comes
        self._left = 0  # bytes of payload that come
        self._key = b"\0\0\0\0"  # turned to the next byte
        self._final = False
        self._message: Opcode | None = None  # that is not finished
        self._first = False
        self._size = 0
        self._replies: list[bytes] = []
        self._over = False
        self._close_sent = False

    @property
    def within(self) -> bool:
        """Whether a frame or a message has begun and not ended."""
        return bool(self._partial or self._left or self._message is not None)

    def replies(self) -> bytes:
        """What has to be sent beside messages: pongs and close frames. Taken once."""
        taken = b"".join(self._replies)
        self._replies.clear()
        return taken

    def receive(self, received: Buffer) -> list[Event]:
        """The messages in ``received``, in pieces and in order. After Closed or Failed there is nothing any more."""
        events: list[Event] = []
        view = memoryview(received)
        at = 0
        try:
            while at < len(view) and not self._over:
                if self._left and self._control is None:
                    at = self._take_payload(view, at, events)
                else:
                    at = self._take_frame(view, at, events)
        except ProtocolError as error:
            self.fail(error)
            events.append(Failed(error))
        return events

    def fail(self, error: ProtocolError) -> None:
        """End the connection for a rule that was broken, here or in what the messages hold."""
        codes = {Rule.MESSAGE_SIZE: Code.TOO_BIG, Rule.BASE64: Code.NOT_CONSISTENT}
        self._replies.append(self.close(codes.get(error.rule, Code.PROTOCOL_ERROR), error.message))
        self._over = True

    def close(self, code: Code, reason: str = "") -> bytes:
        """The close frame, the last one that may be sent; nothing if it was sent already."""
        if self._close_sent:
            return b""
        self._close_sent = True
        payload = code.to_bytes(2, "big") + reason.encode()[: _CONTROL_BYTES - 2].decode(errors="ignore").encode()
        return frame_header(len(payload), Opcode.CLOSE) + payload

    def _take_payload(self, view: memoryview, at: int, events: list[Event]) -> int:
        size = min(self._left, len(view) - at)
        plain = unmask(view[at : at + size], self._key)
        self._left -= size
        turn = size % 4
        self._key = self._key[turn:] + self._key[:turn]
        self._give(plain, events)
        return at + size

    def _give(self, plain: bytearray, events: list[Event]) -> None:
        last = self._final and not self._left
        if plain or last:
            events.append(Piece(plain, self._first, last, self._message is Opcode.TEXT))
            self._first = False
        if last:
            self._message = None

    def _take_frame(self, view: memoryview, at: int, events: list[Event]) -> int:
        """Take a header, or the whole payload of a control frame, as far as it is there."""
        while at < len(view):
            needed = self._left if self._control is not None else _header_size(self._partial)
            size = min(needed - len(self._partial), len(view) - at)
            self._partial += view[at : at + size]
            at += size
            if len(self._partial) < needed or (self._control is None and needed < _header_size(self._partial)):
                continue
            taken = bytes(self._partial)
            self._partial.clear()
            if self._control is not None:
                self._end_control(taken, events)
            else:
                self._begin(taken, events)
            break
        return at

    def _begin(self, header: bytes, events: list[Event]) -> None:
        first, second = header[0], header[1]
        size = second & 0x7F if len(header) == 6 else int.from_bytes(header[2:-4], "big")
        opcode = _opcode(first, second)
        if size < {6: 0, 8: 126, 14: 1 << 16}[len(header)] or size >> 63:
            raise ProtocolError(Rule.LENGTH, f"a length of {size} is written in {len(header) - 5} bytes")
        self._key, self._left = header[-4:], size
        if opcode >= Opcode.CLOSE:
            if not first & 0x80 or size > _CONTROL_BYTES:
                raise ProtocolError(Rule.CONTROL_FRAME, f"a {opcode.name} frame has {size} bytes or is a fragment")
            self._control = opcode
            if not size:
                self._end_control(b"", events)
            return
        if (opcode is Opcode.CONTINUATION) is (self._message is None):
            raise ProtocolError(Rule.FRAGMENT, f"a {opcode.name} frame comes at a wrong place in its message")
        if opcode is not Opcode.CONTINUATION:
            self._message, self._first, self._size = opcode, True, 0
        self._size += size
        if self._size > self._max_message:
            raise ProtocolError(Rule.MESSAGE_SIZE, f"a message has more than {self._max_message} bytes")
        self._final = bool(first & 0x80)
        if not size:
            self._give(bytearray(), events)

    def _end_control(self, masked: bytes, events: list[Event]) -> None:
        opcode, payload = self._control, bytes(unmask(masked, self._key))
        self._control, self._left = None, 0
        if opcode is Opcode.PING and not self._close_sent:
            self._replies.append(frame_header(len(payload), Opcode.PONG) + payload)
        elif opcode is Opcode.CLOSE:
            code = _close_code(payload)
            self._replies.append(self.close(Code.NORMAL))
            self._over = True
            events.append(Closed(code))


def _header_size(start: bytearray) -> int:
    """The length of a header as far as ``start`` tells."""
    if len(start) < 2:
        return 2
    if not start[1] & 0x80:
        return 2  # which will be refused, and must not wait for a mask that may never come
    return {126: 8, 127: 14}.get(start[1] & 0x7F, 6)


def _opcode(first: int, second: int) -> Opcode:
    if first & 0x70:
        raise ProtocolError(Rule.RESERVED_BITS, f"a frame has the reserved bits {first & 0x70:#04x}")
    try:
        opcode = Opcode(first & 0x0F)
    except ValueError:
        raise ProtocolError(Rule.OPCODE, f"a frame has the opcode {first & 0x0F}") from None
    if not second & 0x80:
        raise ProtocolError(Rule.MASK, "a frame is not masked")
    return opcode


def _close_code(payload: bytes) -> int:
    if not payload:
        return _NO_CODE
    code = int.from_bytes(payload[:2], "big")
    allowed = 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        allowed = False
    if len(payload) < 2 or not allowed:
        raise ProtocolError(Rule.CLOSE_CODE, f"a close frame has {payload[:20]!r}")
    return code
