"""Images without a registry: taken from archives, written into them, built from files, committed from containers.

What comes is spooled into a file without a name, so that nothing of it stays, whatever happens. Its blobs are verified
when they are put into the store, and then go the way of those that were pulled: unpacked by workers, compared with
their diff ids, recorded once the disk has them.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar, TypeVarTuple

import structlog

from cri_py.errors import Aborted, CriError, DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from cri_py.images import building, records
from cri_py.images.archive import Archive, Archived, Exported, write_archive
from cri_py.images.building import Wishes
from cri_py.images.compression import inflate
from cri_py.images.flights import on_thread
from cri_py.images.layerize import layer_pieces
from cri_py.images.layers import plain_most
from cri_py.images.manifest import MANIFEST_LIMIT, Descriptor
from cri_py.images.records import ImageRecord
from cri_py.images.reference import ImageRef, parse_ref
from cri_py.images.registry import FetchedManifest
from cri_py.images.resolving import Resolved, resolve
from cri_py.images.service import Images, Wanted
from cri_py.model import Digest, Image, ImageId

_NAME: Final = "the archive"
_PIECE: Final = 1 << 20
_DOCUMENTS_LIMIT: Final = 64 << 20  # of all images of an archive together: they are held in memory
_COMPRESSED: Final = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # gzip, zstd
_UNREAD: Final = {b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_MAGIC_LONGEST: Final = 5
_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")
log = structlog.get_logger()


class Exchange:
    """Beside ``images``, on whose filesystem ``directory`` lies. Its methods belong to the same event loop."""

    def __init__(self, images: Images, directory: str) -> None:
        self._images = images
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, "images-exchange")

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    # ------------------------------------------------------------------ import

    async def take(self, pieces: AsyncIterator[bytes], tag: str = "") -> list[Image]:
        """Import all images of an archive: an OCI layout's tar or docker save's, plain, gzip or zstd.

        ``tag`` names the image of an archive that names none. Raises InvalidArgument (no archive, no ref), DataLoss
        (damaged or wicked), ResourceExhausted, FailedPrecondition and NotFound (of another platform); then no image
        has come.
        """
        async with self._spooled(pieces) as spooled:
            with await self._run(_plain, spooled, self._directory, stop=spooled.stop) as file:
                archive = await self._run(Archive, file, _NAME, stop=file.stop)
                wanted = await self._wanted(archive, parse_ref(tag) if tag else None)
                blobs = dict.fromkeys(blob for _, found in wanted for blob in found.record().layers)
                async with self._images.holding([blob.digest for blob in blobs]):
                    for blob in blobs:
                        await self._run(self._put, blob, archive, stop=file.stop)
                    images = await self._images.keep(wanted, self._images.here, _NAME)
        log.info("images imported", image_ids=[image.id for image in images])
        return images

    async def _wanted(self, archive: Archive, tag: ImageRef | None) -> list[Wanted]:
        """The images that run here, each with its refs. One that doesn't is refused unless another has its name."""
        named = _named(archive.images, tag)
        wanted: list[Wanted] = []
        others: list[tuple[list[ImageRef], CriError]] = []
        size = 0
        for refs, archived in named:
            try:
                found = await self._resolve(archive, archived)
            except (FailedPrecondition, NotFound) as error:
                others.append((refs, error))
                continue
            size += sum(len(content) for content in found.documents.values())
            if size > _DOCUMENTS_LIMIT:
                raise ResourceExhausted(
                    f"{_NAME} holds more than {_DOCUMENTS_LIMIT >> 20} MiB of manifests and configs"
                )
            wanted.append((refs, found))
        there = _refs(wanted)
        for refs, refusal in others:
            if not wanted or not there.issuperset(refs):
                raise refusal
        return wanted

    async def _resolve(self, archive: Archive, archived: Archived) -> Resolved:
        content = await self._run(archive.document, archived.digest, MANIFEST_LIMIT)
        first = FetchedManifest(content, archived.media_type, archived.digest)
        subject = f"{(*archived.names, archived.digest)[0]} in {_NAME}"
        return await resolve(first, _Documents(archive), self._images.platform, subject)

    def _put(self, blob: Descriptor, archive: Archive) -> None:
        if self._images.content.has(blob.digest, blob.size):
            return  # verified again when it is unpacked
        size = self._images.content.put_file(blob.digest, archive.blob(blob.digest))
        if size != blob.size:
            self._images.content.remove(blob.digest)
            raise DataLoss(f"{blob.digest} has {size} bytes, its manifest says {blob.size}")

    # ------------------------------------------------------------------ export

    async def give(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Write images into a tar that is an OCI layout and docker save's at once, from the blobs as they came.

        Raises NotFound, FailedPrecondition if blobs were discarded, DataLoss.
        """
        if not refs:
            raise InvalidArgument("no image is named", hint="give the refs or ids of images to be exported")
        chosen = {record.image.id: record for record in map(self._images.record, refs)}
        held = [blob for record in chosen.values() for blob in record.blobs(layers=True)]
        async with self._images.holding(held):
            exported = [await self._run(self._exported, record, refs) for record in chosen.values()]
            pieces = write_archive(exported, self._images.content.open)
            async for piece in self._from_thread(pieces):
                yield piece

    def _exported(self, record: ImageRecord, refs: Sequence[str]) -> Exported:
        found, image = self._images.kept(record), record.image
        blobs = [(digest, len(content)) for digest, content in found.documents.items()]
        layers = [(blob.digest, blob.size) for blob in (*found.manifest.layers, found.manifest.config)]
        blobs = list(dict.fromkeys((*blobs, *layers)))
        absent = [digest for digest, size in blobs if not self._images.content.has(digest, size)]
        if absent:
            raise FailedPrecondition(
                f"{len(absent)} blobs of {(*image.repo_tags, image.id)[0]} are not kept, {absent[0]} first",
                hint="set images.discard_unpacked_layers = false and pull the image again",
            )
        asked = {name for ref in refs for name in records.candidates(ref)}
        names = tuple(tag for tag in image.repo_tags if tag in asked) or image.repo_tags
        stack = () if image.artifact_type else tuple(blob.digest for blob in found.manifest.layers)
        return Exported(names, building.described(found), found.manifest.config.digest, stack, tuple(blobs))

    # --------------------------------------------------------- build and commit

    async def build(self, pieces: AsyncIterator[bytes], tag: str, wishes: Wishes) -> Image:
        """An image of one layer, whose plain tar ``pieces`` are. Raises InvalidArgument, DataLoss."""
        ref = parse_tag(tag)
        building.build(Digest(f"sha256:{'0' * 64}"), 0, wishes, self._images.platform)  # refuses before anything comes
        async with self._spooled(pieces) as file:
            return await self._made(
                file, ref, lambda digest, size: building.build(digest, size, wishes, self._images.platform)
            )

    async def commit(self, image_id: ImageId, upper: str, tag: str, container_id: str) -> Image:
        """The image ``image_id`` with the overlay's upper directory ``upper`` as one more layer.

        Raises NotFound, FailedPrecondition, Aborted.
        """
        ref = parse_tag(tag)
        if self._images.find(image_id) is None:
            hint = "pull it again, and commit then"
            raise FailedPrecondition(f"the image {image_id} of container {container_id} was removed", hint=hint)
        below = await self._run(self._images.kept, self._images.record(image_id))
        building.extend(below, Digest(f"sha256:{'0' * 64}"), 0, "")  # refuses before anything is read
        created_by = f"cri-py image commit {container_id[:12]}"
        async with self._spooled(self._from_thread(layer_pieces(upper, overlay=True))) as file:
            return await self._made(file, ref, lambda digest, size: building.extend(below, digest, size, created_by))

    async def _made(self, file: _Spool, ref: ImageRef, make: Callable[[Digest, int], Resolved]) -> Image:
        """Keep the image that ``make`` says of the spooled layer's digest and size."""
        digest, size = await self._run(_hash, file, stop=file.stop)
        found = make(digest, size)
        async with self._images.holding([digest]):
            await self._run(self._images.content.put_file, digest, file, stop=file.stop)
            (image,) = await self._images.keep([([ref], found)], self._images.here, str(ref))
        log.info("image made", image=str(ref), image_id=image.id)
        return image

    # ------------------------------------------------------------------- pieces

    @asynccontextmanager
    async def _spooled(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[_Spool]:
        """All that comes, in a file without a name, from its start."""
        with await self._run(_Spool, self._directory, threading.Event()) as file:
            async for piece in pieces:
                await self._run(_write, file, piece)
            await self._run(file.seek, 0)
            yield file

    async def _from_thread(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        while (piece := await self._run(next, pieces, None)) is not None:
            yield piece

    async def _run(
        self, act: Callable[[*_Arguments], _T], *arguments: *_Arguments, stop: threading.Event | None = None
    ) -> _T:
        return await on_thread(self._thread, act, *arguments, stop=stop)


class _Spool(io.FileIO):
    """A file without a name in ``directory``. Once ``stop`` is set nobody reads on: a cancelled call, and a daemon that
    ends, wait for the thread."""

    def __init__(self, directory: str, stop: threading.Event) -> None:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            super().__init__(os.dup(file.fileno()), "r+b")
        self.stop = stop

    def read(self, size: int | None = -1, /) -> bytes:
        if self.stop.is_set():
            raise Aborted(f"{_NAME} is read no further: who sent it has left, or the daemon ends")
        return super().read(size) or b""


class _Documents:
    """An archive's manifests and configs, as those of a registry: small, and read just now."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def manifest(self, tag_or_digest: str, expected: Digest | None) -> FetchedManifest:
        digest = expected or Digest(tag_or_digest)
        return FetchedManifest(self._archive.document(digest, MANIFEST_LIMIT), "", digest)

    async def small_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._archive.document(descriptor.digest, limit)


def _named(images: Sequence[Archived], tag: ImageRef | None) -> list[tuple[list[ImageRef], Archived]]:
    """The refs that each image of an archive gets, each image once. Raises InvalidArgument."""
    merged: dict[Digest, tuple[list[ImageRef], Archived]] = {}
    for image in images:
        refs, _ = merged.setdefault(image.digest, ([], image))
        # image-spec annotations.md: a ref.name may be a tag alone, which names no repository.
        refs += [parse_ref(name) for name in image.names if ":" in name or "/" in name]
    if not merged:
        raise InvalidArgument(f"{_NAME} holds no image")
    if tag is not None:
        nameless = [refs for refs, _ in merged.values() if not refs or len(merged) == 1]
        if len(nameless) != 1:
            hint = "import without --tag, then cri-py image tag ID TAG"
            raise InvalidArgument(f"{_NAME} holds {len(nameless)} images without a name, {tag} is one", hint=hint)
        nameless[0].append(tag)
    return list(merged.values())


def _refs(wanted: Sequence[Wanted]) -> set[ImageRef]:
    """Of all images. Raises InvalidArgument if one names several of them: which one was meant?"""
    there: set[ImageRef] = set()
    for refs, _ in wanted:
        for ref in refs:
            if ref in there:
                hint = "leave one of them out, by skopeo copy for instance"
                raise InvalidArgument(f"{ref} names several images of {_NAME} that run here", hint=hint)
        there.update(refs)
    return there


def parse_tag(text: str) -> ImageRef:
    """The name of an image to be made. Raises InvalidArgument."""
    ref = parse_ref(text)
    if not ref.tagged:
        raise InvalidArgument(f"{text} is no tag", hint="give NAME:TAG, without a digest")
    return ref


def _write(file: _Spool, piece: bytes) -> None:
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        hint = "free space below the root directory"
        raise ResourceExhausted(f"{_NAME} can't be spooled: {error.strerror}", hint=hint) from error


def _plain(spooled: _Spool, directory: str) -> _Spool:
    """The spooled archive uncompressed, in a file of its own if need be: blobs are looked up in it."""
    begin = spooled.read(_MAGIC_LONGEST)
    size = spooled.seek(0, os.SEEK_END)
    spooled.seek(0)
    for magic, name in _UNREAD.items():
        if begin.startswith(magic):
            raise InvalidArgument(f"{_NAME} is compressed by {name}", hint=f"decompress it first: {name} -dc ARCHIVE")
    if not begin.startswith(_COMPRESSED):
        return spooled
    plain = _Spool(directory, spooled.stop)
    try:
        for piece in inflate(spooled, _NAME, plain_most(size)):
            _write(plain, piece)
        plain.seek(0)
    except BaseException:
        plain.close()
        raise
    return plain


def _hash(file: _Spool) -> tuple[Digest, int]:
    """Digest and size of a file, which is at its start before and afterwards."""
    hasher = hashlib.sha256()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    size = file.tell()
    file.seek(0)
    return Digest(f"sha256:{hasher.hexdigest()}"), size
