"""The node's images: pull (resolve → fetch → verify → unpack → commit), find, remove, collect."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final

import structlog

from cri_py import telemetry
from cri_py.config import ImagesConfig
from cri_py.errors import CriError, InvalidArgument, NotFound, PermissionDenied, Unavailable
from cri_py.images import loading, records, usage
from cri_py.images.artifacts import files_of, lay_out
from cri_py.images.check import Kind, Recorded, Trouble, look
from cri_py.images.content import Content, delete_files
from cri_py.images.downloads import Downloads
from cri_py.images.flights import Flights, on_thread
from cri_py.images.loading import Loaded
from cri_py.images.manifest import (
    MANIFEST_LIMIT,
    Manifest,
    node_platform,
    parse_config,
    parse_manifest,
)
from cri_py.images.progress import LayerProgress, Progress
from cri_py.images.records import ImageRecord
from cri_py.images.reference import ImageRef, parse_ref
from cri_py.images.registries import Registries
from cri_py.images.resolving import Resolved, resolve
from cri_py.images.snapshots import RECORD, FollowBlob, Layer, Snapshots, Taken, remove_tree, take_all
from cri_py.images.syncs import Syncs
from cri_py.images.uses import Uses
from cri_py.images.workers import Workers
from cri_py.kernel import faults
from cri_py.model import ChainId, Digest, FilesystemUsage, Image, ImageId, Nanos, RegistryAuth
from cri_py.state.store import Change, Delete, Store

DISK_THREADS: Final = 2

Wanted = tuple[Sequence[ImageRef], Resolved]  # an image, and the refs that it is to go by
log = structlog.get_logger()


class Images:
    """The image store below ``root``. All methods belong to one event loop."""

    def __init__(
        self,
        root: str,
        config: ImagesConfig,
        store: Store,
        in_use: Callable[[], Collection[ImageId]],
        clock: Callable[[], Nanos],
    ) -> None:
        self._root = os.path.abspath(root)
        self._config = config
        self._store = store
        self._uses = Uses(in_use)
        self._clock = clock
        self.platform = node_platform(os.uname().machine)
        self._disk = ThreadPoolExecutor(DISK_THREADS, "images-disk")
        self._registries = Registries(config)
        self.content = Content(os.path.join(self._root, "blobs"))
        self._syncs = Syncs(self.content.sync)
        self._workers = Workers(config.max_parallel_unpacks)
        self.progress = Progress()
        self._downloads = Downloads(self.content, config.max_parallel_downloads, self._disk, self.progress.fetched)
        self._snapshots = Snapshots(
            os.path.join(self._root, "layers"), self._workers, self._disk, self.progress.unpacked
        )
        self._pulls: Flights[tuple[str, RegistryAuth | None], Image] = Flights()
        self._lock = asyncio.Lock()  # held while records change
        self._records: dict[ImageId, ImageRecord] = {}
        self._retired: dict[ImageId, tuple[ChainId, ...]] = {}
        self._names: dict[str, ImageId] = {}

    # ------------------------------------------------------------ from start to end

    async def start(self) -> None:
        """Load what an earlier life recorded and delete what it left unfinished."""
        loaded = loading.load(self._store)
        changes = loading.set_aside(loaded.damaged)
        changes += await on_thread(self._disk, self._snapshots.load, loaded.snapshots)
        await on_thread(self._disk, remove_tree, os.path.join(self._root, "ingest"))  # of versions that kept no blobs
        await on_thread(self._disk, self.content.settle, self._needed_blobs(loaded.images))
        changes += await self._sweep(loaded)
        self._records = {record.image.id: self._pinned(record) for record in loaded.images}
        changes += self._mark_discarded()
        self._retired = loaded.retired
        changes += self._retire(loaded.lost_images)
        telemetry.IMAGES.read_by(lambda: {"": len(self._records)})
        with ExitStack() as held:  # which containers there are is not known yet: what one may use stays for ``collect``
            for image_id in self._records:
                held.enter_context(self.using(image_id))
            await self._reconcile(changes)

    async def _sweep(self, loaded: Loaded) -> list[Change]:
        """Delete layers that have no record, unless one that has lost its own may be below a container."""
        if loaded.nameless and self._uses.all():
            await on_thread(self._disk, self._snapshots.spare)
            return []
        await on_thread(self._disk, self._snapshots.sweep)
        return [Delete(put.kind, put.key) for put in loaded.aside]

    def _retire(self, lost: Sequence[ImageId]) -> list[Change]:
        """Of images whose records can't be read nobody knows what layers they have: none goes before ``collect``."""
        layers = tuple(self._snapshots.ready.keys() - self._needed_layers())
        self._retired.update(dict.fromkeys(lost, layers))
        return [records.encode_retired(image_id, layers) for image_id in lost]

    def _mark_discarded(self) -> list[Change]:
        """Remember which layers' blobs are not kept any more, for when they are to be kept again."""
        if not self._config.discard_unpacked_layers:
            return []
        marked = [record.without_layers() for record in self._records.values() if not record.discarded]
        self._records.update({record.image.id: record for record in marked})
        return [records.encode(record) for record in marked]

    async def close(self) -> None:
        """Close connections and threads; pulls that run are cancelled by who asked for them, before."""
        await self._registries.close()
        await self._workers.close()
        self._disk.shutdown(wait=True)
        self._syncs.close()

    # -------------------------------------------------------------------- pull

    async def pull(self, ref: str, auth: RegistryAuth | None) -> Image:
        """Make the image that ``ref`` names now present, and return it.

        Equal pulls under way are joined. A caller who is cancelled takes the pull down unless others wait for it too.
        Raises InvalidArgument (the ref, an unusable kind of image), NotFound, PermissionDenied, Unavailable,
        DeadlineExceeded, DataLoss, ResourceExhausted, SignatureValidationFailed.
        """
        candidates = self._registries.candidates(ref)
        began = self._clock()
        try:
            parsed, image = await self._pull_first(candidates, auth)
        except CriError as error:
            telemetry.PULL_ERRORS.labels(error.code).inc()
            raise
        seconds = (self._clock() - began) / 1e9
        telemetry.PULL_SECONDS.observe(seconds)
        log.info("image pulled", image=str(parsed), image_id=image.id, seconds=round(seconds, 3))
        return image

    def progress_of(self, ref: str) -> tuple[LayerProgress, ...]:
        """How far a pull of ``ref`` is; empty if none is under way, or its manifest is still awaited."""
        return next((found for name in self._candidates(ref) if (found := self.progress.of(name))), ())

    async def _pull_first(self, candidates: Sequence[ImageRef], auth: RegistryAuth | None) -> tuple[ImageRef, Image]:
        """The first of what a short name may mean that is there."""
        said = []
        for ref in candidates:
            try:
                return ref, await self._pulls.join((str(ref), auth), functools.partial(self._pull, ref, auth))
            except (NotFound, PermissionDenied, Unavailable) as error:
                if len(candidates) == 1:
                    raise
                said.append(error.message)
        raise NotFound(f"none of what a short name may mean can be pulled: {'; '.join(said)}")

    async def _pull(self, ref: ImageRef, auth: RegistryAuth | None) -> Image:
        repository = await self._registries.repository(ref, auth)
        cheap = ref.tagged in self._names and not self._registries.verifies()
        meant = await repository.digest(ref.tag) if cheap else None
        if meant is not None and (known := await self._known(ref, meant)) is not None:
            return known
        first = await repository.manifest(ref.digest or ref.tag, ref.digest)
        await self._registries.admit(ref, first)
        if (known := await self._known(ref, first.digest)) is not None:
            return known
        found = await resolve(first, repository, self.platform, str(ref))
        (image,) = await self.keep([([ref], found)], lambda each: self._downloads.blob(each, repository), str(ref))
        return image

    async def keep(self, wanted: Sequence[Wanted], follow_blob: FollowBlob, subject: str) -> list[Image]:
        """Make images present whose manifests and configs are known; ``follow_blob`` has or fetches their layers.

        Each goes by all of its refs, or without one by its id alone. All or none: nothing is left if that fails.
        """
        try:
            with ExitStack() as leases:
                for _, found in wanted:
                    leases.enter_context(self._snapshots.lease(found.record().image.chain_ids))
                    leases.enter_context(self.content.lease(found.record().blobs(layers=True)))
                async with self._syncs.ahead():
                    for _, found in wanted:
                        await self._prepare(found, follow_blob, subject)
                for _, found in wanted:
                    await on_thread(self._disk, self.content.put_all, found.documents)
                await self._syncs.done()
                faults.trace("image synced")
                images = await self._commit(wanted)
        except BaseException:
            await self._drop_unneeded()
            raise
        if self._config.discard_unpacked_layers:
            await self._drop_unneeded()
        return images

    async def _prepare(self, found: Resolved, follow_blob: FollowBlob, subject: str) -> None:
        """Make an image's blobs and layers present."""
        record, stack = found.record(), found.stack()
        with self.progress.pull(subject, record.layers, self._present(stack)):
            if record.image.artifact_type:
                await take_all(record.layers, follow_blob)
            await self._snapshots.prepare(stack, follow_blob, subject, whole=not self._config.discard_unpacked_layers)

    @property
    def here(self) -> FollowBlob:
        """For ``keep``: gives blobs that were put into ``content``, and verifies them."""
        return self._downloads.here

    @asynccontextmanager
    async def holding(self, blobs: Collection[Digest]) -> AsyncIterator[None]:
        """Within the block these blobs may be put into ``content``, and stay; afterwards only what an image needs."""
        try:
            with self.content.lease(blobs):
                yield
        finally:
            await self._drop_unneeded()

    def _present(self, stack: Sequence[Layer]) -> set[Digest]:
        """The blobs of layers that are unpacked already."""
        return {layer.descriptor.digest for layer in stack if layer.chain_id in self._snapshots}

    async def _known(self, ref: ImageRef, digest: Digest) -> Image | None:
        """The image of a manifest or index that is here, under the name ``ref`` from now on."""
        here = next((each for each in self._records.values() if digest in each.manifests), None)
        if here is None or not await on_thread(self._disk, self._complete, here):
            return None
        return await self._retag(here.image.id, ref, digest)

    def _complete(self, record: ImageRecord) -> bool:
        """Whether its blobs are here, too: if not, a pull fetches them again."""
        layers = not self._config.discard_unpacked_layers
        if layers and record.image.chain_ids and not record.layers:
            return False
        return all(self.content.size(each) is not None for each in record.blobs(layers=layers))

    async def _retag(self, image_id: ImageId, ref: ImageRef, digest: Digest) -> Image | None:
        """Let ``ref`` name an image that is here; None if it has been removed meanwhile."""
        async with self._lock:
            record = self._records.get(image_id)
            if record is None:
                return None
            await self._change(records.attach(self._records.values(), record, ref, digest))
            return self._records[image_id].image

    @telemetry.spanned("record image")
    async def _commit(self, wanted: Sequence[Wanted]) -> list[Image]:
        """Record images whose content the disk has, all at once."""
        async with self._lock:
            known, changed = dict(self._records), dict[ImageId, ImageRecord]()
            changes: list[Change] = []
            ids, chain_ids = list[ImageId](), list[ChainId]()
            for refs, found in wanted:
                record = found.record()
                record = record.without_layers() if self._config.discard_unpacked_layers else record
                record = records.merged(record, known)
                attached = records.attach_all(known.values(), record, refs, found.digest)
                changed.update({each.image.id: each for each in attached})
                known.update(changed)
                ids.append(record.image.id)
                chain_ids += record.image.chain_ids
            changes += self._snapshots.unrecorded(list(dict.fromkeys(chain_ids)))
            changes += [Delete(records.RETIRED, image_id) for image_id in ids if image_id in self._retired]
            await self._change(changed.values(), changes)
            self._snapshots.recorded(chain_ids)
            for image_id in ids:
                self._retired.pop(image_id, None)
            return [self._records[image_id].image for image_id in ids]

    async def _change(self, changed: Collection[ImageRecord], more: Sequence[Change] = ()) -> None:
        """Record changed images, then let them be seen. Called with the lock held."""
        pinning = [self._pinned(each) for each in changed]
        if more or any(self._records.get(each.image.id) != each for each in pinning):
            await self._store.commit(*more, *(records.encode(each) for each in pinning))
            self._records.update({each.image.id: each for each in pinning})
            self._index()

    # -------------------------------------------------------------- for containers

    def lower_dirs(self, image_id: ImageId) -> tuple[str, ...]:
        """The overlay's lower directories, absolute, the topmost layer first; also of a removed image in use."""
        record = self._records.get(image_id)
        chain_ids = record.image.chain_ids if record is not None else self._retired.get(image_id)
        if chain_ids is None:
            raise NotFound(f"the image {image_id} is not here", hint="pull it first")
        if not all(chain_id in self._snapshots for chain_id in chain_ids):
            raise NotFound(f"layers of the image {image_id} are damaged and being mended", hint="try again")
        return tuple(self._snapshots.path(chain_id) for chain_id in reversed(chain_ids))

    async def lay_out(self, artifact: Image, directory: str) -> None:
        """Make ``directory``, with the artifact's blobs as files in it. Raises NotFound, DataLoss, Internal."""

        def work() -> None:
            manifest = self.content.read(Digest(artifact.id), MANIFEST_LIMIT)
            lay_out(files_of(manifest, artifact.id), self.content, directory)

        await on_thread(self._disk, work)

    def using(self, image_id: ImageId) -> AbstractContextManager[None]:
        """As Uses.of."""
        return self._uses.of(image_id)

    def verbose(self, image: Image) -> dict[str, str]:
        """``info``: JSON with the chain id and the whole image config, as ``crictl inspecti`` shows it."""
        record = self._records.get(image.id)
        if record is None:
            return {}
        return {"info": records.verbose(record).decode()}

    async def filesystem_usage(self) -> list[FilesystemUsage]:
        """What blobs and layers take, the latter from the sizes noted while they were unpacked."""
        used_bytes, inodes = await on_thread(self._disk, self.content.usage)
        used_bytes, inodes = used_bytes + self._snapshots.used_bytes, inodes + self._snapshots.inodes
        return [FilesystemUsage(self._root, used_bytes, inodes, self._clock())]

    async def container_filesystem_usage(self) -> list[FilesystemUsage]:
        """What the containers' disk holds, if it is another than the images'; of all that is on it, as statvfs(3) tells
        without a walk."""
        containers = os.path.join(os.path.dirname(self._root), "containers")
        found = await on_thread(self._disk, usage.of_another_disk, containers, self._root)
        return [] if found is None else [FilesystemUsage(containers, *found, self._clock())]

    # ------------------------------------------------------------- check and mend

    async def check(self, *, deep: bool = False, repair: bool = False) -> list[Trouble]:
        """What of the store is not as it should be, as it was before it was repaired. ``deep`` reads every byte."""
        retired = tuple(itertools.chain(*self._retired.values()))
        layers = not self._config.discard_unpacked_layers
        recorded = Recorded(tuple(self._records.values()), self._snapshots.ready, retired, layers)
        directory = os.path.join(self._root, "layers")
        stop = threading.Event()
        looked = functools.partial(look, recorded, self.content, directory, deep=deep, stop=stop)
        found = await on_thread(self._disk, looked, stop=stop)
        found = [trouble for trouble in found if self._stands(trouble, recorded)]
        if repair:
            await self._repair(found)
        return found

    def _stands(self, trouble: Trouble, recorded: Recorded) -> bool:
        """Whether it is still so: images come and go while the disk is looked at."""
        if not trouble.images:
            return not self._wanted(trouble)
        if not any(ImageId(each) in self._records for each in trouble.images):
            return False
        chain_id = ChainId(trouble.subject)
        return trouble.kind is not Kind.LAYER or self._snapshots.ready.get(chain_id) == recorded.snapshots.get(chain_id)

    def _wanted(self, trouble: Trouble) -> bool:
        """Whether what looked orphaned belongs to a pull that was under way or has ended meanwhile."""
        if trouble.kind is Kind.BLOB:
            digest = Digest(trouble.subject)
            return digest in self._needed_blobs(self._records.values()) or self.content.leased(digest)
        if trouble.kind is Kind.LAYER:
            chain_id = ChainId(trouble.subject)
            return self._snapshots.leased(chain_id) or chain_id in self._needed_layers()
        return self._snapshots.claims(os.path.basename(trouble.subject))

    async def _repair(self, found: Iterable[Trouble]) -> None:
        """Delete what is damaged and what is orphaned, then make again what can be made."""
        changes, blobless = list[Change](), set[str]()
        directories = []
        for trouble in found:
            if trouble.kind is Kind.DIRECTORY:
                directories += [] if self._wanted(trouble) else [trouble.subject]
            elif not trouble.images:
                continue  # it goes with all that nobody needs
            elif trouble.kind is Kind.BLOB:
                if await self._drop_damaged(Digest(trouble.subject)):
                    blobless.update(trouble.images)
            elif self._uses.all().intersection(trouble.images) or self._snapshots.leased(ChainId(trouble.subject)):
                log.warning("a damaged layer is in use: remove the containers first", layer=trouble.subject)
            elif (chain_id := ChainId(trouble.subject)) in self._snapshots:
                directories.append(self._snapshots.path(chain_id))
                self._snapshots.forget(chain_id)
                changes.append(Delete(RECORD, chain_id))
        await self._reconcile(changes, blobless)
        for directory in directories:
            await on_thread(self._disk, remove_tree, directory)

    async def _drop_damaged(self, digest: Digest) -> bool:
        """Delete a blob unless it is sound by now, or on its way; whether it is missing then."""
        if await on_thread(self._disk, self.content.intact, digest) or self.content.leased(digest):
            return False
        await on_thread(self._disk, delete_files, self.content.take_unneeded((), [digest]))
        return True

    async def _reconcile(self, changes: Sequence[Change], blobless: Collection[str] = ()) -> None:
        """Unpack lost layers again, from their blobs; forget images for which that can't be, and what nobody needs.

        ``blobless`` images, some of whose blobs are lost, stay if they can be run.
        """
        if changes:
            await self._store.commit(*changes)
        for record in list(self._records.values()):
            chain_ids = record.image.chain_ids
            with self._snapshots.lease(chain_ids), self.content.lease(record.blobs(layers=True)):
                failure = await self._mend(record)
                async with self._lock:
                    if record.image.id in self._records:  # else it was removed meanwhile
                        await self._record_mended(record.image.id, failure, blobless)
        self._index()
        await self._drop_unneeded()

    async def _mend(self, record: ImageRecord) -> CriError | None:
        """Unpack what is lost of an image, and leased; why that can't be, if its blobs are gone, too."""
        if all(chain_id in self._snapshots for chain_id in record.image.chain_ids):
            return None
        name = (*record.image.repo_tags, record.image.id)[0]
        try:
            stack = (await on_thread(self._disk, self.kept, record)).stack()
            await self._snapshots.prepare(stack, self._downloads.here, name, whole=False)
            await self._syncs.done()
        except CriError as error:
            return error
        log.info("layers unpacked again", image=name)
        return None

    async def _record_mended(self, image_id: ImageId, failure: CriError | None, blobless: Collection[str]) -> None:
        """Called with the lock held."""
        record = self._records[image_id]
        if failure is not None:
            log.warning("image has lost layers and is forgotten: pull it again", image_id=image_id, why=str(failure))
            await self._forget(record.image)
            return
        changes: list[Change] = self._snapshots.unrecorded(record.image.chain_ids)
        if image_id in blobless:
            log.warning("image has lost blobs: it runs, to export it pull it again", image_id=image_id)
            record = replace(record, layers=())
            changes.append(records.encode(record))
        if changes:
            await self._store.commit(*changes)
            self._snapshots.recorded(record.image.chain_ids)
            self._records[image_id] = record

    def kept(self, record: ImageRecord) -> Resolved:
        """An image's manifest and config, from the blobs that are kept. Blocks. Raises NotFound, DataLoss."""
        for digest in record.manifests:
            content = self.content.read(digest, MANIFEST_LIMIT)
            document = parse_manifest(content, "", record.image.id)
            if not isinstance(document, Manifest):
                continue
            if record.image.artifact_type and digest == Digest(record.image.id):
                return Resolved(digest, {digest: content}, document)
            if document.config.digest == Digest(record.image.id):
                documents = {digest: content, document.config.digest: record.config_file}
                return Resolved(digest, documents, document, parse_config(record.config_file, record.image.id))
        raise NotFound(f"no manifest of {record.image.id} is here", hint="pull the image again")

    # ------------------------------------------------------------ look and remove

    def list(self, ref: str = "") -> list[Image]:
        """All images, or the one that ``ref`` finds."""
        if ref:
            found = self.find(ref)
            return [found] if found is not None else []
        return [record.image for record in self._records.values()]

    def find(self, ref_or_id: str) -> Image | None:
        """By tag, repo digest, id with or without ``sha256:``, or an id prefix that fits one image only."""
        for name in self._candidates(ref_or_id):
            if (image_id := self._names.get(name)) is not None:
                return self._records[image_id].image
        prefixed = records.by_prefix(self._records, ref_or_id)
        return self._records[prefixed].image if prefixed is not None else None

    def _candidates(self, ref_or_id: str) -> Sequence[str]:
        """The exact names to look for: also what registries.conf takes a short name for, if that can be read."""
        try:
            meant = [str(ref) for ref in self._registries.candidates(ref_or_id)]
        except CriError:  # no ref, or a file that pulls complain of
            meant = []
        return [name for text in dict.fromkeys((*meant, ref_or_id)) for name in records.candidates(text)]

    async def remove(self, ref_or_id: str) -> None:
        """Remove an image under all its names; an unknown one is fine. Layers in use stay until ``collect``."""
        async with self._lock:
            image = self.find(ref_or_id)
            if image is None:
                return
            await self._forget(image)
        await self._drop_unneeded()

    async def _forget(self, image: Image) -> None:
        """Drop its record, but keep in mind what containers use. Called with the lock held."""
        changes: list[Change] = [Delete(records.IMAGE, image.id)]
        in_use = image.id in self._uses.all()
        if in_use:
            changes.append(records.encode_retired(image.id, image.chain_ids))
        await self._store.commit(*changes)
        del self._records[image.id]
        if in_use:
            self._retired[image.id] = image.chain_ids
        self._index()

    async def tag(self, ref_or_id: str, tag: str) -> str:
        """Let a further tag name an image that is here; returns it in full. Raises NotFound, InvalidArgument."""
        parsed = parse_ref(tag)
        if not parsed.tagged:
            raise InvalidArgument(f"{tag} is no tag", hint="give NAME:TAG, without a digest")
        async with self._lock:
            record = self.record(ref_or_id)
            await self._change(records.tag(self._records.values(), record, parsed.tagged))
        return parsed.tagged

    async def untag(self, ref: str) -> None:
        """Take a tag away; the last name takes the image along, and so does its id. Raises NotFound."""
        async with self._lock:
            record = self.record(ref)
            named = [name for name in records.candidates(ref) if name in record.image.repo_tags]
            others = {*record.image.repo_tags} - {*named}
            if named and others:
                await self._change([records.untag(record, named)])
                return
        await self.remove(record.image.id)

    def record(self, ref_or_id: str) -> ImageRecord:
        """What ``find`` finds, with all that is remembered of it. Raises NotFound."""
        image = self.find(ref_or_id)
        if image is None:
            raise NotFound(f"there is no image {ref_or_id!r}", hint="cri-py image ls lists those that are here")
        return self._records[image.id]

    def config_file(self, image: Image) -> bytes:
        """The image's config, as its registry served it."""
        return self._records[image.id].config_file

    async def collect(self) -> None:
        """Drop the layers of removed images that no container uses any more."""
        if not self._retired:
            return
        async with self._lock:
            in_use = self._uses.all()
            unused = [image_id for image_id in self._retired if image_id not in in_use]
            if not unused:
                return
            await self._store.commit(*(Delete(records.RETIRED, image_id) for image_id in unused))
            for image_id in unused:
                del self._retired[image_id]
        await self._drop_unneeded()

    async def _drop_unneeded(self) -> None:
        """Delete layers that neither an image, a retired image nor a pull needs: the record first, then the files.

        Blobs go with the image, or with the pull that wanted them: those of retired images are of no use any more.
        """
        listed = await on_thread(self._disk, self.content.digests)
        files, directories = list[str](), list[str]()
        try:
            async with self._lock:
                needed = self._needed_layers().union(*self._retired.values())
                taken = self._snapshots.take_unneeded(needed)
                files += self.content.take_unneeded(self._needed_blobs(self._records.values()), listed)
                directories += taken.unrecorded
                if taken.recorded:
                    await self._drop_records(taken)
                    directories += [self._snapshots.directory(each) for each in taken.recorded.values()]
        finally:  # on a disk so full that no record can be written, what makes room goes all the same
            await on_thread(self._disk, delete_files, files)
            await on_thread(self._disk, self.content.drop_old_partials)
            for directory in directories:
                await on_thread(self._disk, remove_tree, directory)

    async def _drop_records(self, taken: Taken) -> None:
        try:
            await self._store.commit(*(Delete(RECORD, chain_id) for chain_id in taken.recorded))
        except CriError:
            self._snapshots.put_back(taken)
            raise

    def _needed_layers(self) -> set[ChainId]:
        return set(itertools.chain(*(record.image.chain_ids for record in self._records.values())))

    def _needed_blobs(self, recorded: Iterable[ImageRecord]) -> set[Digest]:
        layers = not self._config.discard_unpacked_layers
        return set(itertools.chain(*(record.blobs(layers=layers) for record in recorded)))

    def _index(self) -> None:
        self._names = {
            name: image_id for image_id, record in self._records.items() for name in records.names_of(record.image)
        }

    def _pinned(self, record: ImageRecord) -> ImageRecord:
        pinned = records.pinned(record.image, self._config.pinned)
        return replace(record, image=replace(record.image, pinned=pinned))
