"""Clients of exec, attach and port-forward as kubectl has them: blocking, each for one session.

``StreamClient`` speaks SPDY/3.1, ``TunnelClient`` the same within a WebSocket, ``ChannelClient`` WebSocket channels.
"""

from __future__ import annotations

import json
import socket
import ssl
from collections import defaultdict
from types import TracebackType
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from cri_py.wire import channels, spdy, websocket
from cri_py.wire import spdy_frames as frames
from cri_py.wire.channels import Buffer
from tests.simulators.websocket_client import MASK, FrameReader

PATIENCE_S: Final = 60.0
_KEY: Final = "AAAAAAAAAAAAAAAAAAAAAA=="


class _Speaking(Protocol):
    """What a transport brings along, and a session is driven by."""

    received: dict[Any, bytearray]
    ended: set[Any]
    over: bool

    def send(self, name: Any, content: bytes, *, last: bool = False) -> Self:
        """``last``: nothing follows on this stream."""
        ...

    def take(self) -> bool:
        """Read once; False at the end of the connection."""
        ...


class _Client(_Speaking, Protocol):
    """A connection to a URL, its upgrade, and what a session's streams have brought.

    ``received``: bytes by the type of their stream; of a port-forward by (type, request).
    """

    def __init__(self, url: str, headers: str, *, method: str, context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE_S)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=parts.hostname)
        self.received: dict[Any, bytearray] = defaultdict(bytearray)
        self.ended: set[Any] = set()
        self.over = False
        self.socket.sendall(
            f"{method} {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\n{headers}\r\n".encode()
        )
        self.head = self._read_head()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.socket.close()

    def _read_head(self) -> str:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.socket.recv(1)
            if not piece:
                break
            head += piece
        return head.decode()

    def open(self, *_kinds: str) -> Self:
        """Streams of a remote command."""
        return self

    def until(self, name: Any, content: bytes) -> Self:
        """Read until a stream has brought ``content``, at the pace of one who only reads: who is slow is cut off."""
        at = 0
        while self.received[name].find(content, at) < 0:
            at = max(0, len(self.received[name]) - len(content) + 1)
            ends = {stream: bytes(brought[-200:]) for stream, brought in self.received.items()}
            assert self.take(), f"the session ended before {content!r} came: {ends}"
        return self

    def until_end(self, name: Any = None) -> Self:
        """Read until a stream, or the session, is over."""
        while not (self.over or (name is not None and name in self.ended)):
            self.take()
        return self

    def exit_code(self) -> int:
        """Of the process, from the error stream's Status."""
        status = json.loads(bytes(self.until_end().received["error"]))
        if status["status"] == "Success":
            return 0
        assert status["reason"] == "NonZeroExitCode", status
        return int(status["details"]["causes"][0]["message"])


