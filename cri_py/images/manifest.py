"""Manifests, indexes and image configs: bytes in, values out.

OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and Docker's schema 2, which differ in media types only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from cri_py.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from cri_py.images.reference import parse_digest
from cri_py.model import ChainId, Digest, ImageConfig

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
ACCEPTED: Final = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
MANIFEST_LIMIT: Final = 4 << 20  # distribution-spec: registries should take 4 MiB; more is refused
CONFIG_LIMIT: Final = 8 << 20
MEDIA_TYPE_LIMIT: Final = 255  # RFC 6838 §4.2: 127 for each half; they are remembered, listed and logged
PLATFORM_SHOWN: Final = 80  # characters, for messages: those of strangers may be of any length
PLATFORMS_TOLD: Final = 20

_Document = TypeVar("_Document")

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386"}
_MACHINE_VARIANTS: Final = {"aarch64": "v8", "armv7l": "v7", "armv6l": "v6"}
_DEFAULT_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}


@dataclass(frozen=True, slots=True)
class Platform:
    """What a program needs: GOOS, GOARCH and the variant of the latter ("" where none is said)."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)[:PLATFORM_SHOWN]


# 64-bit processors run the 32-bit programs of their family, but for some arm64 servers; peers try these last, too.
_ALSO_RUN: Final = {"amd64": Platform("linux", "386"), "arm64": Platform("linux", "arm", "v8")}
_LAST_RANKS: Final = 50
_UNKNOWN_RANK: Final = 100


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Content by digest and size in bytes; ``platform`` only in an index."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Index:
    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """``artifact_type``: what it is if it is no container image (image-spec manifest.md, Guidelines for Artifact
    Usage), else ""."""

    config: Descriptor
    layers: tuple[Descriptor, ...]  # the base first
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """An image's config as far as it matters here; ``diff_ids`` the base first."""

    config: ImageConfig
    platform: Platform
    diff_ids: tuple[Digest, ...]

    @property
    def chain_ids(self) -> tuple[ChainId, ...]:
        return chain_ids(self.diff_ids)


