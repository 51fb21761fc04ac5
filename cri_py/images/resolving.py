"""From what a ref names, by way of indexes, to one image's manifest and config; wherever these come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cri_py import telemetry
from cri_py.errors import DataLoss, FailedPrecondition, NotFound
from cri_py.images.manifest import (
    CONFIG_LIMIT,
    ConfigFile,
    Descriptor,
    Manifest,
    Platform,
    check_config,
    fitting,
    parse_config,
    parse_manifest,
)
from cri_py.images.records import ImageRecord
from cri_py.images.registry import FetchedManifest
from cri_py.images.snapshots import Layer
from cri_py.model import Digest, Image, ImageConfig, ImageId

INDEX_DEPTH: Final = 4  # an index may name another (image-spec image-index.md)
LOOKS_MAX: Final = 32  # manifests that are fetched to find one; an index of 4 MiB has room for 30,000
LAYERS_MAX: Final = 500  # what overlayfs stacks


class Documents(Protocol):
    """Where manifests and configs come from: a registry's repository, or an archive."""

    async def manifest(self, tag_or_digest: str, expected: Digest | None) -> FetchedManifest: ...
    async def small_blob(self, descriptor: Descriptor, limit: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """An image before its layers: ``digest`` is what its name means, an index or the manifest itself.

    ``documents`` are all manifests on the way, the image's own as the last of them, then its config; ``config`` is None
    for an artifact.
    """

    digest: Digest
    documents: Mapping[Digest, bytes]
    manifest: Manifest
    config: ConfigFile | None = None

    def record(self) -> ImageRecord:
        """What the store remembers of it, still without a name."""
        manifest, config = self.manifest, self.config
        manifests = tuple(digest for digest in self.documents if digest != manifest.config.digest)
        size = sum(layer.size for layer in manifest.layers) + manifest.config.size + len(self.documents[manifests[-1]])
        if config is None:
            # Known by its manifest's digest: many artifacts have the same config, an empty one.
            image = Image(ImageId(manifests[-1]), (), (), size, ImageConfig(), (), artifact_type=manifest.artifact_type)
            return ImageRecord(image, manifests, b"", (manifest.config, *manifest.layers))
        image = Image(ImageId(manifest.config.digest), (), (), size, config.config, config.chain_ids)
        return ImageRecord(image, manifests, self.documents[manifest.config.digest], manifest.layers)

    def stack(self) -> list[Layer]:
        """The layers to be unpacked, the base first."""
        if self.config is None:
            return []
        together = zip(self.manifest.layers, self.config.diff_ids, self.config.chain_ids, strict=True)
        return [Layer(*each) for each in together]


@telemetry.spanned("resolve image")
async def resolve(first: FetchedManifest, source: Documents, platform: Platform, subject: str) -> Resolved:
    """Go down from ``first``, choosing by platform. Raises NotFound, DataLoss, InvalidArgument, FailedPrecondition."""
    return await _Search(first.digest, source, platform, subject).below(first, {}, INDEX_DEPTH)


@dataclass(slots=True)
class _Search:
    digest: Digest
    source: Documents
    platform: Platform
    subject: str
    looks: int = LOOKS_MAX

    async def below(self, fetched: FetchedManifest, above: Mapping[Digest, bytes], depth: int) -> Resolved:
        """The image of a manifest, or the first in an index that fits."""
        documents = {**above, fetched.digest: fetched.content}
        document = parse_manifest(fetched.content, fetched.media_type, self.subject)
        if isinstance(document, Manifest):
            found = Resolved(self.digest, documents, document)
            return await _with_config(found, self.source, self.platform, self.subject)
        if depth == 1:
            raise DataLoss(f"{self.subject} nests indexes more than {INDEX_DEPTH} deep")
        *others, last = fitting(document, self.platform, self.subject)
        for entry in others:
            try:
                return await self.below(await self._fetch(entry), documents, depth - 1)
            except (NotFound, FailedPrecondition):
                if entry.platform is not None:
                    raise
        return await self.below(await self._fetch(last), documents, depth - 1)

    async def _fetch(self, entry: Descriptor) -> FetchedManifest:
        if not self.looks:
            raise DataLoss(
                f"{self.subject} has no image for {self.platform} among the first {LOOKS_MAX} that tell no platform"
            )
        self.looks -= 1
        return await self.source.manifest(entry.digest, entry.digest)


async def _with_config(found: Resolved, source: Documents, platform: Platform, subject: str) -> Resolved:
    manifest = found.manifest
    if manifest.artifact_type:
        return found
    if len(manifest.layers) > LAYERS_MAX:
        raise DataLoss(f"{subject} has {len(manifest.layers)} layers; overlayfs stacks {LAYERS_MAX}")
    content = await source.small_blob(manifest.config, CONFIG_LIMIT)
    config = parse_config(content, subject)
    check_config(config, manifest, platform, subject)
    return Resolved(found.digest, {**found.documents, manifest.config.digest: content}, manifest, config)
