"""HTTP for the registry client: GET and POST, redirects by our own rules, every wait under a deadline.

The only code that knows the HTTP library, which is imported at the first request: a daemon that never pulls doesn't
pay its 14 MB (docs/adr/0001-registry-client.md).
"""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from cri_py.errors import DataLoss, DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    import aiohttp

REDIRECTS_MAX: Final = 10
CONNECT_TIMEOUT_S: Final = 15.0
HEADER_LIMIT: Final = 32 << 10
READ_BYTES: Final = 1 << 18
USER_AGENT: Final = "cri_py"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Request:
    """``authorization`` goes to the origin of ``url`` only, never along a redirect to another."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    authorization: str = field(default="", repr=False)
    form: bytes | None = field(default=None, repr=False)  # a POST if set


class Answer:
    """A response whose body is still to be read."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, idle_s: float) -> None:
        self._response = response
        self._idle_s = idle_s
        self.url = url
        self.status = response.status

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    def headers(self, name: str) -> list[str]:
        return self._response.headers.getall(name, [])

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises Unavailable if it is cut, DeadlineExceeded if it stalls."""
        async with _mapped(self.url, self._idle_s):
            async for piece in self._response.content.iter_any():
                yield piece

    async def body(self, limit: int) -> bytes:
        """The whole body; DataLoss if it is longer than ``limit`` bytes."""
        taken = bytearray()
        async for piece in self.pieces():
            taken += piece
            if len(taken) > limit:
                raise DataLoss(f"{self.url} sent more than the {limit} bytes that are read of such an answer")
        return bytes(taken)


class Transport:
    """A pool of connections. ``idle_s`` bounds every wait for the next byte."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Answer]:
        """Send the request, follow redirects, and hold the connection until the block ends.

        Raises Unavailable (no connection, TLS, a redirect that leads nowhere), DeadlineExceeded (no byte in time).
        """
        for _ in range(REDIRECTS_MAX):
            async with self._once(request) as answer:
                location = answer.header("Location")
                if answer.status not in _REDIRECTS or not location:
                    yield answer
                    return
            request = _redirected(request, location)
        raise Unavailable(f"{origin(request.url)} redirects more than {REDIRECTS_MAX} times")

    @asynccontextmanager
    async def _once(self, request: Request) -> AsyncIterator[Answer]:
        session = await self._opened()
        import yarl  # noqa: PLC0415 (see the module's docstring)

        headers = dict(request.headers)
        if request.authorization:
            headers["Authorization"] = request.authorization
        method = "GET" if request.form is None else "POST"
        # encoded=True: a signed URL must reach its host byte by byte as the registry wrote it.
        url = yarl.URL(request.url, encoded=True)
        async with _mapped(request.url, self._idle_s):
            response = await session.request(method, url, headers=headers, data=request.form, allow_redirects=False)
        try:
            yield Answer(response, request.url, self._idle_s)
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The import takes 0.2 s: on a thread, the loop goes on serving.
            await asyncio.get_running_loop().run_in_executor(None, importlib.import_module, "aiohttp")
        if self._session is None:
            import aiohttp  # noqa: PLC0415 (see the module's docstring)

            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=min(CONNECT_TIMEOUT_S, self._idle_s), sock_read=self._idle_s
                ),
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
                auto_decompress=False,  # digests are of the bytes as they travel
                read_bufsize=READ_BYTES,
                max_line_size=HEADER_LIMIT,
                max_field_size=HEADER_LIMIT,
            )
        return self._session


def origin(url: str) -> str:
    """``scheme://host:port`` of a URL: all that messages show, for the rest may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _redirected(request: Request, location: str) -> Request:
    try:
        url = urljoin(request.url, location)
        valid = urlsplit(url).scheme in {"http", "https"} and urlsplit(url).hostname
    except ValueError:
        valid = None
    if not valid:
        raise Unavailable(f"{origin(request.url)} redirects to what is no http(s) URL")
    kept = request.authorization if origin(url) == origin(request.url) else ""
    return replace(request, url=url, authorization=kept)


@asynccontextmanager
async def _mapped(url: str, idle_s: float) -> AsyncIterator[None]:
    """Turn the library's errors into ours."""
    import aiohttp  # noqa: PLC0415 (see the module's docstring)

    where = origin(url)
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise Unavailable(f"{where} can't be reached: no connection in time", hint="is the host up?") from error
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise DeadlineExceeded(f"{where} sent nothing for {idle_s:g} s", hint="see pull_progress_timeout") from error
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        raise Unavailable(f"{where} can't be trusted: {error}", hint="check the host's certificate") from error
    except aiohttp.ClientConnectorError as error:
        raise Unavailable(f"{where} can't be reached: {error.os_error}", hint="is the registry up?") from error
    except aiohttp.ClientPayloadError as error:
        raise Unavailable(f"{where} cut the connection in the middle of its answer", hint="try again") from error
    except aiohttp.InvalidURL as error:
        raise Unavailable(f"{where} is no URL that can be opened") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unavailable(f"{where} did not answer properly: {type(error).__name__}: {str(error)[:200]}") from error
