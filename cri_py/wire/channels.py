"""What Kubernetes makes of streams: the names of its sub-protocols, and what is said on them.

Remote commands (exec, attach) have up to five lanes, numbered as WebSocket channels are; a SPDY stream names its lane
in the header ``streamtype``. A forwarded connection has two streams, data and error. The facts are those of
k8s.io/kubelet/pkg/cri/streaming, of client-go/tools/remotecommand and of client-go/tools/portforward.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from cri_py.wire.violation import ProtocolError, Rule

Buffer: TypeAlias = bytes | bytearray | memoryview

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
RESIZE: Final = 4
CLOSE: Final = 255  # v5: the next byte is the channel on which nothing follows

LANES: Final[Mapping[str, int]] = MappingProxyType(
    {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
)

V1: Final = "channel.k8s.io"
V2: Final = "v2.channel.k8s.io"
V3: Final = "v3.channel.k8s.io"
V4: Final = "v4.channel.k8s.io"
V5: Final = "v5.channel.k8s.io"
V1_BASE64: Final = "base64.channel.k8s.io"
V4_BASE64: Final = "v4.base64.channel.k8s.io"
FORWARD: Final = "portforward.k8s.io"
TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"  # a SPDY connection in the messages of a WebSocket
UNNAMED: Final = ""  # a WebSocket that asks for no sub-protocol: as V1

COMMAND_BY_SPDY: Final = (V4, V3, V2, V1)
COMMAND_BY_WEBSOCKET: Final = (V5, V4, V4_BASE64, V1, V1_BASE64, UNNAMED)
FORWARD_BY_SPDY: Final = (FORWARD,)
FORWARD_BY_WEBSOCKET: Final = (TUNNEL, V4, V4_BASE64, UNNAMED)

IN_BASE64: Final = frozenset({V1_BASE64, V4_BASE64})
_WITH_STATUS: Final = frozenset({V4, V4_BASE64, V5})
_WITH_RESIZE_STREAM: Final = frozenset({V3, V4})
_SIZE_BYTES: Final = 256
_TEXT_BYTES: Final = 1024
_SUCCESS: Final = b'{"metadata":{},"status":"Success"}'


class Transport(Enum):
    SPDY = "SPDY/3.1"
    WEBSOCKET = "websocket"


class Agreement(NamedTuple):
    """``protocol`` is a name from above; ``answer`` is the 101, after which the transport begins."""

    transport: Transport
    protocol: str
    answer: bytes


class Streams(NamedTuple):
    """What an exec or attach was asked to connect."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    def lanes(self, protocol: str) -> frozenset[int]:
        """The lanes that a SPDY client opens."""
        asked = {STDIN: self.stdin, STDOUT: self.stdout, STDERR: self.stderr and not self.tty, ERROR: True}
        asked[RESIZE] = self.tty and protocol in _WITH_RESIZE_STREAM
        return frozenset(lane for lane, wanted in asked.items() if wanted)


class Exit(NamedTuple):
    """The process ended; ``code`` is 0 to 255."""

    code: int


class Failure(NamedTuple):
    """The process did not run, or its exit is unknown; ``text`` is for a person."""

    text: str


Outcome: TypeAlias = Exit | Failure


def status(protocol: str, outcome: Outcome) -> bytes:
    """What the error lane says of the outcome: a metav1.Status since v4, before it a text, and nothing of success."""
    with_status = protocol in _WITH_STATUS
    if isinstance(outcome, Exit):
        if not outcome.code:
            return _SUCCESS if with_status else b""
        text = f"command terminated with non-zero exit code: exit status {outcome.code}"
        return _non_zero(outcome.code, text) if with_status else text.encode()
    text = outcome.text.encode("utf-8", "replace")[:_TEXT_BYTES].decode(errors="ignore")
    if not with_status:
        return text.encode()
    quoted = json.dumps(text, ensure_ascii=False)
    return (
        f'{{"metadata":{{}},"status":"Failure","message":{quoted},"reason":"InternalError",'
        f'"details":{{"causes":[{{"message":{quoted}}}]}},"code":500}}'
    ).encode()


def _non_zero(code: int, text: str) -> bytes:
    cause = b'{"reason":"ExitCode","message":"%d"}' % code
    return b'{"metadata":{},"status":"Failure","message":"%b","reason":"NonZeroExitCode","details":{"causes":[%b]}}' % (
        text.encode(),
        cause,
    )


class Sizes:
    """Reads terminal sizes off the resize lane, however they are cut."""

    def __init__(self) -> None:
        self._partial = b""

    def read(self, received: Buffer) -> list[tuple[int, int]]:
        """(columns, rows) of each; those with a zero, which kubelets pass over, left out. Raises ProtocolError."""
        *objects, self._partial = (self._partial + bytes(received)).split(b"}")
        sizes = []
        for text in objects:
            _check_beginning(text)
            sizes.append(_size(text + b"}"))
        _check_beginning(self._partial)
        if len(self._partial) > _SIZE_BYTES:
            raise ProtocolError(Rule.RESIZE, f"a size has more than {_SIZE_BYTES} bytes")
        return [size for size in sizes if all(size)]


def _check_beginning(text: bytes) -> None:
    """The first byte tells, so that the same bytes end in the same words however they are cut."""
    first = text.lstrip()[:1]
    if first not in {b"", b"{"}:
        raise ProtocolError(Rule.RESIZE, f"a size begins with {first!r}")


def _size(text: bytes) -> tuple[int, int]:
    try:
        fields = {str(name).lower(): value for name, value in dict(json.loads(text)).items()}
    except (ValueError, TypeError, RecursionError):
        raise ProtocolError(Rule.RESIZE, f"a size is {text[:80]!r}") from None
    columns, rows = fields.get("width", 0), fields.get("height", 0)
    if not all(type(number) is int and 0 <= number <= 0xFFFF for number in (columns, rows)):
        raise ProtocolError(Rule.RESIZE, f"a size is {columns!r} columns and {rows!r} rows"[:120])
    return columns, rows


class Base64:
    """Decodes one base64 text that comes in pieces."""

    def __init__(self) -> None:
        self._partial = b""
        self._padded = False

    def decode(self, received: Buffer, *, last: bool) -> bytes:
        text = self._partial + bytes(received)
        whole = len(text) if last else len(text) // 4 * 4
        text, self._partial = text[:whole], text[whole:]
        if text and self._padded:
            raise ProtocolError(Rule.BASE64, "a message goes on after its padding")
        self._padded = text.endswith(b"=")
        try:
            plain = binascii.a2b_base64(text, strict_mode=True) if text else b""
        except binascii.Error as error:
            raise ProtocolError(Rule.BASE64, f"a message is no base64: {error}") from None
        if last:
            self._partial, self._padded = b"", False
        return plain


def forwarded_port(headers: Mapping[str, str]) -> int:
    """The port that a stream of portforward.k8s.io names. Raises ProtocolError."""
    text = headers.get("port", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 0xFFFF):
        raise ProtocolError(Rule.FORWARD, f"a stream names the port {text[:20]!r}")
    return int(text)
