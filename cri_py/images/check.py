"""What of the image store is not as its records say: a look at the disk, which changes nothing.

It reads sizes, and deep also every byte. ``Images.repair`` mends by these findings: what is damaged goes, layers are
unpacked again from their blobs, and images that can't be mended are forgotten.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from cri_py.errors import Aborted
from cri_py.images.content import Content
from cri_py.images.layers import measure
from cri_py.images.loading import load
from cri_py.images.records import ImageRecord
from cri_py.images.snapshots import Snapshot
from cri_py.model import ChainId, Digest
from cri_py.state.store import Store


class Kind(Enum):
    BLOB = "blob"
    LAYER = "layer"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that is ``missing``, ``truncated``, ``damaged`` or ``orphaned``.

    ``subject`` is its digest, its chain id or its path; ``images`` are the ids of those that need it.
    """

    kind: Kind
    subject: str
    found: str
    images: tuple[str, ...] = ()

    def __str__(self) -> str:
        needed = f", needed by {', '.join(self.images)}" if self.images else ""
        return f"{self.kind.value} {self.subject}: {self.found}{needed}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """All that the records say. ``keeps_layers``: whether layers' blobs stay once they are unpacked."""

    images: Collection[ImageRecord]
    snapshots: Mapping[ChainId, Snapshot]
    retired: Collection[ChainId]
    keeps_layers: bool

    def blobs(self, record: ImageRecord) -> tuple[Digest, ...]:
        """Those that an image must have: its layers' may have gone before they were to be kept."""
        return record.blobs(layers=self.keeps_layers and not record.discarded)


def stored(store: Store, *, keeps_layers: bool) -> Recorded:
    """What a store says that no daemon has opened. Of what is damaged nothing is known: it looks orphaned."""
    loaded = load(store)
    retired = [chain_id for chain_ids in loaded.retired.values() for chain_id in chain_ids]
    return Recorded(loaded.images, loaded.snapshots, retired, keeps_layers)


def look(
    recorded: Recorded, content: Content, layers: str, *, deep: bool, stop: threading.Event | None = None
) -> list[Trouble]:
    """Everything that is wrong, orphans last. ``layers`` is the directory of snapshots.

    What a pull under way makes looks orphaned. Blocks as long as the disk takes; raises Aborted soon after ``stop`` is
    set, for that may be an hour.
    """
    stop = stop or threading.Event()
    return [
        *_blobs(recorded, content, stop, deep=deep),
        *_snapshots(recorded, layers, stop),
        *_orphans(recorded, content, layers),
    ]


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise Aborted("the check was given up: who asked for it has left, or the daemon ends")


def _blobs(recorded: Recorded, content: Content, stop: threading.Event, *, deep: bool) -> Iterator[Trouble]:
    sizes: dict[Digest, int | None] = {}
    needed: dict[Digest, list[str]] = {}
    for record in recorded.images:
        if not record.layers:
            continue  # of a version that kept no blobs
        sizes.update((each.digest, each.size) for each in record.layers)
        if not record.image.artifact_type:  # whose id is its manifest's digest
            sizes[Digest(record.image.id)] = len(record.config_file)
        for digest in dict.fromkeys(recorded.blobs(record)):
            needed.setdefault(digest, []).append(record.image.id)
    for digest, images in needed.items():
        _go_on(stop)
        size, wanted = content.size(digest), sizes.get(digest)
        if size is None:
            yield Trouble(Kind.BLOB, digest, "missing", tuple(images))
        elif wanted is not None and size != wanted:
            yield Trouble(Kind.BLOB, digest, f"truncated: {size} of {wanted} bytes", tuple(images))
        elif (deep or wanted is None) and not content.intact(digest, lambda: _go_on(stop)):
            yield Trouble(Kind.BLOB, digest, "damaged: its bytes are not those of its digest", tuple(images))


def _snapshots(recorded: Recorded, layers: str, stop: threading.Event) -> Iterator[Trouble]:
    needed: dict[ChainId, list[str]] = {}
    for record in recorded.images:
        for chain_id in record.image.chain_ids:
            needed.setdefault(chain_id, []).append(record.image.id)
    for chain_id, images in needed.items():
        if chain_id not in recorded.snapshots:
            yield Trouble(Kind.LAYER, chain_id, "missing: it has no record", tuple(images))
    for chain_id, snapshot in recorded.snapshots.items():
        _go_on(stop)
        if found := _compare(snapshot, os.path.join(layers, snapshot.directory)):
            yield Trouble(Kind.LAYER, chain_id, found, tuple(needed.get(chain_id, ())))
        elif chain_id not in needed and chain_id not in recorded.retired:
            yield Trouble(Kind.LAYER, chain_id, "orphaned: no image needs it")


def _compare(snapshot: Snapshot, path: str) -> str:
    """What is wrong with an unpacked layer, "" if nothing that sizes show."""
    if not os.path.isdir(path):
        return f"missing: {path} is not there"
    if snapshot.file_bytes < 0:
        return ""
    inodes, file_bytes = measure(path)
    if inodes != snapshot.inodes:
        return f"damaged: {inodes} files and directories instead of {snapshot.inodes}"
    if file_bytes != snapshot.file_bytes:
        return f"truncated: {file_bytes} bytes in files instead of {snapshot.file_bytes}"
    return ""


def _orphans(recorded: Recorded, content: Content, layers: str) -> Iterator[Trouble]:
    known = {snapshot.directory for snapshot in recorded.snapshots.values()}
    needed = {digest for record in recorded.images for digest in record.blobs(layers=recorded.keeps_layers)}
    for digest in content.digests():
        if digest not in needed:
            yield Trouble(Kind.BLOB, digest, "orphaned: no image needs it")
    for name in sorted(os.listdir(layers)) if os.path.isdir(layers) else ():
        if name not in known:
            yield Trouble(Kind.DIRECTORY, os.path.join(layers, name), "orphaned: no record names it")
