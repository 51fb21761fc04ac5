"""The one exception of this room: somebody broke a rule of a protocol, and which rule it was."""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from cri_py.errors import CriError


class Rule(Enum):
    """What can be broken, and where it is written. SPDY: draft 3.1 with its section; RFC 6455 for WebSocket."""

    FRAME_TYPE = "SPDY 2.2.1: the frame's type is known"
    VERSION = "SPDY 2.2.1: the frame's version is 3"
    CONTROL_LENGTH = "SPDY 2.2.1: a control frame has the length of its type, at most 64 KiB"
    FLAGS = "SPDY 2.2: only the flags of its type are set on a frame"
    STREAM_ID = "SPDY 2.3.2: ids of streams are not zero, odd from clients, and go up"
    STREAM_UNKNOWN = "SPDY 2.2.2: a frame belongs to a stream that was opened"
    STREAM_CLOSED = "SPDY 2.3.6: nothing follows FLAG_FIN on a stream"
    REPLIED_TWICE = "SPDY 2.3.3: a stream is replied to once, by the other side"
    STATUS = "SPDY 2.6.3: a RST_STREAM has a status that is not zero"
    PING_ID = "SPDY 2.6.5: an id of a ping is not zero"
    HEADER_BLOCK = "SPDY 2.6.10: a header block is zlib of counted, lower-case, distinct names and their values"
    HEADER_BLOCK_SIZE = "SPDY 2.6.10: a header block expands to at most 64 KiB and 256 names"
    WINDOW_DELTA = "SPDY 2.6.8: a window grows by 1 to 2^31-1, and to at most 2^31-1"
    WINDOW = "SPDY 2.6.8: no more data than the window has room for"
    SETTINGS = "SPDY 2.6.4: SETTINGS hold as many entries as they say"
    GONE_AWAY = "SPDY 2.6.6: no stream is opened after GOAWAY"

    RESERVED_BITS = "RFC 6455 5.2: reserved bits are zero without an extension"
    OPCODE = "RFC 6455 5.2: the opcode is known"
    MASK = "RFC 6455 5.1: frames of clients are masked"
    LENGTH = "RFC 6455 5.2: lengths take their shortest form"
    CONTROL_FRAME = "RFC 6455 5.5: control frames are whole and have at most 125 bytes"
    FRAGMENT = "RFC 6455 5.4: continuations follow an unfinished message, and only they"
    CLOSE_CODE = "RFC 6455 7.4: a close frame is empty or has a code that may be sent, and UTF-8"
    MESSAGE_SIZE = "RFC 6455 7.4.1: a message is not larger than the receiver takes"
    ENDED = "RFC 6455 7.1.1: a connection ends with a close frame, not between frames"

    CHANNEL = "channel.k8s.io: the channel exists, and the client may write to it"
    CLOSE_CHANNEL = "v5.channel.k8s.io: a message on channel 255 names one channel"
    BASE64 = "base64.channel.k8s.io: messages are base64"
    STREAM_TYPE = "channel.k8s.io: each stream names its streamtype, once, among those that were asked for"
    RESIZE = 'v3.channel.k8s.io: a size is JSON {"Width": columns, "Height": rows}, each 0 to 65535'
    FORWARD = "portforward.k8s.io: streams are data or error, once per request, and name a port"


class ProtocolError(CriError):
    """A rule was broken, by the peer or by the caller of this room; the connection can't go on.

    ``rule`` names it. What the peer is told of it (GOAWAY, RST_STREAM, a close frame) is already queued.
    """

    code: ClassVar[str] = "INVALID_ARGUMENT"

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(message, hint=rule.value)
        self.rule = rule
