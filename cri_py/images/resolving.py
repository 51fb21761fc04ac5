"""From what a ref names, by way of indexes, to one image's manifest and config; wherever these come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cri_py.errors import DataLoss
from cri_py.images.manifest import (
    CONFIG_LIMIT,
    ConfigFile,
    Descriptor,
    Manifest,
    Platform,
    check_config,
    choose,
    parse_config,
    parse_manifest,
)
from cri_py.images.records import ImageRecord
from cri_py.images.registry import FetchedManifest
from cri_py.images.snapshots import Layer
from cri_py.model import Digest, Image, ImageConfig, ImageId

INDEX_DEPTH: Final = 4  # an index may name another (image-spec image-index.md)
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


async def resolve(first: FetchedManifest, source: Documents, platform: Platform, subject: str) -> Resolved:
    """Go down from ``first``, choosing by platform. Raises NotFound, DataLoss, InvalidArgument, FailedPrecondition."""
    documents = {first.digest: first.content}
    fetched = first
    for _ in range(INDEX_DEPTH):
        document = parse_manifest(fetched.content, fetched.media_type, subject)
        if isinstance(document, Manifest):
            return await _with_config(Resolved(first.digest, documents, document), source, platform, subject)
        chosen = choose(document, platform, subject)
        fetched = await source.manifest(chosen.digest, chosen.digest)
        documents[chosen.digest] = fetched.content
    raise DataLoss(f"{subject} nests indexes more than {INDEX_DEPTH} deep")


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