class _PlatformJson(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _DescriptorJson(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: _PlatformJson | None = None


class _DocumentJson(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    config: _DescriptorJson | None = None
    layers: list[_DescriptorJson] | None = None
    manifests: list[_DescriptorJson] | None = None
    artifact_type: str = ""


class _ContainerJson(msgspec.Struct, rename="pascal"):
    user: str = ""
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str = ""
    stop_signal: str = ""
    labels: dict[str, str] | None = None
    volumes: dict[str, msgspec.Raw] | None = None


class _RootfsJson(msgspec.Struct):
    diff_ids: list[str] | None = None


class _ConfigJson(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""
    config: _ContainerJson | None = None
    rootfs: _RootfsJson | None = None


def parse_manifest(content: bytes, content_type: str, subject: str) -> Index | Manifest:
    """Parse what a registry served for ``subject`` (the ref and host, for messages).

    The document's own mediaType outdoes ``content_type``. Raises DataLoss for what is no manifest, InvalidArgument
    for schema 1 and other unusable kinds.
    """
    document = _decoded(content, _DocumentJson, f"the manifest of {subject}")
    media_type = _named(document.media_type or content_type.partition(";")[0].strip(), subject)
    if document.schema_version == 1:
        hint = "push it again with a current tool"
        raise InvalidArgument(f"{subject} is a schema 1 manifest, which no digest protects", hint=hint)
    if document.manifests is not None and (document.layers is not None or document.config is not None):
        # CVE-2021-41190: a document that reads as both could be two images to two readers.
        raise DataLoss(f"the manifest of {subject} claims to be an index and an image at once")
    if document.manifests is not None and media_type not in {OCI_MANIFEST, DOCKER_MANIFEST}:
        return Index(tuple(_descriptor(entry, subject) for entry in document.manifests))
    if document.config is not None and document.layers is not None and media_type not in INDEX_TYPES:
        layers = tuple(_descriptor(entry, subject) for entry in document.layers)
        config = _descriptor(document.config, subject)
        artifact_type = _named(document.artifact_type, subject) or config.media_type or "unknown"
        return Manifest(config, layers, "" if config.media_type in CONFIG_TYPES else artifact_type)
    raise DataLoss(f"{subject} is neither an image nor an index but {media_type or 'something without a media type'}")


def parse_config(content: bytes, subject: str) -> ConfigFile:
    """Parse the config of the image ``subject``; raises DataLoss if it is none."""
    document = _decoded(content, _ConfigJson, f"the config of {subject}")
    box = document.config or _ContainerJson()
    diff_ids = (document.rootfs.diff_ids if document.rootfs is not None else None) or ()
    return ConfigFile(
        config=ImageConfig(
            user=box.user,
            env=tuple(box.env or ()),
            entrypoint=tuple(box.entrypoint or ()),
            cmd=tuple(box.cmd or ()),
            working_dir=box.working_dir,
            stop_signal=box.stop_signal,
            labels=box.labels or {},
            volumes=tuple(sorted(box.volumes or ())),
        ),
        platform=_platform(_PlatformJson(document.os, document.architecture, document.variant)),
        diff_ids=tuple(_digest(text, subject) for text in diff_ids),
    )


def check_config(config: ConfigFile, manifest: Manifest, wanted: Platform, subject: str) -> None:
    """Raise DataLoss if config and manifest disagree, FailedPrecondition if the image is for another platform."""
    if len(config.diff_ids) != len(manifest.layers):
        raise DataLoss(
            f"the config of {subject} names {len(config.diff_ids)} layers, its manifest {len(manifest.layers)}"
        )
    if config.platform.architecture and _rank(config.platform, wanted) is None:
        raise FailedPrecondition(
            f"{subject} is built for {config.platform}, this node is {wanted}", hint="push a multi-platform image"
        )


def fitting(index: Index, wanted: Platform, subject: str) -> tuple[Descriptor, ...]:
    """The entries of an index that may hold what ``wanted`` runs: the nearest variant first, then the earlier entry.

    Entries without a platform (a nested index often has none) come last: only a look inside tells. Raises NotFound that
    lists what is there.
    """
    ranked = [
        (_UNKNOWN_RANK if entry.platform is None else _rank(entry.platform, wanted), position)
        for position, entry in enumerate(index.manifests)
    ]
    fits = sorted((rank, position) for rank, position in ranked if rank is not None)
    if fits:
        return tuple(index.manifests[position] for _, position in fits)
    platforms = list(dict.fromkeys(str(entry.platform) for entry in index.manifests))
    there = ", ".join(platforms[:PLATFORMS_TOLD]) or "nothing"
    more = f" and {len(platforms) - PLATFORMS_TOLD} more" if len(platforms) > PLATFORMS_TOLD else ""
    raise NotFound(f"{subject} has no image for {wanted}", hint=f"it holds: {there}{more}")


def chain_ids(diff_ids: Sequence[Digest]) -> tuple[ChainId, ...]:
    """The ids of the stacks that end with each layer (image-spec config.md, Layer ChainID)."""
    chain: list[ChainId] = []
    for diff_id in diff_ids:
        if chain:
            chain.append(ChainId(f"sha256:{hashlib.sha256(f'{chain[-1]} {diff_id}'.encode()).hexdigest()}"))
        else:
            chain.append(ChainId(diff_id))
    return tuple(chain)


def node_platform(machine: str) -> Platform:
    """The platform of a Linux node whose ``uname -m`` is ``machine``."""
    return Platform("linux", _ARCHITECTURES.get(machine, machine), _MACHINE_VARIANTS.get(machine, ""))


def _rank(offered: Platform, wanted: Platform) -> int | None:
    """0 for a perfect fit, more for an older variant that still runs here, None for what doesn't run."""
    if offered.os != wanted.os:
        return None
    if offered.architecture != wanted.architecture:
        also = _ALSO_RUN.get(wanted.architecture)
        rank = _rank(offered, also) if also is not None else None
        return None if rank is None else _LAST_RANKS + rank
    have = _variant_number(wanted)
    need = _variant_number(offered)
    return have - need if have >= need else None


def _variant_number(platform: Platform) -> int:
    variant = platform.variant or _DEFAULT_VARIANTS.get(platform.architecture, "")
    digits = variant.removeprefix("v")
    return int(digits) if digits.isdecimal() and len(digits) <= 2 else 0


def _platform(found: _PlatformJson) -> Platform:
    return Platform(found.os.lower(), _ARCHITECTURES.get(found.architecture, found.architecture), found.variant)


def _descriptor(found: _DescriptorJson, subject: str) -> Descriptor:
    if found.size < 0:
        raise DataLoss(f"the manifest of {subject} gives {found.digest[:80]} a negative size")
    platform = _platform(found.platform) if found.platform is not None and found.platform.architecture else None
    return Descriptor(_named(found.media_type, subject), _digest(found.digest, subject), found.size, platform)


def _named(media_type: str, subject: str) -> str:
    """The media type itself, if it may be one."""
    if len(media_type) > MEDIA_TYPE_LIMIT or not media_type.isprintable():
        raise DataLoss(f"the manifest of {subject} names the media type {media_type[:80]!r}, which can't be one")
    return media_type


def _digest(text: str, subject: str) -> Digest:
    try:
        return parse_digest(text)
    except InvalidArgument as error:
        raise DataLoss(f"{subject} refers to {text[:80]!r}, which is no digest") from error


def _decoded(content: bytes, kind: type[_Document], what: str) -> _Document:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{what} can't be read: {error}") from error
