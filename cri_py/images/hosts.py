"""containerd's ``certs.d``: how hosts are reached, by ``HOST/hosts.toml``, or which certificates they have.

https://github.com/containerd/containerd/blob/main/docs/hosts.md. A directory without hosts.toml is read as Docker does
(https://docs.docker.com/engine/security/certificates/): ``*.crt`` are authorities, ``*.cert`` with ``*.key`` is us.
Beyond containerd: a hosts.toml that can't be read is an error, where that would go on as if there were none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from cri_py.errors import ConfigError
from cri_py.images.endpoints import DIAL_TIMEOUT_S, HUB, SYSTEM_TRUST, Endpoint, Trust, server_of
from cri_py.images.reference import ImageRef
from cri_py.images.tables import Fresh, Table, duration_s, parse_toml

FILE: Final = "hosts.toml"
DEFAULT: Final = "_default"

_OF_A_HOST: Final = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
)
_OF_THE_FILE: Final = _OF_A_HOST | {"server", "host"}
_CAPABILITIES: Final = ("pull", "resolve", "push")


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a hosts.toml; ``url`` is the API root, or "" for the ref's registry itself."""

    url: str
    resolves: bool
    pulls: bool
    trust: Trust
    headers: tuple[tuple[str, str], ...]
    dial_timeout_s: float


@dataclass(frozen=True, slots=True)
class HostsFile:
    """The hosts of a file in the order in which they are asked, the server last; where it stands; what it misspells."""

    file: str
    hosts: tuple[Host, ...]
    unknown: tuple[str, ...]


def parse_hosts(content: bytes, file: str) -> HostsFile:
    """Parse a hosts.toml; relative certificates lie beside it. Raises ConfigError that names file and line."""
    top = parse_toml(content, file)
    tables = list(top.tables("host"))
    hosts = [_host(table, url, "host") for url, table in tables]
    hosts.append(_host(top, top.string("server"), "server"))
    unknown = [*top.unknown(_OF_THE_FILE), *(line for _, table in tables for line in table.unknown(_OF_A_HOST))]
    return HostsFile(file, tuple(hosts), tuple(unknown))


def _host(table: Table, url: str, key: str) -> Host:
    capabilities = [word.lower() for word in table.strings("capabilities")] or list(_CAPABILITIES)
    if not set(capabilities) <= set(_CAPABILITIES):
        raise table.wrong("capabilities", f"some of {', '.join(_CAPABILITIES)}")
    directory, override_path = os.path.dirname(table.file), table.boolean("override_path")
    trust = Trust(_authorities(table, directory), _clients(table, directory), table.boolean("skip_verify"))
    return Host(
        url=_root(table, url, key, override_path) if url else "",
        resolves="resolve" in capabilities,
        pulls="pull" in capabilities,
        trust=trust,
        headers=_headers(table.table("header")),
        dial_timeout_s=_dial_timeout(table),
    )


def _root(table: Table, url: str, key: str, override_path: bool) -> str:
    """The API root that a host's URL means."""
    where = table.place("server") if key == "server" else table.place()
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        valid = parts.scheme in {"http", "https"} and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = None
    if not valid or not (url.isascii() and url.isprintable()) or " " in url or parts.query or parts.fragment:
        raise ConfigError(f"{where}: {key} {url!r} is no URL of a host", hint="write https://HOST[:PORT][/PATH]")
    path = parts.path.rstrip("/")
    if not override_path and not path.endswith("/v2"):
        path += "/v2"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _authorities(table: Table, directory: str) -> tuple[str, ...]:
    value = table.values.get("ca", [])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise table.wrong("ca", "a file or an array of files")
    return tuple(os.path.join(directory, name) for name in names)


def _clients(table: Table, directory: str) -> tuple[tuple[str, str], ...]:
    """A file with both, an array of such, or an array of pairs of certificate and key."""
    value = table.values.get("client", [])
    listed = [value] if isinstance(value, str) else value
    pairs = []
    for each in listed if isinstance(listed, list) else [None]:
        names = [each] if isinstance(each, str) else each
        if not isinstance(names, list) or len(names) not in {1, 2} or not all(isinstance(name, str) for name in names):
            raise table.wrong("client", 'a file, an array of files, or an array of ["CERTIFICATE", "KEY"]')
        certificate, key = os.path.join(directory, names[0]), names[1] if len(names) == 2 else ""
        pairs.append((certificate, os.path.join(directory, key) if key else ""))
    return tuple(pairs)


