"""HTTP for the registry client: GET, HEAD and POST, redirects by our own rules, every wait under a deadline.

The only code that knows the HTTP library, which is imported at the first request: a daemon that never pulls doesn't
pay its 14 MB (docs/adr/0001-registry-client.md).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from cri_py.errors import ConfigError, DataLoss, DeadlineExceeded, PermissionDenied, Unavailable
from cri_py.images.endpoints import DIAL_TIMEOUT_S, SYSTEM_TRUST, Trust
from cri_py.images.proxies import proxy_for

if TYPE_CHECKING:
    import aiohttp

REDIRECTS_MAX: Final = 10
HEADER_LIMIT: Final = 32 << 10
READ_BYTES: Final = 1 << 18
USER_AGENT: Final = "cri_py"
WHOLE_ANSWER_S: Final = 60.0  # for a manifest, a config or a token
MAY_PASS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that the next attempt may not get
_URL_CHARACTERS: Final = "!#$%&'()*+,/:;=?@[]~"  # RFC 3986, beside letters, digits and -._
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_Fetched = TypeVar("_Fetched")


class Passing(Unavailable):
    """A failure that may pass by itself: the same request may succeed later, not before ``after_s`` seconds."""

    def __init__(self, message: str, *, hint: str = "", after_s: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after_s = after_s


class Unreachable(Passing):
    """No connection came about: nothing was said to the host."""


@dataclass(frozen=True, slots=True)
class Request:
    """``authorization`` and ``own_headers`` go to the origin of ``url`` only, never along a redirect to another."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    authorization: str = field(default="", repr=False)
    own_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    method: str = "GET"
    form: bytes | None = field(default=None, repr=False)  # of a POST
    trust: Trust = SYSTEM_TRUST
    dial_timeout_s: float = DIAL_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Pace:
    """How slow a host may be: ``idle_s`` without a byte, ``bytes_per_s`` on the average of as long a time."""

    idle_s: float
    bytes_per_s: int


class Answer:
    """A response whose body is still to be read."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, pace: Pace) -> None:
        self._response = response
        self._pace = pace
        self.url = url
        self.status = response.status

    def header(self, name: str) -> str:
        return self._response.headers.get(name, "")

    def headers(self, name: str) -> list[str]:
        return self._response.headers.getall(name, [])

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises Passing if it is cut, DeadlineExceeded if it stalls or drips."""
        loop, pace = asyncio.get_running_loop(), self._pace
        waited_s, brought = 0.0, 0  # only while we wait: a slow disk behind us is not the host's fault
        async with _mapped(self.url, pace.idle_s):
            pieces = aiter(self._response.content.iter_any())
            while True:
                asked = loop.time()
                piece = await anext(pieces, None)
                if piece is None:
                    return
                waited_s, brought = waited_s + loop.time() - asked, brought + len(piece)
                if waited_s >= pace.idle_s:
                    if brought < pace.bytes_per_s * waited_s:
                        said = f"{origin(self.url)} sent only {brought} bytes in {waited_s:.3g} s"
                        raise DeadlineExceeded(said, hint="see images.pull_minimum_bytes_per_s")
                    waited_s, brought = 0.0, 0
                yield piece

    async def body(self, limit: int) -> bytes:
        """The whole body; DataLoss if it is longer than ``limit`` bytes."""
        taken = bytearray()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                taken += piece
                if len(taken) > limit:
                    raise DataLoss(
                        f"{origin(self.url)} sent more than the {limit} bytes that are read of such an answer"
                    )
        return bytes(taken)

    @property
    def retry_after_s(self) -> float:
        """How long the host asks to be left alone (RFC 9110 §10.2.3); 0 where it doesn't say.

        A date is compared with the answer's own, so that our clock doesn't matter.
        """
        said = self.header("Retry-After").strip()
        if said.isascii() and said.isdecimal():
            return float(said[:9])
        try:
            wait = parsedate_to_datetime(said) - parsedate_to_datetime(self.header("Date"))
        except (ValueError, TypeError):
            return 0.0
        return max(0.0, wait.total_seconds())


class Transport:
    """A pool of connections, and the TLS contexts that they were made with."""

    def __init__(self, pace: Pace, environment: Mapping[str, str]) -> None:
        self._pace = pace
        self._environment = environment
        self._session: aiohttp.ClientSession | None = None
        self._contexts: dict[Trust, tuple[tuple[int, ...], ssl.SSLContext]] = {}

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def open(self, request: Request) -> AsyncIterator[Answer]:
        """Send the request, follow redirects, and hold the connection until the block ends.

        Raises Unreachable, Unavailable (TLS, a redirect that leads nowhere), PermissionDenied (a redirect that would
        show a login to another host), DeadlineExceeded (no byte in time), ConfigError (a certificate file).
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
        import aiohttp  # noqa: PLC0415 (see the module's docstring)
        import yarl  # noqa: PLC0415

        # identity: digests are of the bytes as they travel, and the library would ask for gzip by itself.
        headers = {"Accept-Encoding": "identity", **request.headers}
        taken = {"authorization"} if request.authorization else set()
        headers.update({name: text for name, text in request.own_headers if name.lower() not in taken})
        if request.authorization:
            headers["Authorization"] = request.authorization
        context = await self._context(request.trust) if request.url.startswith("https:") else True
        idle_s = self._pace.idle_s
        dial_s = min(request.dial_timeout_s, idle_s)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=dial_s, sock_read=idle_s)
        # The library begins a wait anew at each byte: headers that drip would hold us for ever.
        async with _mapped(request.url, idle_s), asyncio.timeout(dial_s + idle_s):
            response = await session.request(
                request.method,
                # encoded=True: a signed URL must reach its host byte by byte as the registry wrote it.
                yarl.URL(request.url, encoded=True),
                headers=headers,
                data=request.form,
                allow_redirects=False,
                ssl=context,
                proxy=proxy_for(request.url, self._environment) or None,
                timeout=timeout,
            )
        try:
            yield Answer(response, request.url, self._pace)
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _context(self, trust: Trust) -> ssl.SSLContext:
        """Made anew when one of its files has changed: certificates are rotated under a running daemon."""
        loop = asyncio.get_running_loop()
        signature = await loop.run_in_executor(None, _signature, trust) if trust != SYSTEM_TRUST else ()
        kept = self._contexts.get(trust)
        if kept is not None and kept[0] == signature:
            return kept[1]
        context = await loop.run_in_executor(None, _tls_context, trust)
        self._contexts[trust] = (signature, context)
        return context

    async def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The import takes 0.2 s: on a thread, the loop goes on serving.
            await asyncio.get_running_loop().run_in_executor(None, importlib.import_module, "aiohttp")
        if self._session is None:
            import aiohttp  # noqa: PLC0415 (see the module's docstring)

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": USER_AGENT},
                auto_decompress=False,
                read_bufsize=READ_BYTES,
                max_line_size=HEADER_LIMIT,
                max_field_size=HEADER_LIMIT,
            )
        return self._session


def origin(url: str) -> str:
    """``scheme://host:port`` of a URL: all that messages show, for the rest may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