class StreamClient(_Client):
    """``windows``: whether it keeps them, as the specification has it, or like the clients of Kubernetes does not."""

    def __init__(
        self,
        url: str,
        protocol: str = channels.V4,
        *,
        windows: bool = False,
        context: ssl.SSLContext | None = None,
        upgrade: str = "",
    ) -> None:
        self._connection = spdy.Connection(spdy.Role.CLIENT)
        self._windows = windows
        self._streams: dict[Any, int] = {}
        self._names: dict[int, Any] = {}
        asked = upgrade or f"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n"
        super().__init__(url, asked, method="GET" if upgrade else "POST", context=context)
        if windows:
            self.put(self._connection.send(frames.Settings({frames.INITIAL_WINDOW_SIZE: spdy.WINDOW})))

    def put(self, content: Buffer) -> None:
        """Send bytes of the connection, right or wrong."""
        self.socket.sendall(content)

    def number(self, name: Any) -> int:
        """The id of a stream."""
        return self._streams[name]

    def _get(self) -> bytes:
        return self.socket.recv(1 << 18)

    def open(self, *kinds: str) -> Self:
        for kind in kinds:
            self._open(kind, {"streamtype": kind})
        return self

    def forward(self, port: int, request: str) -> Self:
        """The two streams of one forwarded connection."""
        for kind in ("error", "data"):
            self._open((kind, request), {"streamtype": kind, "port": str(port), "requestid": request})
        return self

    def reset(self, name: Any) -> Self:
        self.put(self._connection.send(frames.RstStream(self._streams[name], frames.Status.CANCEL)))
        return self

    def _open(self, name: Any, headers: dict[str, str]) -> None:
        number = self._connection.next_stream
        self._streams[name], self._names[number] = number, name
        self.put(self._connection.send(frames.SynStream(number, headers)))

    def send(self, name: Any, content: bytes, *, last: bool = False) -> Self:
        """In frames as large as the other side lets us."""
        stream, rest = self._streams[name], content
        while rest or last:
            room = min(len(rest), self._connection.room(stream), 1 << 16)
            if rest and not room:
                assert self.take(), f"the session ended with {len(rest)} bytes to send"
                continue
            piece, rest = rest[:room], rest[room:]
            ends = last and not rest
            self.put(self._connection.send(frames.Chunk(stream, piece, ends)))
            if ends:
                break
        return self

    def take(self) -> bool:
        received = self._get()
        if not received:
            self.over = True
            return False
        for event in self._connection.receive(received):
            if isinstance(event, frames.Chunk):
                name = self._names[event.stream]
                self.received[name] += event.payload
                if self._windows:
                    self._connection.consumed(event.stream, len(event.payload))
                if event.fin:
                    self.ended.add(name)
            elif isinstance(event, frames.GoAway):
                self.over = True
            assert not isinstance(event, spdy.Failed), event
        if replies := self._connection.replies():
            self.put(replies)
        return True


def _websocket(protocol: str) -> str:
    named = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {_KEY}\r\n{named}"


def masked(payload: bytes, opcode: int = websocket.Opcode.BINARY) -> bytes:
    """A whole message of a client."""
    header = bytearray(websocket.frame_header(len(payload), websocket.Opcode(opcode)))
    header[1] |= 0x80
    return bytes(header) + MASK + bytes(websocket.unmask(payload, MASK))


class TunnelClient(StreamClient):
    """SPDY in the messages of a WebSocket: how port-forward is done since Kubernetes 1.30."""

    def __init__(self, url: str) -> None:
        self._frames = FrameReader()
        super().__init__(url, upgrade=_websocket(channels.TUNNEL))

    def put(self, content: Buffer) -> None:
        self.socket.sendall(masked(bytes(content)))

    def _get(self) -> bytes:
        content = b""
        while not content:
            received = self.socket.recv(1 << 18)
            if not received:
                return b""
            content = b"".join(payload for opcode, payload in self._frames.read(received) if opcode == 2)
        return content


class ChannelClient(_Client):
    """Remote commands by channels; ``protocol`` v5 can say that stdin ends."""

    def __init__(self, url: str, protocol: str = channels.V5, *, context: ssl.SSLContext | None = None) -> None:
        self._frames = FrameReader()
        self._names = {number: name for name, number in channels.LANES.items()}
        super().__init__(url, _websocket(protocol), method="GET", context=context)

    def send(self, name: Any, content: bytes, *, last: bool = False) -> Self:
        channel = bytes((channels.LANES[name],))
        for at in range(0, len(content), 1 << 15):
            self.socket.sendall(masked(channel + content[at : at + (1 << 15)]))
        if last:
            self.socket.sendall(masked(bytes((channels.CLOSE,)) + channel))
        return self

    def take(self) -> bool:
        received = self.socket.recv(1 << 18)
        if not received:
            self.over = True
            return False
        for opcode, payload in self._frames.read(received):
            if opcode == websocket.Opcode.CLOSE:
                self.over = True
            elif opcode == websocket.Opcode.BINARY:
                self.received[self._names[payload[0]]] += payload[1:]
        return True
