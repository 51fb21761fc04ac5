"""/metrics and /metrics/cadvisor over HTTP, on a unix socket or loopback TCP.

As much of HTTP/1.1 as a scrape needs: one request for each connection, no body. It runs on the daemon's loop, so that
gauges are read without locks; prometheus_client's own server is a thread and knows no unix sockets.
"""

from __future__ import annotations

import asyncio
import http
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from cri_py import telemetry
from cri_py.config import Config
from cri_py.errors import ConfigError, Unavailable
from cri_py.rpc.listen import TcpAddress, UnixAddress, make_way, parse_address, restrict

log = structlog.get_logger()

OFF: Final = "off"
MAX_HEAD_BYTES: Final = 16384
HEAD_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0


class BadRequest(Exception):
    """The client is told ``status`` and ``reason``."""

    def __init__(self, status: http.HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


Page = Callable[[str], Awaitable[tuple[str, bytes]]]
"""From the Accept header to content type and body."""


async def own_series(accept: str) -> tuple[str, bytes]:
    """What the daemon tells about itself."""
    return telemetry.exposition(accept)


class MetricsServer:
    """Serves GET and HEAD of the pages on ``config.metrics_listen``; does nothing where that is "off".

    ``containers`` is the page /metrics/cadvisor.
    """

    def __init__(self, config: Config, containers: Page) -> None:
        self._pages: Mapping[str, Page] = {"/metrics": own_series, "/metrics/cadvisor": containers}
        self._address = None if config.metrics_listen == OFF else _loopback(config.metrics_listen)
        self._group = config.server.socket_group
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> UnixAddress | TcpAddress | None:
        """Where it listens; after :meth:`start` with the real port; None: off."""
        return self._address

    async def start(self) -> None:
        """Raises FailedPrecondition if another process has the socket, Unavailable if it can't be bound."""
        if self._address is None:
            return
        try:
            if isinstance(self._address, UnixAddress):
                make_way(self._address)
                self._server = await asyncio.start_unix_server(self._serve, self._address.path, limit=MAX_HEAD_BYTES)
                restrict(self._address, self._group)
            else:
                self._server = await asyncio.start_server(
                    self._serve, self._address.host, self._address.port, limit=MAX_HEAD_BYTES
                )
                self._address = TcpAddress(self._address.host, self._server.sockets[0].getsockname()[1])
        except OSError as error:
            raise Unavailable(f"metrics can't be served on {self._address}: {error}") from error

    def stop(self) -> None:
        """Take no more scrapes. One that runs is not waited for: a client that only connects must not delay the end."""
        if self._server is None:
            return
        self._server.close()
        if isinstance(self._address, UnixAddress):
            Path(self._address.path).unlink(missing_ok=True)  # asyncio does that from Python 3.13 on

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S + ANSWER_TIMEOUT_S):
                writer.write(await self._answer(reader))
                await writer.drain()
        except (ConnectionError, TimeoutError) as error:
            log.debug("metrics client left", error=repr(error))
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            method, page, headers = await self._request(reader)
        except BadRequest as bad:
            return _response(bad.status, "text/plain; charset=utf-8", f"{bad.reason}\n".encode())
        try:
            content_type, body = await page(headers.get("accept", ""))
        except Exception:
            log.exception("a series could not be read")
            reason = b"a series could not be read; the log tells which\n"
            return _response(http.HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", reason)
        return _response(http.HTTPStatus.OK, content_type, body, without_body=method == "HEAD")

    async def _request(self, reader: asyncio.StreamReader) -> tuple[str, Page, dict[str, str]]:
        """Method, page and headers. Raises BadRequest for what is none of our pages."""
        method, target, headers = await _head(reader)
        page = self._pages.get(target.partition("?")[0])
        if page is None:
            raise BadRequest(http.HTTPStatus.NOT_FOUND, f"only {' and '.join(self._pages)} are here")
        if method not in {"GET", "HEAD"}:
            raise BadRequest(http.HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not possible here")
        return method, page, headers


def _loopback(listen: str) -> UnixAddress | TcpAddress:
    """Whoever may connect may read, so only this machine may."""
    address = parse_address(listen, "metrics.listen")
    if isinstance(address, TcpAddress) and not _is_loopback(address.host):
        raise ConfigError(
            f"metrics.listen is {listen!r}, which other machines can reach",
            hint="use 127.0.0.1:PORT or unix:///path, and a proxy that asks who is there",
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    """Method, target and headers of a request. Raises BadRequest for what is no HTTP/1."""
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        reason = f"the header is longer than {MAX_HEAD_BYTES} bytes"
        raise BadRequest(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason) from None
    except asyncio.IncompleteReadError:
        raise BadRequest(http.HTTPStatus.BAD_REQUEST, "the request ended before its header did") from None
    except TimeoutError:
        raise BadRequest(http.HTTPStatus.REQUEST_TIMEOUT, f"no request within {HEAD_TIMEOUT_S} s") from None
    line, *fields = head.decode("latin-1").split("\r\n")[:-2]
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(http.HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")
    method, target, _ = words
    return method, target, _headers(fields)


def _headers(fields: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for field in fields:
        name, colon, content = field.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(http.HTTPStatus.BAD_REQUEST, "a header line is not `name: value`")
        headers[name.lower()] = content.strip()
    return headers


def _response(status: http.HTTPStatus, content_type: str, body: bytes, *, without_body: bool = False) -> bytes:
    fields = {"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"}
    if status is http.HTTPStatus.METHOD_NOT_ALLOWED:
        fields["Allow"] = "GET, HEAD"
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {content}" for name, content in fields.items())]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if without_body else head + body
