"""Image refs as people write them, normalised as Docker does: ``busybox`` is ``docker.io/library/busybox:latest``.

Grammar: https://github.com/distribution/reference (reference.go). Pure: text in, values out.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from cri_py.errors import InvalidArgument
from cri_py.model import Digest

DEFAULT_HOST: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
NAME_LIMIT: Final = 255

_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = re.compile(
    rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[(?P<address>[a-fA-F0-9:]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
)
_PATH_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_PATH_COMPONENT}(?:/{_PATH_COMPONENT})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX: Final = re.compile(r"[a-f0-9]+")


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A normalised image ref. At least one of ``tag`` and ``digest`` is set."""

    host: str  # as the ref names it, with the port if any: docker.io, localhost:5000, [::1]:5000
    path: str  # library/busybox
    tag: str = ""
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """Host and path: what tags and digests hang on."""
        return f"{self.host}/{self.path}"

    @property
    def tagged(self) -> str:
        """``host/path:tag``, or "" where there is no tag or where a digest outdoes it."""
        return f"{self.name}:{self.tag}" if self.tag and self.digest is None else ""

    def at(self, digest: Digest) -> str:
        """``host/path@digest``."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        text = f"{self.name}:{self.tag}" if self.tag else self.name
        return f"{text}@{self.digest}" if self.digest is not None else text


def parse_ref(text: str) -> ImageRef:
    """Parse and normalise; a missing tag becomes ``latest`` unless a digest is given.

    Raises InvalidArgument that quotes the text and says what is wrong with it.
    """
    rest, at, digest_text = text.partition("@")
    digest = _checked_digest(digest_text, text) if at else None
    slash = rest.rfind("/")
    colon = rest.find(":", slash + 1)
    # A lone host:port can't be told from name:tag, and Docker takes it for the latter.
    name, tag = (rest[:colon], rest[colon + 1 :]) if colon >= 0 else (rest, "")
    if colon >= 0 and _TAG.fullmatch(tag) is None:
        raise _wrong(text, f"the tag {tag!r} may hold letters, digits, _, . and -, at most 128")
    host, path = _split_host(name)
    if not names_a_host(host):
        raise _wrong(text, f"{host!r} is no host name")
    if _PATH.fullmatch(path) is None:
        raise _wrong(text, f"the path {path!r} must be lower-case letters, digits and separators")
    if len(host) + 1 + len(path) > NAME_LIMIT:
        raise _wrong(text[:64] + "…", f"the name is longer than {NAME_LIMIT} characters")
    if host == DEFAULT_HOST and len(name) == 64 and _HEX.fullmatch(name) is not None:
        raise _wrong(text, "64 hex digits are an image id, not a ref")
    return ImageRef(host, path, tag if tag or digest is not None else DEFAULT_TAG, digest)


def parse_digest(text: str) -> Digest:
    """``sha256:…``, ``sha384:…`` or ``sha512:…`` with lower-case hex of the right length; else InvalidArgument."""
    return _checked_digest(text, text)


def short_name(text: str) -> str:
    """The path of a ref that names no host, without its tag and digest; "" if it names one.

    ``app:1`` → ``app``: that it is on docker.io is only Docker's convention.
    """
    rest = text.partition("@")[0]
    first, slash, _ = rest.partition("/")
    if slash and _is_host(first):
        return ""
    colon = rest.find(":", rest.rfind("/") + 1)
    return rest if colon < 0 else rest[:colon]


def _is_host(first: str) -> bool:
    """Whether what stands before the first slash is a host and no part of the path."""
    return "." in first or ":" in first or first == "localhost" or first != first.lower()


def names_a_host(host: str) -> bool:
    """Whether ``host`` is a name or address, with a port or without, as refs may have it."""
    found = _HOST.fullmatch(host)
    if found is None or int(found["port"] or 0) > 65535:
        return False
    if found["address"] is not None:
        try:
            ipaddress.IPv6Address(found["address"])
        except ValueError:
            return False
    return True


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    host, path = (first, rest) if slash and _is_host(first) else (DEFAULT_HOST, name)
    if host == "index.docker.io":
        host = DEFAULT_HOST
    if host == DEFAULT_HOST and path and "/" not in path:
        path = f"library/{path}"
    return host, path


def _checked_digest(digest: str, whole: str) -> Digest:
    algorithm, _, hexadecimal = digest.partition(":")
    length = _HEX_LENGTHS.get(algorithm)
    if length is None:
        raise _wrong(whole, f"the digest {digest[:80]!r} must start with {', '.join(f'{a}:' for a in _HEX_LENGTHS)}")
    if len(hexadecimal) != length or _HEX.fullmatch(hexadecimal) is None:
        raise _wrong(whole, f"a {algorithm} digest has {length} lower-case hex digits")
    return Digest(digest)


def _wrong(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{text!r} is no image ref: {why}", hint="write [HOST[:PORT]/]PATH[:TAG][@sha256:DIGEST]")
