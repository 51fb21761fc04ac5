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

from cri_py.errors import ConfigError, InvalidArgument, PermissionDenied, Unavailable
from cri_py.model import RegistryAuth

CLIENT_ID: Final = "cri_py"
HUB_KEY: Final = "https://index.docker.io/v1/"  # what Docker calls its Hub in config files
TOKEN_LIFETIME_S: Final = 60.0  # where a realm doesn't say, and at least (the token specification)
_KEYCHAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")

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


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and for how long it is good, in seconds from when it was asked for."""

    value: str = field(repr=False)
    lifetime_s: float


@dataclass(frozen=True, slots=True)
class AuthFile:
    """What an auth.json or Docker config.json says. Keys are hosts or HOST/PATH, in lower case."""

    credentials: Mapping[str, Credentials]
    keychains: Mapping[str, str]  # NAME of docker-credential-NAME, by host
    store: str  # the NAME that is asked for all other hosts


class _TokenAnswer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class _AuthEntry(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _AuthDocument(msgspec.Struct, rename={"keychains": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _AuthEntry] | None = None
    keychains: dict[str, str] | None = None
    store: str = ""


class _KeychainAnswer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


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
    return _credentials(auth.username, auth.password, auth.auth, auth.identity_token, auth.registry_token)


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
    try:
        target = urlsplit(realm)
        valid = target.scheme in {"http", "https"} and target.hostname and target.port != 0
    except ValueError:
        valid = None
    if not valid or not (realm.isascii() and realm.isprintable()) or " " in realm:
        raise Unavailable(f"{registry_url} asks for a token from {realm!r}, which is no http(s) URL")
    if credentials is not None and target.scheme == "http" and urlsplit(registry_url).scheme == "https":
        raise PermissionDenied(f"{registry_url} wants its credentials sent in plain text to {realm}")
    service, scopes = challenge.parameters.get("service", ""), challenge.parameters.get("scope", scope)
    if credentials is not None and credentials.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": CLIENT_ID}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        form |= {key: text for key, text in (("service", service), ("scope", scopes)) if text}
        return TokenRequest(realm, headers, urlencode(form).encode("ascii"))
    # A GET has a parameter for each scope, where the POST of OAuth (RFC 6749 §3.3) has spaces between them.
    query = [*([("service", service)] if service else []), *(("scope", each) for each in scopes.split())]
    url = f"{realm}{'&' if target.query else '?'}{urlencode(query)}" if query else realm
    if credentials is not None and credentials.username:
        return TokenRequest(url, {"Authorization": basic_header(credentials)})
    return TokenRequest(url)


def token_from(body: bytes, url: str) -> Token:
    """The token in a realm's answer, whichever of its two names it bears; Unavailable if there is none."""
    try:
        answer = msgspec.json.decode(body, type=_TokenAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"the token server {url} sent no JSON with a token") from error
    token = answer.token or answer.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise Unavailable(f"the token server {url} sent no usable token")
    return Token(token, max(answer.expires_in or 0.0, TOKEN_LIFETIME_S))


# ------------------------------------------------------------------ auth files


def parse_auth_file(content: bytes, file: str) -> AuthFile:
    """auth.json (containers-auth.json(5)) and Docker's config.json, which are alike.

    Entries without a secret (Docker leaves them beside a store) count for nothing. Raises ConfigError that names the
    file and, where it is no JSON, the line; never what it holds.
    """
    try:
        document = msgspec.json.decode(content, type=_AuthDocument)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}", hint="it is laid out like auth.json or Docker's config.json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        found = re.search(r"\(byte (\d+)\)", str(error))
        line = content.count(b"\n", 0, int(found[1]) if found else len(content)) + 1
        raise ConfigError(f"{file}:{line}: not JSON") from error
    credentials = {}
    for key, entry in (document.auths or {}).items():
        try:
            read = _credentials(entry.username, entry.password, entry.auth, entry.identitytoken, entry.registrytoken)
        except InvalidArgument as error:
            raise ConfigError(f"{file}: auths.{key}: {error.message}", hint=error.hint) from error
        if read is not None:
            credentials[auth_key(key)] = read
    keychains = {auth_key(host): name for host, name in (document.keychains or {}).items()}
    for name in filter(None, (*keychains.values(), document.store)):
        if not _KEYCHAIN_NAME.fullmatch(name):
            raise ConfigError(f"{file}: {name!r} is no credential helper", hint="NAME of docker-credential-NAME")
    return AuthFile(credentials, keychains, document.store)


def auth_key(name: str) -> str:
    """A key of an auth file as it is compared: without scheme and API version; Docker Hub under one name."""
    scheme, mark, rest = name.partition("://")
    # What begins with a scheme is Docker's, and means a host; the path of others is a repository.
    host, slash, path = (rest if mark else scheme).strip("/").partition("/")
    host = _alias(host)
    return f"{host}/{path}" if slash and not mark and path not in {"v1", "v2"} else host


def auth_keys(host: str, repository: str) -> tuple[str, ...]:
    """The keys under which credentials for a repository may stand, the most specific first."""
    parts = repository.split("/")
    return (*(f"{_alias(host)}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)), _alias(host))


def parse_keychain_answer(content: bytes, program: str) -> Credentials | None:
    """What a credential helper's ``get`` printed (https://github.com/docker/docker-credential-helpers).

    Raises Unavailable that doesn't show it.
    """
    try:
        answer = msgspec.json.decode(content, type=_KeychainAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unavailable(f"{program} printed no JSON with Username and Secret") from None
    if not answer.secret:
        return None
    if answer.username == "<token>":
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret)


def _credentials(username: str, password: str, auth: str, identity: str, registry: str) -> Credentials | None:
    if not username and auth:
        username, password = _decoded(auth)
    found = Credentials(username, password, identity, registry)
    return None if found == Credentials() else found


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
