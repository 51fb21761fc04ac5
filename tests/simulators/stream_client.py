"""A client of exec, attach and port-forward as kubectl has one, over SPDY/3.1: blocking, for one session."""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from cri_py.wire import spdy
from cri_py.wire import spdy_frames as frames

PATIENCE_S: Final = 20.0


class StreamClient:
    """``received``: bytes by the type of their stream; of a port-forward by (type, request)."""

    def __init__(self, url: str, protocol: str = "v4.channel.k8s.io") -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE_S)
        self._connection = spdy.Connection(spdy.Role.CLIENT)
        self._streams: dict[Any, int] = {}
        self._names: dict[int, Any] = {}
        self.received: dict[Any, bytearray] = defaultdict(bytearray)
        self.ended: set[Any] = set()
        self.over = False
        self._socket.sendall(
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {protocol}\r\n\r\n".encode()
        )
        self.head = self._read_head()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._socket.close()

    def _read_head(self) -> str:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self._socket.recv(1)
            if not piece:
                break
            head += piece
        return head.decode()

    def open(self, *kinds: str) -> Self:
        """Streams of a remote command."""
        for kind in kinds:
            self._open(kind, {"streamtype": kind})
        return self

    def forward(self, port: int, request: str) -> Self:
        """The two streams of one forwarded connection."""
        for kind in ("error", "data"):
            self._open((kind, request), {"streamtype": kind, "port": str(port), "requestid": request})
        return self

    def _open(self, name: Any, headers: dict[str, str]) -> None:
        number = self._connection.next_stream
        self._streams[name], self._names[number] = number, name
        self._socket.sendall(self._connection.send(frames.SynStream(number, headers)))

    def send(self, name: Any, content: bytes, *, last: bool = False) -> Self:
        """In frames as large as the other side lets us."""
        stream, rest = self._streams[name], content
        while rest or last:
            room = min(len(rest), self._connection.room(stream), 1 << 16)
            if rest and not room:
                self._take()
                continue
            piece, rest = rest[:room], rest[room:]
            ends = last and not rest
            self._socket.sendall(self._connection.send(frames.Chunk(stream, piece, ends)))
            if ends:
                break
        return self

    def until(self, name: Any, content: bytes) -> Self:
        """Read until a stream has brought ``content``."""
        while content not in self.received[name]:
            assert self._take(), f"the session ended before {content!r} came: {dict(self.received)}"
        return self

    def until_end(self, name: Any = None) -> Self:
        """Read until a stream, or the session, is over."""
        while not (self.over or (name is not None and name in self.ended)):
            self._take()
        return self

    def exit_code(self) -> int:
        """Of the process, from the error stream's Status."""
        status = json.loads(bytes(self.until_end().received["error"]))
        if status["status"] == "Success":
            return 0
        assert status["reason"] == "NonZeroExitCode", status
        return int(status["details"]["causes"][0]["message"])

    def _take(self) -> bool:
        received = self._socket.recv(1 << 16)
        if not received:
            self.over = True
            return False
        for event in self._connection.receive(received):
            if isinstance(event, frames.Chunk):
                name = self._names[event.stream]
                self.received[name] += event.payload
                self._connection.consumed(event.stream, len(event.payload))
                if event.fin:
                    self.ended.add(name)
            elif isinstance(event, frames.GoAway):
                self.over = True
            assert not isinstance(event, spdy.Failed), event
        self._socket.sendall(self._connection.replies())
        return True
