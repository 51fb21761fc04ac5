"""Images in a file: OCI layouts, alone or as a tar, and what ``docker save`` writes.

An archive is a plain tar on the disk, so that every blob can be read from where it stands. Nothing is unpacked from it
by name: members are looked up, links only among members, and what a blob holds is compared with its digest when it is
taken (image-spec image-layout.md; moby, image/tarexport).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, NamedTuple, TypeVar

import msgspec

from cri_py.errors import DataLoss, InvalidArgument
from cri_py.images.compression import Source
from cri_py.images.manifest import (
    CONFIG_LIMIT,
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    MANIFEST_LIMIT,
    OCI_INDEX,
    Descriptor,
    Index,
    parse_manifest,
)
from cri_py.images.resolving import LAYERS_MAX
from cri_py.images.tarstream import Entry, Inflow, Kind, entries
from cri_py.model import Digest

NAME: Final = "org.opencontainers.image.ref.name"
FULL_NAME: Final = "io.containerd.image.name"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_PIECE: Final = 1 << 20
_MEMBERS_MOST: Final = 100_000
_NAMES_MOST: Final = 16 << 20  # bytes of all members' names and links together
_MADE_MOST: Final = 16 << 20  # bytes of the manifests that are made for docker's form
_LINKS_MOST: Final = 8
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Archived:
    """One image of an archive: the names that it brings, and its manifest or index."""

    names: tuple[str, ...]
    digest: Digest
    media_type: str


class _EntryJson(msgspec.Struct):
    annotations: dict[str, str] | None = None


class _IndexJson(msgspec.Struct):
    manifests: list[_EntryJson]


class _SavedJson(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Member(NamedTuple):
    """Where a file's bytes are, or what a link names."""

    kind: Kind
    link: str
    start: int
    size: int


