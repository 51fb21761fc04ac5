"""Layers and images as values: reproducible bytes, so that an image that was pushed before is recognised."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Packed:
    """A finished layer: the compressed blob and the digest of what it holds uncompressed."""

    blob: bytes
    diff_id: str


class Layer:
    """A layer under construction; parent directories are added where they are missing, times are zero."""

    def __init__(self) -> None:
        self._raw = io.BytesIO()
        self._archive = tarfile.open(fileobj=self._raw, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._directories: set[str] = set()

    def directory(self, name: str, mode: int = 0o755) -> None:
        self._directories.add(name.strip("/"))
        self._add(name, tarfile.DIRTYPE, mode)

    def file(self, name: str, content: bytes | str, mode: int = 0o644) -> None:
        content = content.encode() if isinstance(content, str) else content
        self._add(name, tarfile.REGTYPE, mode, content)

    def symlink(self, name: str, target: str) -> None:
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def hard_link(self, name: str, target: str) -> None:
        self._add(name, tarfile.LNKTYPE, 0o755, target=target.strip("/"))

    def _add(self, name: str, kind: bytes, mode: int, content: bytes = b"", target: str = "") -> None:
        name = name.strip("/")
        parent = name.rpartition("/")[0]
        if parent and parent not in self._directories:
            self.directory(parent)
        header = tarfile.TarInfo(name)
        header.type, header.mode, header.linkname, header.size = kind, mode, target, len(content)
        self._archive.addfile(header, io.BytesIO(content))

    def pack(self) -> Packed:
        self._archive.close()
        raw = self._raw.getvalue()
        return Packed(gzip.compress(raw, 6, mtime=0), digest_of(raw))


@dataclass(frozen=True, slots=True)
class Image:
    """``names`` are REPOSITORY:TAG without a host; ``config`` is the ``config`` member of the image's config."""

    names: Sequence[str]
    layers: Sequence[Layer]
    config: Mapping[str, Any] = field(default_factory=dict)
