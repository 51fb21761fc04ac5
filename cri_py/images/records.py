"""What is remembered of an image, and how tags and digests move between images. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from cri_py.errors import InvalidArgument
from cri_py.images.manifest import Descriptor
from cri_py.images.reference import ImageRef, parse_digest, parse_ref
from cri_py.model import ChainId, Digest, Image, ImageId
from cri_py.state.store import Put

IMAGE: Final = "image"
RETIRED: Final = "retired"  # removed, but containers still use its layers
SIZES_END: Final = 2**63  # of what CRI's messages can tell


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image, the digests of the manifest and index that led to it, its config as it came, and its layers' blobs.

    Records of before blobs were kept have no ``layers``. ``discarded``: the layers' blobs went once they were unpacked.
    """

    image: Image
    manifests: tuple[Digest, ...]
    config_file: bytes = b""
    layers: tuple[Descriptor, ...] = ()
    discarded: bool = False

    def without_layers(self) -> ImageRecord:
        """It, once the blobs of its layers are discarded; an artifact is nothing but its blobs, and stays as it is."""
        return self if self.image.artifact_type else replace(self, discarded=True)

    def blobs(self, *, layers: bool) -> tuple[Digest, ...]:
        """The content that belongs to it: manifests, config and, if kept, layers."""
        kept = layers or bool(self.image.artifact_type)  # an artifact is nothing but its blobs
        return (*self.manifests, Digest(self.image.id), *(each.digest for each in self.layers if kept))


class _Body(msgspec.Struct):
    image: Image
    manifests: tuple[Digest, ...]
    layers: tuple[Descriptor, ...] = ()
    discarded: bool = False


def encode(record: ImageRecord) -> Put:
    body = msgspec.json.encode(_Body(record.image, record.manifests, record.layers, record.discarded))
    return Put(IMAGE, record.image.id, body, record.config_file)


def decode(put: Put) -> ImageRecord:
    """Raises what msgspec raises, InvalidArgument or ValueError for a record that was not written so."""
    body = msgspec.json.decode(put.body, type=_Body)
    if body.image.id != put.key or not 0 <= body.image.size < SIZES_END:
        raise ValueError(f"the image {body.image.id} of {body.image.size} bytes")
    for digest in (*body.manifests, *(each.digest for each in body.layers)):
        parse_digest(digest)
    return ImageRecord(body.image, body.manifests, put.verbatim, body.layers, body.discarded)


def encode_retired(image_id: ImageId, chain_ids: Sequence[ChainId]) -> Put:
    return Put(RETIRED, image_id, msgspec.json.encode(chain_ids))


def decode_retired(put: Put) -> tuple[ChainId, ...]:
    """Raises what msgspec raises."""
    return msgspec.json.decode(put.body, type=tuple[ChainId, ...])


def merged(record: ImageRecord, known: Mapping[ImageId, ImageRecord]) -> ImageRecord:
    """The record, if its image is here already with what that has: the same config may come by another manifest."""
    here = known.get(record.image.id)
    if here is None:
        return record
    manifests = tuple(dict.fromkeys(here.manifests + record.manifests))
    before = () if here.discarded and not record.discarded else here.layers  # their blobs are not here
    layers = tuple(dict.fromkeys(before + record.layers))
    return replace(here, manifests=manifests, layers=layers, discarded=record.discarded)


def verbose(record: ImageRecord) -> bytes:
    """JSON with the chain id and the whole image config, or the blobs of an artifact."""
    image = record.image
    if image.artifact_type:
        blobs = [{"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in record.layers]
        return msgspec.json.encode({"artifactType": image.artifact_type, "blobs": blobs})
    top = image.chain_ids[-1] if image.chain_ids else ""
    return msgspec.json.encode({"chainID": top, "imageSpec": msgspec.Raw(record.config_file)})


def attach(records: Iterable[ImageRecord], record: ImageRecord, ref: ImageRef, digest: Digest) -> list[ImageRecord]:
    """The records that change when ``ref`` now names ``record``'s image, whose manifest or index is ``digest``.

    An image that loses its tag keeps its digests; one that loses its last digest too (the same index led to another
    image, for another platform) stays reachable by its id.
    """
    tags, digests = {ref.tagged} - {""}, {ref.at(digest)}
    losers = [
        _renamed(other, set(other.image.repo_tags) - tags, set(other.image.repo_digests) - digests)
        for other in records
        if other.image.id != record.image.id
        and (tags.intersection(other.image.repo_tags) or digests.intersection(other.image.repo_digests))
    ]
    return [
        *losers,
        _renamed(record, tags.union(record.image.repo_tags), digests.union(record.image.repo_digests)),
    ]


def attach_all(
    records: Iterable[ImageRecord], record: ImageRecord, refs: Iterable[ImageRef], digest: Digest
) -> list[ImageRecord]:
    """The same for several refs, or for none: then the image is known by its id alone."""
    known = {each.image.id: each for each in records}
    known[record.image.id] = record
    changed = {record.image.id: record}
    for ref in refs:
        for each in attach(known.values(), known[record.image.id], ref, digest):
            known[each.image.id] = changed[each.image.id] = each
    return list(changed.values())


def tag(records: Iterable[ImageRecord], record: ImageRecord, name: str) -> list[ImageRecord]:
    """The records that change when the tag ``name`` now names ``record``'s image."""
    losers = [
        _renamed(other, set(other.image.repo_tags) - {name}, other.image.repo_digests)
        for other in records
        if other.image.id != record.image.id and name in other.image.repo_tags
    ]
    return [*losers, _renamed(record, {*record.image.repo_tags, name}, record.image.repo_digests)]


def untag(record: ImageRecord, names: Collection[str]) -> ImageRecord:
    """The record without these tags."""
    return _renamed(record, set(record.image.repo_tags) - {*names}, record.image.repo_digests)


def names_of(image: Image) -> tuple[str, ...]:
    """Every exact text that finds the image: tags, digests, the id with and without its algorithm."""
    return (*image.repo_tags, *image.repo_digests, image.id, image.id.partition(":")[2])


def candidates(ref_or_id: str) -> tuple[str, ...]:
    """The exact names to look for, as given and normalised."""
    try:
        ref = parse_ref(ref_or_id)
    except InvalidArgument:  # an id, or nothing that we know
        return (ref_or_id,)
    if ref.digest is not None:
        return (ref_or_id, ref.at(ref.digest))
    return (ref_or_id, ref.tagged)


def pinned(image: Image, patterns: Iterable[str]) -> bool:
    """Whether a glob of the config matches one of the image's tags or digests."""
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in image.repo_tags + image.repo_digests)


def by_prefix(ids: Iterable[ImageId], prefix: str) -> ImageId | None:
    """The only id whose hex digits start with ``prefix`` (with or without ``sha256:``); None for none or several."""
    wanted = prefix.removeprefix("sha256:")
    found = [each for each in ids if wanted and each.partition(":")[2].startswith(wanted)]
    return found[0] if len(found) == 1 else None


def _renamed(record: ImageRecord, tags: Iterable[str], digests: Iterable[str]) -> ImageRecord:
    image = replace(record.image, repo_tags=tuple(sorted(tags)), repo_digests=tuple(sorted(digests)))
    return replace(record, image=image)
