"""Where a repository can be had: values, and the routes that a ref takes by each family of configuration."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from cri_py.config import RegistryConfig
from cri_py.images.reference import ImageRef

HUB: Final = "docker.io"
_HUB_SERVER: Final = "registry-1.docker.io"
DIAL_TIMEOUT_S: Final = 30.0  # containerd's


@dataclass(frozen=True, slots=True)
class Trust:
    """How a host proves who it is, and we to it: files in PEM, beside the system's roots."""

    ca: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()  # certificate and key; the key "" where it is in the same file
    skip_verify: bool = False


SYSTEM_TRUST: Final = Trust()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API root that serves the repository, what it may be asked, and how it is approached."""

    url: str  # the root: https://mirror.example/v2
    repository: str  # the path below it: library/busybox
    registry: str  # the host that the ref names
    own: bool  # whether this is that registry itself, which a pull secret is for, and no mirror
    namespace: str = ""  # the registry that a mirror shall answer for: ?ns=
    resolves: bool = True  # may say what a tag means
    pulls: bool = True  # may serve content by digest
    trust: Trust = SYSTEM_TRUST
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold secrets
    dial_timeout_s: float = DIAL_TIMEOUT_S

    @property
    def host(self) -> str:
        """With the port if any."""
        return urlsplit(self.url).netloc.rpartition("@")[2].lower()

    @property
    def name(self) -> str:
        """The host as refs and directories name it: Docker Hub's server is docker.io."""
        return HUB if self.host == _HUB_SERVER else self.host

    @property
    def image(self) -> str:
        """What is pulled, for messages: as the ref names it unless a mirror has it elsewhere."""
        return f"{self.registry}/{self.repository}"

    @property
    def secured(self) -> bool:
        return self.url.startswith("https://")


def api_root(url: str) -> str:
    """``https://mirror.example`` → ``https://mirror.example/v2``; one that ends in /v2 stays."""
    trimmed = url.rstrip("/")
    return trimmed if trimmed.endswith("/v2") else f"{trimmed}/v2"


def is_loopback(host: str) -> bool:
    """Whether a host (with or without port) is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def server_of(host: str) -> str:
    """The URL of a registry that nothing is configured for.

    This machine speaks plain HTTP, but on the port of HTTPS or where none is named (containerd's rule).
    """
    if host == HUB:
        return f"https://{_HUB_SERVER}"
    port = urlsplit(f"//{host}").port
    plain = is_loopback(host) and port not in {None, 443}
    return f"{'http' if plain else 'https'}://{host}"


def by_default(ref: ImageRef, certificates: Trust) -> list[Endpoint]:
    """The ref's host, and no other. If it has ``certificates`` it speaks TLS, even if it is on this machine."""
    server = server_of(ref.host)
    if certificates != SYSTEM_TRUST:
        server = f"https://{server.partition('://')[2]}"
    return [Endpoint(api_root(server), ref.path, ref.host, own=True, trust=certificates)]


def by_our_config(ref: ImageRef, config: RegistryConfig) -> list[Endpoint]:
    """The mirrors of ``[images.registries]`` in order, then the host itself."""
    found = [Endpoint(api_root(mirror), ref.path, ref.host, own=False) for mirror in config.mirrors]
    server = server_of(ref.host)
    if config.insecure:
        server = f"http://{server.partition('://')[2]}"
    return [*found, Endpoint(api_root(server), ref.path, ref.host, own=True)]
