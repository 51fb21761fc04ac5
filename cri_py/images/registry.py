"""The client of OCI and Docker registries: manifests and blobs of one repository, from mirrors and the host itself.

distribution-spec 1.1 (pull). A host that fails in whatever way is passed over, and asked again if the failure may
pass; credentials go to the host that they are for and to nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeGuard, TypeVar
from urllib.parse import quote

import msgspec
import structlog

from cri_py import telemetry
from cri_py.errors import (
    CriError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    Unavailable,
)
from cri_py.images import auth as wire
from cri_py.images.endpoints import Endpoint
from cri_py.images.manifest import ACCEPTED, MANIFEST_LIMIT, Descriptor
from cri_py.images.reference import ImageRef
from cri_py.images.tokens import Logins
from cri_py.images.transport import MAY_PASS, Answer, Passing, Request, Transport, Unreachable, in_time, origin
from cri_py.model import Digest, RegistryAuth

COMPLAINT_LIMIT: Final = 8 << 10  # what is read of an error's body
COMPLAINT_S: Final = 5.0
RETRY_AFTER_MAX_S: Final = 60.0  # a host that wants more is not waited for: the kubelet comes again by itself
PROGRESS_BYTES: Final = 1 << 20  # a blob that got on by so much starts its attempts anew
LOGINS_MAX: Final = 3
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")

HOST_FAILURES: Final = (Unavailable, NotFound, PermissionDenied, DeadlineExceeded, DataLoss)

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
class Patience:
    """How often hosts are asked that fail in a way that may pass, and how long is waited between.

    ``chance`` gives numbers from 0 to 1: many nodes that were refused together must not come again together.
    """

    attempts: int
    first_wait_s: float
    chance: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]

    async def rest(self, after: int, failures: Sequence[CriError]) -> None:
        """Wait ``after`` so many attempts, at least as long as the most lenient of the hosts asks for."""
        doubled = self.first_wait_s * 2.0 ** min(max(after - 1, 0), 10)
        asked_s = min(failure.after_s for failure in failures if isinstance(failure, Passing))
        await self.sleep(max(asked_s, doubled * (0.5 + self.chance() / 2)))


@dataclass(frozen=True, slots=True)
class FetchedManifest:
    content: bytes
    media_type: str
    digest: Digest


class Repository:
    """One repository during one pull: remembers which host has served it."""

    def __init__(
        self,
        ref: ImageRef,
        endpoints: Sequence[Endpoint],
        *,
        auth: RegistryAuth | None,
        transport: Transport,
        logins: Logins,
        patience: Patience,
    ) -> None:
        self._ref = ref
        self._endpoints = list(endpoints)
        self._auth = auth
        self._transport = transport
        self._logins = logins
        self._patience = patience
        self._etags: dict[tuple[str, Digest], str] = {}

    @property
    def registry(self) -> str:
        """The host that the ref names, whoever serves in its place."""
        return self._ref.host

    # ------------------------------------------------------------- what is asked

    @telemetry.spanned("fetch manifest")
    async def manifest(self, tag_or_digest: str, expected: Digest | None) -> FetchedManifest:
        """A manifest or index, verified against ``expected`` or else against what the registry says it is.

        Raises NotFound, PermissionDenied, Unavailable, DeadlineExceeded, DataLoss, or
        ConfigError for what is wrong on the node.
        """

        async def fetch(endpoint: Endpoint) -> FetchedManifest:
            return await in_time(self._manifest(endpoint, tag_or_digest, expected), endpoint.url)

        usable = [each for each in self._endpoints if (each.pulls if expected is not None else each.resolves)]
        return await self._from_any(usable, fetch, f"manifest {tag_or_digest}")

    async def digest(self, tag: str) -> Digest | None:
        """What a tag means, without the manifest itself: registries count only its GETs against their limits.

        None if the host doesn't say. Raises as ``manifest`` does.
        """

        async def fetch(endpoint: Endpoint) -> Digest | None:
            headers = {"Accept": ", ".join(ACCEPTED)}
            async with self._open(endpoint, f"manifests/{tag}", headers, (200, 405), method="HEAD") as answer:
                said = answer.header("Docker-Content-Digest") if answer.status == 200 else ""
            return Digest(said) if _DIGEST.fullmatch(said) else None

        resolving = [endpoint for endpoint in self._endpoints if endpoint.resolves]
        return await self._from_any(
            resolving, lambda endpoint: in_time(fetch(endpoint), endpoint.url), f"manifest {tag}"
        )

    async def _manifest(self, endpoint: Endpoint, tag_or_digest: str, expected: Digest | None) -> FetchedManifest:
        headers = {"Accept": ", ".join(ACCEPTED)}
        async with self._open(endpoint, f"manifests/{tag_or_digest}", headers) as answer:
            content = await answer.body(MANIFEST_LIMIT)
            said = answer.header("Docker-Content-Digest")
            media_type = answer.header("Content-Type")
        digest = expected or Digest(said if said.startswith(("sha256:", "sha384:", "sha512:")) else "sha256:")
        algorithm = digest.partition(":")[0]
        found = Digest(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")
        if found != digest and (expected is not None or said):
            raise DataLoss(f"the manifest of {self._ref} from {origin(endpoint.url)} is {found}, not {digest}")
        return FetchedManifest(content, media_type, found)

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

        what = f"blob {descriptor.digest}"
        return await self._from_any(self._pulling(), lambda endpoint: in_time(fetch(endpoint), endpoint.url), what)

    async def blob(self, descriptor: Descriptor, sink: Sink) -> None:
        """The rest of a blob of any size into ``sink``; verified.

        After DataLoss what stands in the sink is of no use; after other errors another call goes on from there.
        """

        async def fetch(endpoint: Endpoint) -> None:
            resumed = 0 < sink.offset <= descriptor.size
            if not resumed:
                await sink.restart(descriptor.digest.partition(":")[0])
            received = await self._receive(endpoint, descriptor, sink)
            found = await self._digest(descriptor, sink)
            if resumed and found != descriptor.digest:
                # What was there is damaged, or the hosts disagree: nobody is to blame before a whole try.
                log.warning("a resumed blob is damaged and fetched again", digest=descriptor.digest)
                await sink.restart(descriptor.digest.partition(":")[0])
                received += await self._receive(endpoint, descriptor, sink)
                found = await self._digest(descriptor, sink)
            self._verify(descriptor, sink.offset, found, endpoint)
            host = origin(endpoint.url)
            log.info("blob fetched", digest=descriptor.digest, image=str(self._ref), host=host, bytes=received)

        await self._from_any(self._pulling(), fetch, f"blob {descriptor.digest}", lambda: sink.offset)

    async def _digest(self, descriptor: Descriptor, sink: Sink) -> str:
        return f"{descriptor.digest.partition(':')[0]}:{await sink.hexdigest()}"

    async def _receive(self, endpoint: Endpoint, descriptor: Descriptor, sink: Sink) -> int:
        """What the sink lacks, as far as the host has it; the number of bytes that came."""
        start, received = sink.offset, 0
        if start and start == descriptor.size:
            return 0
        headers = {"Range": f"bytes={start}-"} if start else {}
        welcome = (200, 206, 416) if start else (200,)
        async with self._open(endpoint, f"blobs/{descriptor.digest}", headers, welcome) as answer:
            goes_on = start == 0 or self._goes_on(answer, endpoint, descriptor, start)
            self._etags[endpoint.url, descriptor.digest] = answer.header("ETag")
            if not goes_on:
                await sink.restart(descriptor.digest.partition(":")[0])
            if goes_on or answer.status == 200:
                async with aclosing(answer.pieces()) as pieces:
                    async for piece in pieces:
                        received += len(piece)
                        telemetry.PULL_BYTES.inc(len(piece))
                        await sink.write(piece)
                        if sink.offset > descriptor.size:
                            break
                return received
        return await self._receive(endpoint, descriptor, sink)  # from the start, without Range

    def _goes_on(self, answer: Answer, endpoint: Endpoint, descriptor: Descriptor, start: int) -> bool:
        """Whether an answer is the rest of the blob from ``start``, and of the same as before (RFC 9110 §14)."""
        found = _CONTENT_RANGE.fullmatch(answer.header("Content-Range"))
        if answer.status != 206 or found is None:
            return False
        known, tag = self._etags.get((endpoint.url, descriptor.digest), ""), answer.header("ETag")
        whole = found[2] in {"*", str(descriptor.size)}
        return int(found[1]) == start and whole and (not known or not tag or known == tag)

    def _pulling(self) -> list[Endpoint]:
        return [endpoint for endpoint in self._endpoints if endpoint.pulls]

    def _verify(self, descriptor: Descriptor, size: int, found: str, endpoint: Endpoint) -> None:
        where = f"{descriptor.digest} of {self._ref} from {origin(endpoint.url)}"
        if size != descriptor.size:
            kind = "more" if size > descriptor.size else f"only {size}"
            raise DataLoss(f"{where} should have {descriptor.size} bytes and has {kind}")
        if found != descriptor.digest:
            raise DataLoss(f"{where} is {found}", hint="the registry or a proxy before it serves damaged content")

    # ---------------------------------------------------------------- of whom

    async def _from_any(
        self,
        endpoints: list[Endpoint],
        fetch: Callable[[Endpoint], Awaitable[_Fetched]],
        what: str,
        offset: Callable[[], int] = lambda: 0,
    ) -> _Fetched:
        """Ask one endpoint after the other, the one that served us last first; then again those that may recover."""
        if not endpoints:
            hint = "see the capabilities in hosts.toml, or pull-from-mirror in registries.conf"
            raise FailedPrecondition(f"no host may serve the {what} of {self._ref}", hint=hint)
        failures: dict[Endpoint, CriError] = {}
        asked, attempt, reached = endpoints, 1, offset()
        while True:
            for endpoint in asked:
                try:
                    fetched = await fetch(endpoint)
                except HOST_FAILURES as error:  # all else is the node's own, and no reason to pull from elsewhere
                    failures[endpoint] = error
                    telemetry.PULL_ATTEMPTS.inc()
                    continue
                self._served(endpoint, failures.values(), what)
                return fetched
            asked = [endpoint for endpoint in asked if _may_pass(failures[endpoint])]
            if offset() - reached >= PROGRESS_BYTES:
                attempt, reached = 0, offset()
            if not asked or attempt >= self._patience.attempts:
                raise _summary(list(failures.values()))
            await self._patience.rest(attempt, [failures[endpoint] for endpoint in asked])
            attempt += 1

    def _served(self, endpoint: Endpoint, failures: Collection[CriError], what: str) -> None:
        if failures:
            said = [str(error) for error in failures]
            log.warning("hosts passed over", wanted=what, image=str(self._ref), failures=said, host=endpoint.url)
            self._endpoints.sort(key=lambda each: each is not endpoint)  # stable: only that one moves

    @asynccontextmanager
    async def _open(
        self,
        endpoint: Endpoint,
        path: str,
        headers: Mapping[str, str],
        welcome: Collection[int] = (200,),
        *,
        method: str = "GET",
    ) -> AsyncIterator[Answer]:
        """A request with a ``welcome`` answer, logged in if need be; else the error that it means is raised."""
        namespace = f"?ns={quote(endpoint.namespace, safe='')}" if endpoint.namespace else ""
        url = f"{endpoint.url}/{endpoint.repository}/{path}{namespace}"
        request = Request(
            url=url,
            headers=headers,
            own_headers=endpoint.headers,
            method=method,
            trust=endpoint.trust,
            dial_timeout_s=endpoint.dial_timeout_s,
        )
        shown, refused = self._logins.known(endpoint, self._auth), set[str]()
        while True:
            async with self._transport.open(replace(request, authorization=shown)) as answer:
                if answer.status in welcome:
                    yield answer
                    return
                looping = shown in refused or len(refused) >= LOGINS_MAX - 1
                if answer.status != 401 or looping or origin(answer.url) != origin(url):
                    raise await self._refusal(answer, refused)
                challenges = wire.parse_challenges(", ".join(answer.headers("WWW-Authenticate")))
            refused.add(shown)
            shown = await self._logins.answer(endpoint, self._auth, challenges, shown)

    async def _refusal(self, answer: Answer, refused: Collection[str]) -> CriError:
        where, status = origin(answer.url), answer.status
        said = await _complaint(answer)
        if status == 404:
            return NotFound(f"{where} has no {self._ref}{said}", hint="check the name, the tag and the spelling")
        if status in {401, 403}:
            who = "these credentials" if any(refused) else "anonymous users"
            hint = "check the name and the image pull secret"
            return PermissionDenied(f"{where} denies {self._ref} to {who} ({status}{said})", hint=hint)
        if status == 429:
            wait = f" for {answer.retry_after_s:g} s" if answer.retry_after_s else ""
            hint = "wait, log in or use a mirror"
            return Passing(
                f"{where} limits pulls and takes no more now{wait} (429{said})", hint=hint, after_s=answer.retry_after_s
            )
        message = f"{where} answers {status} for {self._ref}{said}"
        if status in MAY_PASS:
            return Passing(message, hint="look at the registry's log", after_s=answer.retry_after_s)
        return Unavailable(message, hint="look at the registry's log")


class _ComplaintEntry(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Complaint(msgspec.Struct):
    errors: list[_ComplaintEntry] = []


async def _complaint(answer: Answer) -> str:
    """What the host itself says of an error (distribution-spec, Error Codes), as an appendix; "" if nothing usable."""
    try:
        async with asyncio.timeout(COMPLAINT_S):
            errors = msgspec.json.decode(await answer.body(COMPLAINT_LIMIT), type=_Complaint).errors
    except (CriError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    said = "; ".join(f"{each.code} {each.message}".strip() for each in errors[:3])[:200]
    return f": {said}" if said and said.isprintable() else ""


def _may_pass(error: CriError) -> TypeGuard[Passing]:
    return isinstance(error, Passing) and error.after_s <= RETRY_AFTER_MAX_S


def _summary(failures: Sequence[CriError]) -> CriError:
    """The failure that got furthest, with what the other hosts said: as containerd chooses (its resolver.go).

    What a host answered outdoes that it has nothing, and both outdo that it can't be reached.
    """
    if all(isinstance(error, Unreachable) for error in failures):
        return RegistryUnavailable("; ".join(error.message for error in failures), hint=failures[0].hint)
    last = max(
        failures, key=lambda error: 0 if isinstance(error, Unreachable) else 1 + (not isinstance(error, NotFound))
    )
    others = "; ".join(error.message for error in failures if error is not last)
    return type(last)(f"{last.message}; other hosts: {others}", hint=last.hint) if others else last