async def in_time(act: Awaitable[_Fetched], url: str) -> _Fetched:
    """A small answer must be complete within a minute: one that drips would never stall."""
    try:
        async with asyncio.timeout(WHOLE_ANSWER_S):
            return await act
    except TimeoutError as error:
        raise DeadlineExceeded(f"{origin(url)} did not answer within {WHOLE_ANSWER_S:g} s") from error


def _redirected(request: Request, location: str) -> Request:
    try:
        # A space or worse would end the request's first line early; what a signature covers stays as it is.
        url = quote(urljoin(request.url, location), safe=_URL_CHARACTERS)
        valid = urlsplit(url).scheme in {"http", "https"} and urlsplit(url).hostname and urlsplit(url).port != 0
    except ValueError:
        valid = None
    if not valid:
        raise Unavailable(f"{origin(request.url)} redirects to what is no http(s) URL")
    if origin(url) == origin(request.url):
        return replace(request, url=url)
    if request.form is not None:
        raise PermissionDenied(f"{origin(request.url)} sends a login on to {origin(url)}: no other host may see it")
    # Another host gets no secret of this one. What authorities it may have stays: a registry's storage often has
    # the certificate of the same makeshift authority.
    return replace(request, url=url, authorization="", own_headers=(), trust=replace(request.trust, clients=()))


# ------------------------------------------------------------------------ TLS


def _signature(trust: Trust) -> tuple[int, ...]:
    """What changes when one of the files does; a missing one counts 0 and is complained of when it is read."""
    found = []
    for path in (*trust.ca, *(path for pair in trust.clients for path in pair if path)):
        try:
            found.append(os.stat(path).st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def _tls_context(trust: Trust) -> ssl.SSLContext:
    """Raises ConfigError that names the file."""
    context = ssl.create_default_context()
    if trust.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for path in trust.ca:
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{path} can't be used as a certificate authority: {error}") from error
    for certificate, key in trust.clients:
        try:
            context.load_cert_chain(certificate, key or None, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            with_key = f" with the key {key}" if key else ""
            raise ConfigError(f"{certificate}{with_key} can't be used as a client certificate: {error}") from error
    return context


def _no_password() -> str:
    """Without it OpenSSL would ask on the terminal."""
    return ""


@asynccontextmanager
async def _mapped(url: str, idle_s: float) -> AsyncIterator[None]:
    """Turn the library's errors into ours."""
    import aiohttp  # noqa: PLC0415 (see the module's docstring)

    where = origin(url)
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise Unreachable(f"{where} can't be reached: no connection in time", hint="is the host up?") from error
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise DeadlineExceeded(f"{where} sent nothing for {idle_s:g} s", hint="see pull_progress_timeout_s") from error
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
        hint = "check the host's certificate, or name its authority: ca in hosts.toml"
        raise Unavailable(f"{where} can't be trusted: {error}", hint=hint) from error
    except (aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
        hint = 'if it speaks plain HTTP, say so: server = "http://…" in hosts.toml, insecure in registries.conf'
        raise Unavailable(f"{where} refuses TLS: {error}", hint=hint) from error
    except aiohttp.ClientProxyConnectionError as error:
        said = f"the proxy {error.host}:{error.port} of {where} can't be reached: {error.os_error}"
        raise Unreachable(said, hint="see HTTP_PROXY, HTTPS_PROXY and NO_PROXY") from error
    except aiohttp.ClientConnectorError as error:
        raise Unreachable(f"{where} can't be reached: {error.os_error}", hint="is the registry up?") from error
    except aiohttp.ClientHttpProxyError as error:
        raise Unavailable(f"the proxy of {where} answers {error.status}", hint="see HTTPS_PROXY, NO_PROXY") from error
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError) as error:
        raise Passing(f"{where} cut the connection in the middle of its answer", hint="try again") from error
    except aiohttp.InvalidURL as error:
        raise Unavailable(f"{where} is no URL that can be opened") from error
    except aiohttp.ClientOSError as error:
        raise Passing(f"{where} cut the connection: {error.strerror or error}", hint="try again") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unavailable(f"{where} did not answer properly: {type(error).__name__}: {str(error)[:200]}") from error