class Archive:
    """The images of the plain tar ``file``, which must stay open. Raises InvalidArgument for what is no archive."""

    def __init__(self, file: BinaryIO, subject: str) -> None:
        self._file = file
        self._subject = subject
        self._members = self._index()
        self._made: dict[Digest, bytes] = {}  # manifests that docker's form does not have
        self._aliases: dict[Digest, str] = {}  # layers and configs of docker's form, by where they are
        self._hashed: dict[_Member, tuple[Digest, int]] = {}
        if "index.json" in self._members:
            self.images = tuple(self._oci(self._document("index.json")))
        elif "manifest.json" in self._members:
            self.images = tuple(self._docker(self._document("manifest.json")))
        else:
            lacking = "has neither index.json nor manifest.json" if self._members else "is empty"
            raise InvalidArgument(
                f"{subject} is no archive of images: it {lacking}",
                hint="give an OCI layout, its tar, or what docker save writes",
            )

    # ----------------------------------------------------------------- contents

    def blob(self, digest: Digest) -> Source:
        """A blob, not verified. Raises DataLoss if the archive lacks it."""
        algorithm, _, hexadecimal = digest.partition(":")
        return self._open(self._aliases.get(digest, f"blobs/{algorithm}/{hexadecimal}"))

    def document(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified. Raises DataLoss."""
        if digest in self._made:
            return self._made[digest]
        content = self.blob(digest).read(limit + 1)
        algorithm, _, expected = digest.partition(":")
        if len(content) > limit or hashlib.new(algorithm, content).hexdigest() != expected:
            raise DataLoss(f"{digest} in {self._subject} is damaged, or longer than {limit} bytes")
        return content

    # ------------------------------------------------------------------ members

    def _index(self) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        inflow, names_size = _Headers(self._file, self._subject), 0
        for number, entry in enumerate(entries(inflow, self._subject)):
            names_size += len(entry.path) + len(entry.link)
            if number >= _MEMBERS_MOST or names_size > _NAMES_MOST:
                raise InvalidArgument(f"{self._subject} has too many members, or too long names, for images")
            written = os.fsdecode(entry.path)
            name = _plain(written)
            if not name:
                raise DataLoss(f"{self._subject} holds {written}, which leads out of it", hint="don't trust it")
            member = self._member(entry, inflow.position)
            before = members.setdefault(name, member)
            if before is not member and {before.kind, member.kind} != {Kind.DIRECTORY}:
                # readers differ in which of them they take
                raise DataLoss(f"{self._subject} holds {name} twice", hint="don't trust it")
            inflow.skip(entry.stored)
        return members

    def _member(self, entry: Entry, start: int) -> _Member:
        if entry.extents is not None:
            hint = "make it without --sparse"
            raise DataLoss(f"{self._subject} holds {os.fsdecode(entry.path)} with its holes left out", hint=hint)
        return _Member(entry.kind, os.fsdecode(entry.link), start, entry.stored)

    def _find(self, name: str) -> _Member:
        """The file that ``name`` means, by way of links among members. Raises DataLoss."""
        wanted = _plain(name)
        for _ in range(_LINKS_MOST):
            member = self._members.get(wanted)
            if member is None:
                break
            if member.kind is Kind.FILE:
                return member
            if member.kind is Kind.SYMLINK:
                wanted = _plain(posixpath.join(posixpath.dirname(wanted), member.link))
            elif member.kind is Kind.HARD_LINK:
                wanted = _plain(member.link)
            else:
                break
        raise DataLoss(f"{self._subject} has no file {name}", hint="was it cut short?")

    def _open(self, name: str) -> Source:
        member = self._find(name)
        return _Part(self._file, member.start, member.size)

    def _document(self, name: str) -> bytes:
        content = self._open(name).read(MANIFEST_LIMIT + 1)
        if len(content) > MANIFEST_LIMIT:
            raise DataLoss(f"{name} in {self._subject} has more than {MANIFEST_LIMIT} bytes")
        return content

    # -------------------------------------------------------------------- forms

    def _oci(self, document: bytes) -> Iterator[Archived]:
        what = f"index.json in {self._subject}"
        index = parse_manifest(document, OCI_INDEX, what)
        if not isinstance(index, Index):
            raise DataLoss(f"{what} is no index")
        for entry, descriptor in zip(_decoded(document, _IndexJson, what).manifests, index.manifests, strict=True):
            found = _name(entry.annotations or {})
            yield Archived((found,) if found else (), descriptor.digest, descriptor.media_type)

    def _docker(self, document: bytes) -> Iterator[Archived]:
        for entry in _decoded(document, list[_SavedJson], f"manifest.json in {self._subject}"):
            manifest = self._make_manifest(entry.config, entry.layers)
            yield Archived(tuple(entry.repo_tags or ()), manifest, DOCKER_MANIFEST)

    def _make_manifest(self, config: str, layers: Sequence[str]) -> Digest:
        """docker save knows no digests but the config's: the manifest that a registry would have is made here."""
        if len(layers) > LAYERS_MAX:
            raise DataLoss(f"{config} in {self._subject} has {len(layers)} layers; overlayfs stacks {LAYERS_MAX}")
        document = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": self._describe(config, DOCKER_CONFIG),
            "layers": [self._describe(layer, DOCKER_LAYER) for layer in layers],
        }
        content = json.dumps(document, separators=(",", ":")).encode()
        digest = Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")
        self._made[digest] = content
        if sum(map(len, self._made.values())) > _MADE_MOST:
            raise InvalidArgument(f"{self._subject} holds too many images", hint="give some of them at a time")
        return digest

    def _describe(self, name: str, media_type: str) -> dict[str, object]:
        member = self._find(name)
        if media_type == DOCKER_CONFIG and member.size > CONFIG_LIMIT:
            raise DataLoss(f"{name} in {self._subject} has {member.size} bytes, too many for a config")
        if member not in self._hashed:  # images share layers
            self._hashed[member] = _hash(_Part(self._file, member.start, member.size))
        digest, size = self._hashed[member]
        self._aliases[digest] = name
        return {"mediaType": media_type, "digest": digest, "size": size}