def _headers(table: Table) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in table.values.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise table.wrong(name, "a string or an array of strings")
        whole = ", ".join(texts)
        if not name or not f"{name}{whole}".isprintable() or any(sign in name for sign in " :\t"):
            raise table.wrong(name, "what may stand in a header")
        found.append((name, whole))
    return tuple(found)


def _dial_timeout(table: Table) -> float:
    text = table.string("dial_timeout")
    seconds = duration_s(text) if text else DIAL_TIMEOUT_S
    if seconds is None or seconds <= 0:
        raise table.wrong("dial_timeout", 'a duration such as "10s"')
    return seconds


# ------------------------------------------------------------------ certs.d


class CertsDirectories:
    """Directories such as /etc/containerd/certs.d, the first that knows a host first."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = tuple(roots)
        self._files = Fresh(parse_hosts)

    def hosts_file(self, host: str) -> HostsFile | None:
        """The hosts.toml of ``host`` itself. Raises ConfigError if it is broken."""
        for directory in self._directories(host):
            found = self._read(directory)
            if found is not None:
                return found
        return None

    def default_file(self) -> HostsFile | None:
        """The hosts.toml of all hosts that have none of their own."""
        for root in self._roots:
            found = self._read(os.path.join(root, DEFAULT))
            if found is not None:
                return found
        return None

    def certificates(self, host: str) -> Trust:
        """What lies in the directory of ``host``, or of all hosts, in Docker's manner. Raises ConfigError."""
        for directory in [*self._directories(host), *(os.path.join(root, DEFAULT) for root in self._roots)]:
            try:
                names = sorted(os.listdir(directory))
                # An empty hosts.toml is as good as none, also for containerd.
                routed = FILE in names and os.path.getsize(os.path.join(directory, FILE)) > 0
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ConfigError(f"{directory} can't be read: {error.strerror}") from error
            return SYSTEM_TRUST if routed else _docker_style(directory, names)
        return SYSTEM_TRUST

    def _read(self, directory: str) -> HostsFile | None:
        return self._files.get(os.path.join(directory, FILE))

    def _directories(self, host: str) -> list[str]:
        """In every root: with the port as containerd writes it on all systems, then as it is."""
        name, colon, port = host.rpartition(":")
        with_port = f"{name}_{port}_" if colon and port.isdecimal() else host
        return [os.path.join(root, each) for root in self._roots for each in dict.fromkeys((with_port, host))]


def _docker_style(directory: str, names: Sequence[str]) -> Trust:
    there = set(names)
    clients = []
    for name in names:
        stem, suffix = os.path.splitext(name)
        other = {".cert": ".key", ".key": ".cert"}.get(suffix)
        if other is not None and stem + other not in there:
            path = os.path.join(directory, name)
            raise ConfigError(f"{path} has no {stem}{other} beside it", hint="a client has a certificate and a key")
        if suffix == ".cert":
            clients.append((os.path.join(directory, name), os.path.join(directory, f"{stem}.key")))
    return Trust(tuple(os.path.join(directory, name) for name in names if name.endswith(".crt")), tuple(clients))


def by_hosts_file(ref: ImageRef, found: HostsFile) -> list[Endpoint]:
    """The endpoints of ``ref`` by a hosts.toml, in its order."""
    endpoints = []
    for index, host in enumerate(found.hosts):
        url = host.url or f"{server_of(ref.host)}/v2"
        netloc = urlsplit(url).netloc
        same = netloc in {ref.host, urlsplit(server_of(ref.host)).netloc if ref.host == HUB else ref.host}
        endpoint = Endpoint(
            url=url,
            repository=ref.path,
            registry=ref.host,
            own=same or index == len(found.hosts) - 1,
            namespace="" if same else ref.host,
            resolves=host.resolves,
            pulls=host.pulls,
            trust=host.trust,
            headers=host.headers,
            dial_timeout_s=host.dial_timeout_s,
        )
        endpoints.append(endpoint)
    return endpoints
