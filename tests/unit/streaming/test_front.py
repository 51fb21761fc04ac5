"""What the front lets through to a monitor and what it refuses, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from cri_py.config import StreamingConfig
from cri_py.errors import FailedPrecondition, NotFound
from cri_py.model import ContainerId, SandboxId, StreamKind, StreamRequest
from cri_py.streaming.front import Front
from cri_py.streaming.sessions import Sessions
from cri_py.wire.channels import Agreement, Transport

REQUEST = StreamRequest(StreamKind.EXEC, SandboxId("a" * 64), ContainerId("b" * 64), ("true",))
UPGRADE = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"


class MonitorSimulator:
    """Takes connections as a monitor does, by a descriptor of its own, and answers one line."""

    def __init__(self) -> None:
        self.met: list[tuple[StreamRequest, Agreement, bytes]] = []
        self.failure: Exception | None = None

    async def hand_over(
        self, request: StreamRequest, agreement: Agreement, rest: bytes, connection: socket.socket
    ) -> None:
        if self.failure is not None:
            raise self.failure
        self.met.append((request, agreement, rest))
        with socket.socket(fileno=socket.dup(connection.fileno())) as own:
            own.sendall(b"here is the monitor\n")


@asynccontextmanager
async def front(monitor: MonitorSimulator, **settings: Any) -> AsyncIterator[Front]:
    served = Front(StreamingConfig(**settings), Sessions(lambda: 0.0), monitor.hand_over)
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


async def talk(url: str, request: bytes, context: ssl.SSLContext | None = None) -> bytes:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


def head_of(url: str, *, method: str = "POST", headers: str = UPGRADE) -> bytes:
    return f"{method} {urlsplit(url).path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


async def test_a_right_request_reaches_the_monitor_with_all_that_the_client_has_sent() -> None:
    monitor = MonitorSimulator()
    async with front(monitor) as served:
        url = served.open(REQUEST)
        assert await talk(url, head_of(url) + b"\x80\x03early") == b"here is the monitor\n"
    ((request, agreement, rest),) = monitor.met
    assert request is REQUEST
    assert (agreement.transport, agreement.protocol, rest) == (Transport.SPDY, "v4.channel.k8s.io", b"\x80\x03early")


async def test_a_head_that_comes_byte_by_byte_is_understood() -> None:
    monitor = MonitorSimulator()
    async with front(monitor) as served:
        url = served.open(REQUEST)
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for byte in head_of(url):
            writer.write(bytes([byte]))
            await writer.drain()
        assert await asyncio.wait_for(reader.readline(), 60) == b"here is the monitor\n"
        writer.close()


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda url: head_of(url + "x"), 404),
        (lambda url: head_of(url.rpartition("/")[0]), 404),
        (lambda url: head_of(url.replace("/exec/", "/attach/")), 404),
        (lambda url: head_of(url.replace("/exec/", "/elsewhere/")), 404),
        (lambda url: head_of(url, method="PUT"), 405),
        (lambda url: head_of(url, headers=""), 400),
        (lambda url: head_of(url, headers="Connection: close\r\nUpgrade: SPDY/3.1\r\n"), 400),
        (lambda _: b"no http at all\r\n\r\n", 400),
        (lambda url: head_of(url, headers="X: " + "y" * 40_000 + "\r\n"), 431),
    ],
)
async def test_what_is_wrong_is_refused_and_reaches_no_monitor(spoil: Callable[[str], bytes], status: int) -> None:
    monitor = MonitorSimulator()
    async with front(monitor) as served:
        answer = await talk(served_url := served.open(REQUEST), spoil(served_url))
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert b"Connection: close" in answer
    assert monitor.met == []


async def test_a_used_token_is_not_found() -> None:
    async with front(MonitorSimulator()) as served:
        url = served.open(REQUEST)
        await talk(url, head_of(url))
        assert (await talk(url, head_of(url))).startswith(b"HTTP/1.1 404 ")


async def test_a_request_without_upgrade_does_not_use_the_token_up() -> None:
    async with front(MonitorSimulator()) as served:
        url = served.open(REQUEST)
        await talk(url, head_of(url, headers=""))
        assert await talk(url, head_of(url)) == b"here is the monitor\n"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n", 403),
        ("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", 400),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", 405),
    ],
)
async def test_a_client_with_which_nothing_can_be_agreed_keeps_its_token(headers: str, status: int) -> None:
    """And nothing is touched for it: stdin that is given once would be gone."""
    monitor = MonitorSimulator()
    async with front(monitor) as served:
        url = served.open(REQUEST)
        assert (await talk(url, head_of(url, headers=headers))).startswith(f"HTTP/1.1 {status} ".encode())
        assert monitor.met == []
        assert await talk(url, head_of(url)) == b"here is the monitor\n"


async def test_a_client_reads_why_it_was_refused_though_it_has_sent_more() -> None:
    """A connection that is closed with bytes unread is reset, and what the client did not read yet is lost."""
    async with front(MonitorSimulator()) as served:
        url = served.open(REQUEST)
        answer = await talk(url, head_of(url, method="PUT") + bytes(200_000))
    assert answer.startswith(b"HTTP/1.1 405 ")


async def test_a_client_whose_machine_is_gone_is_noticed() -> None:
    options = []

    async def look(_request: StreamRequest, _agreed: Agreement, _rest: bytes, connection: socket.socket) -> None:
        options.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        options.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))

    monitor = MonitorSimulator()
    monitor.hand_over = look  # type: ignore[method-assign]
    async with front(monitor) as served:
        url = served.open(REQUEST)
        await talk(url, head_of(url))
    assert options == [1, 30]


async def test_a_port_that_is_taken_is_told_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=rf"streaming\.port {port} .*Address already in use"):
            async with front(MonitorSimulator(), port=port):
                pass


@pytest.mark.parametrize(("failure", "status"), [(NotFound("gone"), 404), (FailedPrecondition("not running"), 500)])
async def test_a_session_that_can_t_begin_any_more_is_told(failure: Exception, status: int) -> None:
    monitor = MonitorSimulator()
    monitor.failure = failure
    async with front(monitor) as served:
        url = served.open(REQUEST)
        answer = await talk(url, head_of(url))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert str(failure).encode() in answer


async def test_a_client_that_dawdles_is_given_up() -> None:
    async with front(MonitorSimulator(), head_timeout_s=0.05) as served:
        assert (await talk(served.open(REQUEST), b"POST /exec/")).startswith(b"HTTP/1.1 408 ")


async def test_clients_that_ask_for_nothing_keep_nobody_out() -> None:
    """However many: beyond the limit the oldest is let go."""
    async with front(MonitorSimulator(), max_waiting_connections=2) as served:
        url = served.open(REQUEST)
        parts = urlsplit(url)
        idle = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(20)]
        for _, writer in idle:
            writer.write(b"P")
        assert await talk(url, head_of(url)) == b"here is the monitor\n"
        for reader, _ in idle[:-2]:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
        for _, writer in idle:
            writer.close()


class BusyMonitor(MonitorSimulator):
    """Answers the client at once, and the daemon later."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def hand_over(
        self, request: StreamRequest, agreement: Agreement, rest: bytes, connection: socket.socket
    ) -> None:
        await super().hand_over(request, agreement, rest, connection)
        await self.gate.wait()