class _Headers(Inflow):
    """A tar on the disk, of which only what is taken is read."""

    def __init__(self, file: BinaryIO, subject: str) -> None:
        super().__init__(iter(()), subject)
        self._file = file
        self._end = file.seek(0, os.SEEK_END)
        self.position = 0

    def take(self, count: int) -> bytes:
        start = self.position
        self.skip(count)
        self._file.seek(start)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        if self.position + count > self._end:
            raise DataLoss(f"{self._subject} ends in the middle of a tar entry", hint="was it cut short?")
        self.position += count

    def skip_padding(self, count: int) -> None:
        self.position = min(self.position + count, self._end)

    def at_end(self) -> bool:
        return self.position == self._end


class _Part:
    """Some bytes of a file that others read, too."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._at = start
        self._left = size

    def read(self, size: int = -1, /) -> bytes:
        """As a file's: fewer bytes only at the end. Raises DataLoss where the file was cut."""
        wanted = self._left if size < 0 else min(size, self._left)
        self._file.seek(self._at)
        found = self._file.read(wanted)
        if len(found) < wanted:
            raise DataLoss("the archive was cut short")
        self._at += wanted
        self._left -= wanted
        return found


def _hash(source: Source) -> tuple[Digest, int]:
    hasher, size = hashlib.sha256(), 0
    while piece := source.read(_PIECE):
        hasher.update(piece)
        size += len(piece)
    return Digest(f"sha256:{hasher.hexdigest()}"), size


def _decoded(content: bytes, kind: type[_T], what: str) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{what} can't be read: {error}") from error


def _name(annotations: Mapping[str, str]) -> str:
    """The whole name where there is one. umoci repack leaves that of the image below beside its own: that is none."""
    name, full = annotations.get(NAME, ""), annotations.get(FULL_NAME, "")
    return full if not name or full.endswith(f":{name}") else name


def _plain(name: str) -> str:
    """A member's name without ``./``; "" for one that leaves the archive."""
    normal = posixpath.normpath(name)
    return "" if normal.startswith(("..", "/")) else normal


# -------------------------------------------------------------------- written


@dataclass(frozen=True, slots=True)
class Exported:
    """An image to be written: its names, its manifest or index, and all blobs that belong to it."""

    names: tuple[str, ...]
    root: Descriptor
    config: Digest
    layers: tuple[Digest, ...]
    blobs: tuple[tuple[Digest, int], ...]


def write_archive(images: Sequence[Exported], read: Callable[[Digest], BinaryIO]) -> Iterator[bytes]:
    """An OCI layout as a tar that ``docker load`` understands, too, in pieces. ``read``: digest → open file."""
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry for image in images for entry in _entries(image)],
    }
    docker = [
        {
            "Config": _place(image.config),
            "RepoTags": list(image.names),
            "Layers": [_place(each) for each in image.layers],
        }
        for image in images
        if image.layers
    ]
    yield from _member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    yield from _member("index.json", json.dumps(index).encode())
    if docker:
        yield from _member("manifest.json", json.dumps(docker).encode())
    for digest, size in dict.fromkeys(blob for image in images for blob in image.blobs):
        yield _header(_place(digest), size)
        yield from _verified(digest, size, read)
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(tarfile.BLOCKSIZE * 2)


def _verified(digest: Digest, size: int, read: Callable[[Digest], BinaryIO]) -> Iterator[bytes]:
    """A blob's bytes. Raises DataLoss in the end if they were others: better no archive than a damaged one."""
    algorithm, _, expected = digest.partition(":")
    hasher, left = hashlib.new(algorithm), size
    with read(digest) as file:
        while piece := file.read(min(_PIECE, left)):
            hasher.update(piece)
            left -= len(piece)
            yield piece
    if left or hasher.hexdigest() != expected:
        raise DataLoss(
            f"the blob {digest} is damaged", hint="stop the daemon and run cri-py image check --deep --repair"
        )


def _entries(image: Exported) -> Iterator[dict[str, object]]:
    root = {"mediaType": image.root.media_type, "digest": image.root.digest, "size": image.root.size}
    for name in image.names:
        yield {**root, "annotations": {FULL_NAME: name, NAME: name}}
    if not image.names:
        yield dict(root)


def _place(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _member(name: str, content: bytes) -> Iterator[bytes]:
    yield _header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(format=tarfile.PAX_FORMAT)
