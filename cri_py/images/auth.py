"""Who we are to a registry: challenges, token requests and credentials as values.

RFC 9110 §11 (WWW-Authenticate), distribution-spec token authentication
(https://distribution.github.io/distribution/spec/auth/token/). Pure: the requests are sent by ``registry``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode, urlsplit

import msgspec

from cri_py.errors import InvalidArgument, PermissionDenied, Unavailable
from cri_py.model import RegistryAuth

CLIENT_ID: Final = "cri_py"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 (a grammar, not a secret)
_SCHEME: Final = re.compile(rf"[\s,]*({_TOKEN})(?=\s|,|$)")
_PARAMETER: Final = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}|[^\s,"]+))')
_TOKEN68: Final = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way in that a 401 offers: ``scheme`` in lower case, parameters with lower-case names."""

    scheme: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a registry host may be shown. Never printed."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """The request that turns credentials into a bearer token; a POST if ``form`` is set, else a GET."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    form: bytes | None = field(default=None, repr=False)


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """All challenges of a WWW-Authenticate header, in order; what can't be read is left out."""
    challenges: list[Challenge] = []
    position = 0
    while (scheme := _SCHEME.match(header, position)) is not None:
        position = scheme.end()
        parameters: dict[str, str] = {}
        while (parameter := _PARAMETER.match(header, position)) is not None:
            quoted, plain = parameter.group(2), parameter.group(3)
            parameters[parameter.group(1).lower()] = re.sub(r"\\(.)", r"\1", quoted) if plain is None else plain
            position = parameter.end()
        if not parameters and (token68 := _TOKEN68.match(header, position)) is not None:
            position = token68.end()
        challenges.append(Challenge(scheme.group(1).lower(), parameters))
    return tuple(challenges)


def credentials_for(auth: RegistryAuth | None, host: str) -> Credentials | None:
    """The part of CRI's AuthConfig that ``host`` (with its port) may see; None: go there as nobody.

    ``server_address``, where given, names the only host that the credentials are for.
    Raises InvalidArgument if ``auth`` holds no base64 of ``username:password``.
    """
    if auth is None or (auth.server_address and _server_host(auth.server_address) != _alias(host)):
        return None
    username, password = auth.username, auth.password
    if not username and auth.auth:
        username, password = _decoded(auth.auth)
    found = Credentials(username, password, auth.identity_token, auth.registry_token)
    return None if found == Credentials() else found


def basic_header(credentials: Credentials) -> str:
    """The Authorization value of RFC 7617."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode('ascii')}"


def token_request(challenge: Challenge, credentials: Credentials | None, scope: str, registry_url: str) -> TokenRequest:
    """How to ask the realm of a Bearer ``challenge`` for a token.

    ``scope`` is used where the challenge names none; ``registry_url`` is where the challenge came from. Raises
    Unavailable if the realm is no URL, PermissionDenied if it would carry credentials from TLS into plain text.
    """
    realm = challenge.parameters.get("realm", "")
    target = urlsplit(realm)
    if target.scheme not in {"http", "https"} or not target.hostname:
        raise Unavailable(f"{registry_url} asks for a token from {realm!r}, which is no http(s) URL")
    if credentials is not None and target.scheme == "http" and urlsplit(registry_url).scheme == "https":
        raise PermissionDenied(f"{registry_url} wants its credentials sent in plain text to {realm}")
    query = {"service": challenge.parameters.get("service", ""), "scope": challenge.parameters.get("scope", scope)}
    query = {key: text for key, text in query.items() if text}
    if credentials is not None and credentials.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": CLIENT_ID}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest(realm, headers, urlencode(form | query).encode("ascii"))
    url = f"{realm}{'&' if target.query else '?'}{urlencode(query)}" if query else realm
    if credentials is not None and credentials.username:
        return TokenRequest(url, {"Authorization": basic_header(credentials)})
    return TokenRequest(url)


def token_from(body: bytes, url: str) -> str:
    """The token in a realm's answer, whichever of its two names it bears; Unavailable if there is none."""
    try:
        answer = msgspec.json.decode(body, type=_TokenAnswer)
    except msgspec.DecodeError as error:
        raise Unavailable(f"the token server {url} sent no JSON with a token") from error
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise Unavailable(f"the token server {url} sent no usable token")
    return token


def _decoded(auth: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("AuthConfig.auth is no base64", hint="it holds base64 of USERNAME:PASSWORD") from error
    username, colon, password = text.partition(":")
    if not colon:
        raise InvalidArgument("AuthConfig.auth holds no colon", hint="it holds base64 of USERNAME:PASSWORD")
    return username, password.rstrip("\0")


def _server_host(address: str) -> str:
    parts = urlsplit(address if "://" in address else f"//{address}")
    return _alias(parts.netloc.rpartition("@")[2])


def _alias(host: str) -> str:
    """Docker Hub goes by several names, and credentials for one are for all."""
    return "docker.io" if host in {"index.docker.io", "registry-1.docker.io", "docker.io"} else host.lower()