async def test_a_client_that_hears_of_its_session_keeps_nobody_out_any_more() -> None:
    monitor = BusyMonitor()
    async with front(monitor, max_waiting_connections=1) as served:
        for _ in range(3):
            url = served.open(REQUEST)
            parts = urlsplit(url)
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(head_of(url))
            assert await asyncio.wait_for(reader.readline(), 60) == b"here is the monitor\n"
            writer.close()
        monitor.gate.set()


# ------------------------------------------------------------------------ TLS


def write_certificate(authority: trustme.CA, directory: Path) -> dict[str, Any]:
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    return {"tls": True, "tls_certificate": str(directory / "cert.pem"), "tls_key": str(directory / "key.pem")}


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


async def test_over_tls_the_monitor_answers_as_well(tmp_path: Path) -> None:
    authority, monitor = trustme.CA(), MonitorSimulator()
    async with front(monitor, **write_certificate(authority, tmp_path)) as served:
        url = served.open(REQUEST)
        assert url.startswith("https://")
        assert await talk(url, head_of(url) + b"early", trusting(authority)) == b"here is the monitor\n"
    assert monitor.met[0][2] == b"early"


class StayingMonitor(MonitorSimulator):
    """Keeps each connection for the test to speak with."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: asyncio.Queue[socket.socket] = asyncio.Queue()

    async def hand_over(
        self, request: StreamRequest, agreement: Agreement, rest: bytes, connection: socket.socket
    ) -> None:
        kept = socket.socket(fileno=socket.dup(connection.fileno()))
        kept.setblocking(False)
        self.kept.put_nowait(kept)


async def test_sessions_over_tls_wait_for_nothing_once_they_have_begun(tmp_path: Path) -> None:
    """They stay in the daemon to their end, and must not keep others out."""
    authority, monitor = trustme.CA(), StayingMonitor()
    async with front(monitor, max_waiting_connections=1, **write_certificate(authority, tmp_path)) as served:
        ends: list[asyncio.StreamWriter | socket.socket] = []
        for _ in range(3):
            url = served.open(REQUEST)
            parts = urlsplit(url)
            _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=trusting(authority))
            writer.write(head_of(url))
            ends += [writer, await asyncio.wait_for(monitor.kept.get(), 60)]
        for end in ends:
            end.close()


async def test_a_refusal_over_tls_is_read_to_its_end(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with front(MonitorSimulator(), **write_certificate(authority, tmp_path)) as served:
        url = served.open(REQUEST)
        answer = await talk(url + "x", head_of(url + "x"), trusting(authority))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"older than a minute\n")


async def test_what_the_monitor_said_last_comes_whole_to_a_slow_client_over_tls(tmp_path: Path) -> None:
    authority, monitor = trustme.CA(), StayingMonitor()
    content = bytes(8 << 20)
    async with front(monitor, **write_certificate(authority, tmp_path)) as served:
        url = served.open(REQUEST)
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=trusting(authority), limit=1024)
        writer.write(head_of(url))
        kept = await asyncio.wait_for(monitor.kept.get(), 60)

        async def say() -> None:
            await asyncio.get_running_loop().sock_sendall(kept, content)
            kept.close()

        saying = asyncio.create_task(say())
        received = 0
        while data := await asyncio.wait_for(reader.read(1 << 16), 60):
            received += len(data)
            await asyncio.sleep(0)
        await saying
        assert received == len(content)
        writer.close()


async def test_without_files_a_certificate_is_made_that_names_the_address() -> None:
    async with front(MonitorSimulator(), tls=True) as served:
        url = served.open(REQUEST)
        parts = urlsplit(url)
        pem = await asyncio.to_thread(ssl.get_server_certificate, (parts.hostname, parts.port))
        context = ssl.create_default_context(cadata=pem)
        assert context.check_hostname
        assert await talk(url, head_of(url), context) == b"here is the monitor\n"


async def test_a_certificate_without_its_key_is_told_at_the_start(tmp_path: Path) -> None:
    settings = {**write_certificate(trustme.CA(), tmp_path), "tls_key": ""}
    with pytest.raises(FailedPrecondition, match="tls_key ''"):
        async with front(MonitorSimulator(), **settings):
            pass


async def test_a_certificate_that_was_spoiled_leaves_the_one_before(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with front(MonitorSimulator(), **write_certificate(authority, tmp_path)) as served:
        (tmp_path / "cert.pem").write_text("half a certif")
        url = served.open(REQUEST)
        assert await talk(url, head_of(url), trusting(authority)) == b"here is the monitor\n"


async def test_a_certificate_that_changed_is_used_for_the_next_connection(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    async with front(MonitorSimulator(), **write_certificate(old, tmp_path)) as served:
        first, second = served.open(REQUEST), served.open(REQUEST)
        assert await talk(first, head_of(first), trusting(old))
        write_certificate(new, tmp_path)
        assert await talk(second, head_of(second), trusting(new))


async def test_a_certificate_that_can_t_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    settings = write_certificate(trustme.CA(), tmp_path)
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(FailedPrecondition, match=r"key\.pem"):
        async with front(MonitorSimulator(), **settings):
            pass


@pytest.mark.parametrize(("oldest", "spoken"), [("1.2", True), ("1.3", False)])
async def test_a_version_of_tls_below_the_oldest_is_refused(tmp_path: Path, oldest: str, spoken: bool) -> None:
    authority = trustme.CA()
    context = trusting(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with front(MonitorSimulator(), **write_certificate(authority, tmp_path), tls_min_version=oldest) as served:
        url = served.open(REQUEST)
        with contextlib.nullcontext() if spoken else pytest.raises(OSError):
            assert await talk(url, head_of(url), context) == b"here is the monitor\n"
