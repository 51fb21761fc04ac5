"""The client of OCI and Docker registries: manifests and blobs of one repository, from mirrors and the host itself.

distribution-spec 1.1 (pull). A mirror that fails in whatever way is passed over; credentials go to the host that
they are for and to nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import structlog

from cri_py import telemetry
from cri_py.config import RegistryConfig
from cri_py.errors import CriError, DataLoss, DeadlineExceeded, NotFound, PermissionDenied, Unavailable
from cri_py.images import auth as wire
from cri_py.images.manifest import ACCEPTED, MANIFEST_LIMIT, Descriptor
from cri_py.images.reference import ImageRef
from cri_py.images.transport import Answer, Request, Transport, origin
from cri_py.model import Digest, RegistryAuth

TOKEN_LIMIT: Final = 1 << 20
WHOLE_ANSWER_S: Final = 60.0  # for a manifest, a config or a token, however it drips
_HUB: Final = "registry-1.docker.io"

log = structlog.get_logger()
_Fetched = TypeVar("_Fetched")


class Sink(Protocol):
    """Where a blob goes. What it holds already, of this life or the last, is not fetched again if the host can resume.

    ``offset`` is the number of bytes it holds, from the start without a gap and all of them part of ``hexdigest``;
    ``restart`` drops them.
    """

    @property
    def offset(self) -> int: ...
    async def restart(self, algorithm: str) -> None: ...
    async def write(self, piece: bytes) -> None: ...
    async def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    content: bytes
    media_type: str
    digest: Digest


@dataclass(slots=True)
class Endpoint:
    """One base URL that serves the repository, and how we have introduced ourselves there so far."""

    url: str  # ends in /v2
    credentials: wire.Credentials | None
    authorization: str = field(default="", repr=False)
    turnstile: asyncio.Lock = field(default_factory=asyncio.Lock)  # one token for all who wait for it


def endpoints(ref: ImageRef, registries: Mapping[str, RegistryConfig], auth: RegistryAuth | None) -> list[Endpoint]:
    """Where ``ref`` can be fetched: its host's mirrors in order, then the host itself.

    The credentials are for the ref's host; a mirror gets them only if ``auth.server_address`` names it.
    """
    config = registries.get(ref.host, RegistryConfig())
    found = []
    for mirror in config.mirrors:
        named = auth if auth is not None and auth.server_address else None
        found.append(Endpoint(_api(mirror), wire.credentials_for(named, urlsplit(mirror).netloc)))
    plain = config.insecure or is_loopback(ref.host)
    host = _HUB if ref.host == "docker.io" else ref.host
    found.append(Endpoint(_api(f"{'http' if plain else 'https'}://{host}"), wire.credentials_for(auth, ref.host)))
    return found


def is_loopback(host: str) -> bool:
    """Whether a host (with or without port) is this machine: such registries speak plain HTTP."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Repository:
    """One repository during one pull: remembers tokens and which host has served it."""

    def __init__(self, ref: ImageRef, found: list[Endpoint], transport: Transport) -> None:
        self._ref = ref
        self._endpoints = found
        self._transport = transport

    async def manifest(self, tag_or_digest: str, expected: Digest | None) -> FetchedManifest:
        """A manifest or index, verified against ``expected`` or else against what the registry says it is.

        Raises NotFound, PermissionDenied, Unavailable, DeadlineExceeded or DataLoss.
        """

        async def fetch(endpoint: Endpoint) -> FetchedManifest:
            headers = {"Accept": ", ".join(ACCEPTED)}
            async with self._open(endpoint, f"manifests/{tag_or_digest}", headers) as answer:
                content = await answer.body(MANIFEST_LIMIT)
                said = answer.header("Docker-Content-Digest")
                media_type = answer.header("Content-Type")
            digest = expected or Digest(said if said.startswith(("sha256:", "sha512:")) else "sha256:")
            algorithm = digest.partition(":")[0]
            found = Digest(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
            if found != digest and (expected is not None or said):
                raise DataLoss(f"the manifest of {self._ref} from {origin(endpoint.url)} is {found}, not {digest}")
            return FetchedManifest(content, media_type, found)

        return await self._from_any(lambda endpoint: _whole(fetch(endpoint), endpoint), f"manifest {tag_or_digest}")

    async def small_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """A blob in memory, such as an image's config; verified."""
        if descriptor.size > limit:
            raise DataLoss(f"{descriptor.digest} of {self._ref} has {descriptor.size} bytes; at most {limit} are read")

        async def fetch(endpoint: Endpoint) -> bytes:
            async with self._open(endpoint, f"blobs/{descriptor.digest}", {}) as answer:
                content = await answer.body(limit)
            algorithm = descriptor.digest.partition(":")[0]
            found = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
            self._verify(descriptor, len(content), found, endpoint)
            return content

        return await self._from_any(lambda endpoint: _whole(fetch(endpoint), endpoint), f"blob {descriptor.digest}")

    async def blob(self, descriptor: Descriptor, sink: Sink) -> None:
        """A blob of any size into ``sink``; verified. What stands in the sink after an error is of no use."""

        async def fetch(endpoint: Endpoint) -> None:
            algorithm = descriptor.digest.partition(":")[0]
            await sink.restart(algorithm)
            received = 0
            async with (
                self._open(endpoint, f"blobs/{descriptor.digest}", {}) as answer,
                aclosing(answer.pieces()) as pieces,
            ):
                async for piece in pieces:
                    received += len(piece)
                    if received > descriptor.size:
                        break
                    await sink.write(piece)
            self._verify(descriptor, received, f"{algorithm}:{await sink.hexdigest()}", endpoint)
            telemetry.PULL_BYTES.inc(received)
            log.info("blob fetched", digest=descriptor.digest, image=str(self._ref), host=origin(endpoint.url))

        await self._from_any(fetch, f"blob {descriptor.digest}")

    def _verify(self, descriptor: Descriptor, size: int, found: str, endpoint: Endpoint) -> None:
        where = f"{descriptor.digest} of {self._ref} from {origin(endpoint.url)}"
        if size != descriptor.size:
            kind = "more" if size > descriptor.size else f"only {size}"
            raise DataLoss(f"{where} should have {descriptor.size} bytes and has {kind}")
        if found != descriptor.digest:
            raise DataLoss(f"{where} is {found}", hint="the registry or a proxy before it serves damaged content")

    async def _from_any(self, fetch: Callable[[Endpoint], Awaitable[_Fetched]], what: str) -> _Fetched:
        """Ask one endpoint after the other, the one that served us last first."""
        failures: list[tuple[Endpoint, CriError]] = []
        for endpoint in list(self._endpoints):
            try:
                fetched = await fetch(endpoint)
            except CriError as error:
                failures.append((endpoint, error))
                continue
            if failures:
                said = [str(error) for _, error in failures]
                log.warning("mirrors passed over", wanted=what, image=str(self._ref), failures=said)
                if endpoint in self._endpoints:
                    self._endpoints.remove(endpoint)
                    self._endpoints.insert(0, endpoint)
            return fetched
        raise _summary(failures)

    @asynccontextmanager
    async def _open(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        url = f"{endpoint.url}/{self._ref.path}/{path}"
        for first in (True, False):
            shown = endpoint.authorization
            async with self._transport.open(Request(url, headers, shown)) as answer:
                if answer.status == 200:
                    yield answer
                    return
                challenged = first and answer.status == 401 and origin(answer.url) == origin(url)
                if not challenged:
                    raise self._refusal(answer, endpoint)
                challenges = wire.parse_challenges(", ".join(answer.headers("WWW-Authenticate")))
            async with endpoint.turnstile:
                if endpoint.authorization == shown:
                    endpoint.authorization = await self._authorization(endpoint, challenges)

    async def _authorization(self, endpoint: Endpoint, challenges: tuple[wire.Challenge, ...]) -> str:
        by_scheme = {challenge.scheme: challenge for challenge in challenges}
        credentials, where = endpoint.credentials, origin(endpoint.url)
        if (bearer := by_scheme.get("bearer")) is not None:
            if credentials is not None and credentials.registry_token:
                return f"Bearer {credentials.registry_token}"
            request = wire.token_request(bearer, credentials, f"repository:{self._ref.path}:pull", endpoint.url)
            return f"Bearer {await _whole(self._token(request), endpoint)}"
        if "basic" in by_scheme:
            if credentials is None or not credentials.username:
                hint = "give the pod an image pull secret"
                raise PermissionDenied(f"{where} wants a user and password for {self._ref}", hint=hint)
            return wire.basic_header(credentials)
        raise Unavailable(f"{where} answers 401 for {self._ref} and offers no way to log in that is known here")

    async def _token(self, request: wire.TokenRequest) -> str:
        headers = {name: text for name, text in request.headers.items() if name != "Authorization"}
        sent = Request(request.url, headers, request.headers.get("Authorization", ""), request.form)
        async with self._transport.open(sent) as answer:
            where = origin(answer.url)
            if answer.status in {400, 401, 403}:
                raise PermissionDenied(
                    f"the token server {where} refuses the credentials for {self._ref} ({answer.status})",
                    hint="check the image pull secret",
                )
            if answer.status != 200:
                raise Unavailable(f"the token server {where} answers {answer.status} for {self._ref}")
            return wire.token_from(await answer.body(TOKEN_LIMIT), where)

    def _refusal(self, answer: Answer, endpoint: Endpoint) -> CriError:
        where, status = origin(answer.url), answer.status
        if status == 404:
            return NotFound(f"{where} has no {self._ref}", hint="check the name, the tag and the spelling")
        if status in {401, 403}:
            who = "these credentials" if endpoint.credentials is not None else "anonymous users"
            return PermissionDenied(
                f"{where} denies {self._ref} to {who} ({status})", hint="check the name and the image pull secret"
            )
        if status == 429:
            return Unavailable(f"{where} limits pulls and takes no more now (429)", hint="wait, log in or use a mirror")
        return Unavailable(f"{where} answers {status} for {self._ref}", hint="look at the registry's log")


async def _whole(act: Awaitable[_Fetched], endpoint: Endpoint) -> _Fetched:
    """A small answer must be complete in time: one that drips would never stall."""
    try:
        async with asyncio.timeout(WHOLE_ANSWER_S):
            return await act
    except TimeoutError as error:
        raise DeadlineExceeded(f"{origin(endpoint.url)} did not answer within {WHOLE_ANSWER_S:g} s") from error


def _summary(failures: list[tuple[Endpoint, CriError]]) -> CriError:
    """The host's own failure, with what its mirrors said before."""
    *_, (_, last) = failures
    if len(failures) == 1:
        return last
    mirrors = "; ".join(error.message for _, error in failures[:-1])
    return type(last)(f"{last.message}; its mirrors: {mirrors}", hint=last.hint)


def _api(url: str) -> str:
    trimmed = url.rstrip("/")
    return trimmed if trimmed.endswith("/v2") else f"{trimmed}/v2"
