"""The HTTP server behind the URLs of Exec, Attach and PortForward.

It reads one request head per connection, checks it, and hands the connection's socket over to the pod's monitor, which
answers. So no byte of a session passes through the daemon, and a session outlives it. With TLS the keys are in this
process, so it has to stay in between: it decrypts into a socket pair whose other end the monitor gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import h11
import structlog

from cri_py import telemetry
from cri_py.config import StreamingConfig
from cri_py.errors import CriError, FailedPrecondition, NotFound
from cri_py.model import StreamKind, StreamRequest
from cri_py.streaming.sessions import Sessions
from cri_py.streaming.tls import Certificates

_READ_BYTES: Final = 16384
_HEAD_BYTES: Final = 32 << 10
_BACKLOG: Final = 128
_METHODS: Final = (b"GET", b"POST")
_REASONS: Final = {
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Head:
    """A request head that asks for a session, and what the client has sent beyond it already."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case, in order
    rest: bytes


HandOver = Callable[[StreamRequest, Head, socket.socket], Awaitable[None]]


class _Refused(Exception):
    """The request gets this status and nothing else."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Front:
    """One listening socket. ``hand_over`` gives a connection to the session's monitor; it keeps none of it."""

    def __init__(self, config: StreamingConfig, sessions: Sessions, hand_over: HandOver) -> None:
        self._config = config
        self._sessions = sessions
        self._hand_over = hand_over
        self._certificates = Certificates(config) if config.tls else None
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self._url = ""

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition for an address that can't be had, or a certificate that can't be read."""
        if self._certificates is not None:
            self._certificates.current()
        host, port = self._config.host, self._config.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG) if port else _any(host, family)
        listener.setblocking(False)
        self._listener = listener
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if self._certificates is not None else "http"
        self._url = f"{scheme}://{shown}:{listener.getsockname()[1]}"
        self._accepting = asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """Stop listening; sessions that were handed over go on."""
        tasks = [*self._connections, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def open(self, request: StreamRequest) -> str:
        """The URL under which a client gets the session, once, within a minute."""
        return f"{self._url}/{request.kind.value}/{self._sessions.open(request)}"

    # ------------------------------------------------------------- connections

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors: the backlog waits
                log.warning("a streaming connection can't be accepted", cause=str(error))
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            if len(self._connections) >= self._config.max_waiting_connections:
                connection.close()
                continue
            task = asyncio.create_task(self._meet(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _meet(self, connection: socket.socket) -> None:
        """One connection from its first byte to its hand-over, or its end."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self._certificates is None:
                await self._greet(connection)
            else:
                await self._relay(connection)
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("a streaming client left before its session", cause=str(error) or type(error).__name__)
        finally:
            connection.close()

    async def _greet(self, connection: socket.socket) -> None:
        """Read the head and hand the connection over, or refuse."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._config.head_timeout_s):
                head = await _read_head(lambda: loop.sock_recv(connection, _READ_BYTES))
            request = self._admit(head)
            await self._hand_over(request, head, connection)
        except _Refused as refusal:
            await _refuse(connection, refusal.status, str(refusal))
        except TimeoutError:
            await _refuse(connection, 408, "the request head did not come in time")
        except CriError as error:
            telemetry.STREAM_ERRORS.labels(head.target.strip("/").partition("/")[0]).inc()
            log.warning("a streaming session can't be handed over", cause=str(error))
            await _refuse(connection, 404 if isinstance(error, NotFound) else 500, str(error))

    def _admit(self, head: Head) -> StreamRequest:
        """The session that a head may have. A token is used up only by a request that is right in all else."""
        if head.method.encode() not in _METHODS:
            raise _Refused(405, f"{head.method} is not allowed here: use GET or POST")
        kind, _, token = head.target.partition("?")[0].strip("/").partition("/")
        if kind not in {each.value for each in StreamKind} or not token or "/" in token:
            raise _Refused(404, "there is nothing here")
        headers = dict(head.headers)
        if "upgrade" not in headers.get("connection", "").lower() or not headers.get("upgrade"):
            raise _Refused(400, "ask for an upgrade to SPDY/3.1 or websocket")
        request = self._sessions.take(token)
        if request is None:
            raise _Refused(404, "the token is unknown, used or older than a minute")
        if request.kind.value != kind:
            raise _Refused(404, f"the token is not one for {kind}")
        return request

    # ---------------------------------------------------------------------- TLS

    async def _relay(self, connection: socket.socket) -> None:
        """Decrypt into a socket pair, and greet what comes out there as if it were the client."""
        assert self._certificates is not None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_READ_BYTES * 4, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        async with asyncio.timeout(self._config.head_timeout_s):
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._certificates.current()
            )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        inner, outer = socket.socketpair()
        inner.setblocking(False)
        outer.setblocking(False)
        plain_reader, plain_writer = await asyncio.open_connection(sock=outer)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_pump(reader, plain_writer))
                tasks.create_task(_pump(plain_reader, writer))
                with inner:
                    await self._greet(inner)
        except* (OSError, EOFError) as group:
            log.debug("a streaming session over TLS was cut", cause=str(group.exceptions[0]))
        finally:
            plain_writer.close()
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry bytes one way until the end, which is passed on, as far as TLS can tell of one."""
    while data := await source.read(_READ_BYTES * 4):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()
    else:
        sink.close()


async def _read_head(receive: Callable[[], Awaitable[bytes]]) -> Head:
    """One request head by h11, which bounds its length and knows what a name and a value may hold."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
    received = 0
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                break
            if event is not h11.NEED_DATA:
                raise EOFError
            data = await receive()
            if not data:
                raise EOFError
            received += len(data)
            parser.receive_data(data)
    except h11.RemoteProtocolError as error:
        raise _Refused(error.error_status_hint, str(error)) from error
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
    rest, _ = parser.trailing_data
    if received - len(rest) > _HEAD_BYTES:  # h11 looks only at heads that are not complete yet
        raise _Refused(431, f"the head has {received - len(rest)} bytes, at most {_HEAD_BYTES} are taken")
    return Head(event.method.decode(), event.target.decode("latin-1"), headers, bytes(rest))


async def _refuse(connection: socket.socket, status: int, text: str) -> None:
    """A whole answer, after which the connection ends."""
    body = text.encode() + b"\n"
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(connection, head.encode() + body)


def _any(host: str, family: socket.AddressFamily) -> socket.socket:
    try:
        return socket.create_server((host, 0), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise FailedPrecondition(
            f"streaming.host {host} can't be listened on: {error.strerror}", hint="choose an address of this node"
        ) from error
