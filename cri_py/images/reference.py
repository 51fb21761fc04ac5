"""Image refs as people write them, normalised as Docker does: ``busybox`` is ``docker.io/library/busybox:latest``.

Grammar: https://github.com/distribution/reference (reference.go). Pure: text in, values out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cri_py.errors import InvalidArgument
from cri_py.model import Digest

DEFAULT_HOST: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
NAME_LIMIT: Final = 255

_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
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
    if _HOST.fullmatch(host) is None:
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


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    host, path = (first, rest) if is_host else (DEFAULT_HOST, name)
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
