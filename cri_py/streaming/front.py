"""The HTTP server behind the URLs of Exec, Attach and PortForward.

It reads one request head per connection, checks it, agrees on a protocol, and hands the connection's socket over to the
pod's monitor, which answers. So no byte of a session passes through the daemon, and a session outlives it. With TLS the
keys are in this process, so it has to stay in between: ``relay``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog

from cri_py import telemetry
from cri_py.config import StreamingConfig
from cri_py.errors import CriError, FailedPrecondition, NotFound
from cri_py.model import StreamKind, StreamRequest
from cri_py.streaming import relay
from cri_py.streaming.heads import Head, HeadReader, Refused
from cri_py.streaming.sessions import Sessions
from cri_py.streaming.tls import Certificates
from cri_py.wire.channels import Agreement
from cri_py.wire.negotiation import Refusal, negotiate, refuse

_READ_BYTES: Final = 16384
_BACKLOG: Final = 128
_CLOSE_S: Final = 1.0
_METHODS: Final = ("GET", "POST")
# A client whose machine is gone says nothing: it is asked after 30 s without a byte, and given up two minutes later.
_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)

log = structlog.get_logger()

# The session, what was agreed with its client, what the client has sent beyond the head, and its connection.
HandOver = Callable[[StreamRequest, Agreement, bytes, socket.socket], Awaitable[None]]


class Front:
    """One listening socket. ``hand_over`` gives a connection to the session's monitor; it keeps none of it."""

    def __init__(self, config: StreamingConfig, sessions: Sessions, hand_over: HandOver) -> None:
        self._config = config
        self._sessions = sessions
        self._hand_over = hand_over
        self._certificates = Certificates(config) if config.tls else None
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._waiting: dict[asyncio.Task[None], None] = {}  # those without a right request yet, the oldest first
        self._accepting: asyncio.Task[None] | None = None
        self._url = ""

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition for an address that can't be had, or a certificate that can't be read."""
        if self._certificates is not None:
            self._certificates.current()
        self._listener = _listen(self._config.host, self._config.port)
        shown = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        scheme = "https" if self._certificates is not None else "http"
        self._url = f"{scheme}://{shown}:{self._listener.getsockname()[1]}"
        self._accepting = asyncio.create_task(self._accept(self._listener))

    async def stop(self) -> None:
        """Stop listening; sessions that were handed over go on, but for those over TLS."""
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
            if len(self._waiting) >= self._config.max_waiting_connections:
                await self._make_room()
            task = asyncio.create_task(self._meet(connection))
            self._waiting[task] = None
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _make_room(self) -> None:
        """The oldest goes: one that means to ask has done so long since, and many that don't keep nobody out."""
        await asyncio.sleep(0)  # a task that is cancelled before its first step would not close its connection
        if self._waiting:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Around what comes before a right request: an ``_accept`` has counted it. Those with a token are few, and a
        client may hear of its session before the hand-over is known here to have succeeded."""
        task = asyncio.current_task()
        assert task is not None
        try:
            yield
        finally:
            self._waiting.pop(task, None)

    async def _meet(self, connection: socket.socket) -> None:
        """One connection from its first byte to its hand-over, or its end."""
        try:
            for option in _OPTIONS:
                connection.setsockopt(*option)
            if self._certificates is not None:
                await self._meet_over_tls(connection, self._certificates)
                return
            with connection, contextlib.ExitStack() as waiting:
                waiting.enter_context(self._counted())
                await self._greet(connection, waiting)
        except (OSError, EOFError) as error:
            log.debug("a streaming client left before its session", cause=str(error) or type(error).__name__)

    async def _meet_over_tls(self, connection: socket.socket, certificates: Certificates) -> None:
        """Greet what comes out of the relay as if it were the client, and stay until the session is over."""
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(self._counted())
            client = await relay.accept(connection, certificates.current(), self._config.head_timeout_s)
            inner, outer = socket.socketpair()
            relaying = asyncio.create_task(relay.run(client, outer))
            try:
                with inner:
                    inner.setblocking(False)
                    await self._greet(inner, waiting)
            except BaseException:
                relaying.cancel()
                await asyncio.wait([relaying])
                raise
            waiting.close()
            await relaying

    async def _greet(self, connection: socket.socket, waiting: contextlib.ExitStack) -> None:
        """Read the head and hand the connection over, or refuse. The connection stays the caller's.

        ``waiting`` is closed once the request is known to be right.
        """
        kind = ""
        try:
            async with asyncio.timeout(self._config.head_timeout_s):
                head = await _read_head(connection)
            request, agreement = self._admit(head)
            kind = request.kind.value
            waiting.close()
            await self._hand_over(request, agreement, head.rest, connection)
        except Refused as refused:
            await _refuse(connection, refused.refusal)
        except TimeoutError:
            await _refuse(connection, refuse(408, "the request head did not come in time"))
        except CriError as error:
            telemetry.STREAM_ERRORS.labels(kind).inc()
            log.warning("a streaming session can't be handed over", cause=str(error))
            await _refuse(connection, refuse(404 if isinstance(error, NotFound) else 500, str(error)))

    def _admit(self, head: Head) -> tuple[StreamRequest, Agreement]:
        """The session that a head may have. A token is used up only by a request that is right in all else."""
        if head.method not in _METHODS:
            text = f"{head.method} is not allowed here: use GET or POST"
            raise Refused(refuse(405, text, [("Allow", "GET, POST")]))
        kind, _, token = head.target.partition("?")[0].strip("/").partition("/")
        request = self._sessions.peek(token)
        if request is None or request.kind.value != kind:
            raise Refused(refuse(404, "there is no such session: its token is unknown, used or older than a minute"))
        forward = request.kind is StreamKind.PORT_FORWARD
        agreed = negotiate(head.method, head.headers, forward=forward, ports=request.ports)
        if isinstance(agreed, Refusal):
            raise Refused(agreed)
        self._sessions.take(token)
        return request, agreed


async def _read_head(connection: socket.socket) -> Head:
    loop, reader = asyncio.get_running_loop(), HeadReader()
    while True:
        received = await loop.sock_recv(connection, _READ_BYTES)
        if not received:
            raise EOFError
        head = reader.receive(received)
        if head is not None:
            return head


async def _refuse(connection: socket.socket, refusal: Refusal) -> None:
    """Say it, and read for a moment what still comes: a socket that is closed with bytes unread resets the connection,
    and the client might never read why."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # TimeoutError is one
        async with asyncio.timeout(_CLOSE_S):
            await loop.sock_sendall(connection, refusal.answer)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, _READ_BYTES):
                pass


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise FailedPrecondition(
            f"streaming.host {host} with streaming.port {port} can't be listened on: {error.strerror}",
            hint="choose an address of this node, and a port that is free",
        ) from error
    listener.setblocking(False)
    return listener
