"""/metrics over a unix socket and loopback TCP, for scrapers and for what is none."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri_py.config import Config, MetricsConfig
from cri_py.errors import ConfigError, FailedPrecondition
from cri_py.rpc.listen import TcpAddress, UnixAddress
from cri_py.rpc.metrics import MAX_HEAD_BYTES, MetricsServer

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def containers(accept: str) -> tuple[str, bytes]:
    return "text/plain", f"containers {accept}\n".encode()


@pytest.fixture(params=["unix", "tcp"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MetricsServer]:
    listen = f"unix://{tmp_path}/run/metrics.sock" if request.param == "unix" else "127.0.0.1:0"
    server = MetricsServer(Config(metrics=MetricsConfig(listen)), containers)
    await server.start()
    yield server
    server.stop()


async def ask(server: MetricsServer, sent: bytes, *, end: bool = False) -> tuple[bytes, bytes]:
    """The head and the body that answer what is sent."""
    address = server.address
    if isinstance(address, UnixAddress):
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        assert address is not None
        reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    if end:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_a_scrape_gets_all_series_as_text(server: MetricsServer) -> None:
    head, body = await ask(server, SCRAPE)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"# TYPE cri_py_rpc_seconds histogram" in body


async def test_a_scraper_that_speaks_openmetrics_gets_it(server: MetricsServer) -> None:
    accept = b"GET /metrics HTTP/1.1\r\nACCEPT: application/openmetrics-text; version=1.0.0\r\n\r\n"
    head, body = await ask(server, accept)
    assert b"Content-Type: application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


async def test_the_series_of_containers_are_a_page_of_their_own(server: MetricsServer) -> None:
    asked = SCRAPE.replace(b"/metrics", b"/metrics/cadvisor").replace(b"Host", b"Accept: any/thing\r\nHost")
    head, body = await ask(server, asked)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b"containers any/thing\n"


async def test_a_page_that_fails_is_an_error_of_the_server(tmp_path: Path) -> None:
    async def failing(_: str) -> tuple[str, bytes]:
        raise OSError("unreadable")

    server = MetricsServer(Config(metrics=MetricsConfig(f"unix://{tmp_path}/m.sock")), failing)
    await server.start()
    head, _ = await ask(server, SCRAPE.replace(b"/metrics", b"/metrics/cadvisor"))
    assert b" 500 " in head
    server.stop()


async def test_head_gets_no_body(server: MetricsServer) -> None:
    head, body = await ask(server, SCRAPE.replace(b"GET", b"HEAD"))
    assert head.startswith(b"HTTP/1.1 200")
    assert body == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
    ],
)
async def test_what_is_no_scrape_gets_a_client_error(server: MetricsServer, sent: bytes, status: int) -> None:
    head, _ = await ask(server, sent, end=True)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"Allow: GET, HEAD" in head) == (status == 405)


async def test_the_socket_is_for_its_group_and_nobody_else(tmp_path: Path) -> None:
    server = MetricsServer(Config(metrics=MetricsConfig(f"unix://{tmp_path}/m.sock")), containers)
    await server.start()
    assert stat.S_IMODE((tmp_path / "m.sock").stat().st_mode) == 0o660
    server.stop()


async def test_a_stop_removes_the_socket(tmp_path: Path) -> None:
    server = MetricsServer(Config(metrics=MetricsConfig(f"unix://{tmp_path}/m.sock")), containers)
    await server.start()
    server.stop()
    assert not (tmp_path / "m.sock").exists()


async def test_a_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    config = Config(metrics=MetricsConfig(f"unix://{tmp_path}/m.sock"))
    first = MetricsServer(config, containers)
    await first.start()
    with pytest.raises(FailedPrecondition, match="another process listens"):
        await MetricsServer(config, containers).start()
    first.stop()


@pytest.mark.parametrize("listen", ["0.0.0.0:9090", "tcp://10.0.0.1:9090", "[::]:9090", "example.org:1"])
def test_other_machines_are_kept_out(listen: str) -> None:
    with pytest.raises(ConfigError, match="other machines"):
        MetricsServer(Config(metrics=MetricsConfig(listen)), containers)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:1", "localhost:1"])
def test_loopback_is_welcome(listen: str) -> None:
    assert isinstance(MetricsServer(Config(metrics=MetricsConfig(listen)), containers).address, TcpAddress)


async def test_off_listens_nowhere() -> None:
    server = MetricsServer(Config(metrics=MetricsConfig("off")), containers)
    await server.start()
    assert server.address is None
    server.stop()
