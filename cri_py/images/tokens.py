"""Who we are to each host: its challenges answered with credentials, and the answers remembered while they are good."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import replace
from typing import Final, Generic, TypeVar

from cri_py.errors import PermissionDenied, Unavailable
from cri_py.images import auth as wire
from cri_py.images.endpoints import Endpoint
from cri_py.images.flights import Flights
from cri_py.images.transport import MAY_PASS, Passing, Request, Transport, in_time, origin
from cri_py.model import RegistryAuth

TOKEN_LIMIT: Final = 1 << 20
REMEMBERED: Final = 1024  # tokens, of all repositories and pull secrets together
EARLY: Final = 0.9  # of a token's lifetime: it must still be good when it arrives

_Key = TypeVar("_Key", bound=Hashable)
_TokenKey = tuple[str, str, str, wire.Credentials | None]  # realm, service, scope, credentials
_VisitKey = tuple[str, str, RegistryAuth | None]  # API root, repository, pull secret


class Expiring(Generic[_Key]):
    """Texts by key, each forgotten at its time; the least used first when there are too many."""

    def __init__(self, clock_s: Callable[[], float], limit: int = REMEMBERED) -> None:
        self._clock_s = clock_s
        self._limit = limit
        self._kept: OrderedDict[_Key, tuple[str, float]] = OrderedDict()

    def put(self, key: _Key, text: str, until_s: float) -> None:
        self._kept[key] = (text, until_s)
        self._kept.move_to_end(key)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def get(self, key: _Key) -> tuple[str, float]:
        """The text and until when it is good; ("", 0.0) if there is none."""
        text, until_s = self._kept.get(key, ("", 0.0))
        if until_s <= self._clock_s():
            self._kept.pop(key, None)
            return "", 0.0
        self._kept.move_to_end(key)
        return text, until_s

    def drop(self, key: _Key, text: str) -> None:
        """Forget ``key`` if it still has ``text``."""
        if self._kept.get(key, ("", 0.0))[0] == text:
            self._kept.pop(key, None)


class Logins:
    """Authorization headers by endpoint and pull secret. One token serves all who wait for it."""

    def __init__(
        self,
        transport: Transport,
        of_the_node: Callable[[Endpoint], Awaitable[wire.Credentials | None]],
        clock_s: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._of_the_node = of_the_node
        self._clock_s = clock_s
        self._tokens: Expiring[_TokenKey] = Expiring(clock_s)
        self._visits: Expiring[_VisitKey] = Expiring(clock_s)
        self._flights: Flights[_TokenKey, str] = Flights()

    def known(self, endpoint: Endpoint, auth: RegistryAuth | None) -> str:
        """What has opened ``endpoint`` before; "" to ask without."""
        return self._visits.get((endpoint.url, endpoint.repository, auth))[0]

    async def answer(
        self, endpoint: Endpoint, auth: RegistryAuth | None, challenges: tuple[wire.Challenge, ...], refused: str
    ) -> str:
        """The Authorization header that answers a 401 of ``endpoint``, which followed on ``refused``.

        Raises PermissionDenied if there are no credentials that fit or the realm refuses them, Unavailable.
        """
        visit = (endpoint.url, endpoint.repository, auth)
        self._visits.drop(visit, refused)
        by_scheme = {challenge.scheme: challenge for challenge in challenges}
        credentials = pull_secret(endpoint, auth) or await self._of_the_node(endpoint)
        if (bearer := by_scheme.get("bearer")) is not None:
            header, until_s = await self._bearer(endpoint, bearer, credentials, refused)
        elif "basic" in by_scheme:
            if credentials is None or not credentials.username:
                hint = "give the pod an image pull secret"
                raise PermissionDenied(
                    f"{origin(endpoint.url)} wants a user and password for {endpoint.image}", hint=hint
                )
            header, until_s = wire.basic_header(credentials), float("inf")
        else:
            said = ", ".join(by_scheme) or "none"
            raise Unavailable(
                f"{origin(endpoint.url)} answers 401 and takes no login that is known here; it offers: {said}"
            )
        self._visits.put(visit, header, until_s)
        return header

    async def _bearer(
        self, endpoint: Endpoint, challenge: wire.Challenge, credentials: wire.Credentials | None, refused: str
    ) -> tuple[str, float]:
        if credentials is not None and credentials.registry_token:
            return f"Bearer {credentials.registry_token}", float("inf")
        wanted = challenge.parameters
        scope = wanted.get("scope", f"repository:{endpoint.repository}:pull")
        key = (wanted.get("realm", ""), wanted.get("service", ""), scope, credentials)
        self._tokens.drop(key, refused)

        async def fetch() -> str:
            asked_s = self._clock_s()
            request = wire.token_request(challenge, credentials, scope, endpoint.url)
            token = await in_time(self._token(request, endpoint), request.url)
            header = f"Bearer {token.value}"
            self._tokens.put(key, header, asked_s + token.lifetime_s * EARLY)
            return header

        header, until_s = self._tokens.get(key)
        if not header:
            header = await self._flights.join(key, fetch)
            until_s = self._tokens.get(key)[1]
        return header, until_s

    async def _token(self, request: wire.TokenRequest, endpoint: Endpoint) -> wire.Token:
        near = origin(request.url) == origin(endpoint.url)
        sent = Request(
            url=request.url,
            headers={name: text for name, text in request.headers.items() if name != "Authorization"},
            authorization=request.headers.get("Authorization", ""),
            own_headers=endpoint.headers if near else (),
            method="GET" if request.form is None else "POST",
            form=request.form,
            trust=endpoint.trust if near else replace(endpoint.trust, clients=()),
            dial_timeout_s=endpoint.dial_timeout_s,
        )
        async with self._transport.open(sent) as answer:
            where, status = origin(answer.url), answer.status
            if status == 200:
                return wire.token_from(await answer.body(TOKEN_LIMIT), where)
            if status in {400, 401, 403}:
                raise PermissionDenied(
                    f"the token server {where} refuses the credentials for {endpoint.image} ({status})",
                    hint="check the image pull secret",
                )
            said = f"the token server {where} answers {status} for {endpoint.image}"
            if status in MAY_PASS:
                raise Passing(said, hint="try again later", after_s=answer.retry_after_s)
            raise Unavailable(said, hint="is that realm a token server?")


def pull_secret(endpoint: Endpoint, auth: RegistryAuth | None) -> wire.Credentials | None:
    """What ``endpoint`` may see of the credentials that came with the request.

    They are for the registry that the ref names; a mirror gets them only if their ``server_address`` names it.
    """
    if auth is None:
        return None
    if endpoint.own and (found := wire.credentials_for(auth, endpoint.registry)) is not None:
        return found
    return wire.credentials_for(auth, endpoint.host) if auth.server_address or endpoint.own else None
