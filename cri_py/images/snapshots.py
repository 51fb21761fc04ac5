"""Unpacked layers by chain id: the lower directories of overlay mounts, shared between images.

A directory is whole if and only if its record exists, and the record is committed after the disk has the content:
whatever lies there without a record is a leftover.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from cri_py import telemetry
from cri_py.errors import CriError, DataLoss, Internal, Unimplemented
from cri_py.images.content import refused
from cri_py.images.downloads import Following, Restarted, Watch, unwatched
from cri_py.images.flights import Flights, on_thread
from cri_py.images.layers import Unpacked, adopt
from cri_py.images.manifest import Descriptor
from cri_py.images.records import SIZES_END
from cri_py.images.workers import Workers
from cri_py.kernel import faults
from cri_py.model import ChainId, Digest
from cri_py.state.store import Change, Delete, Put

RECORD: Final = "snapshot"
_DIRECTORY_NAME: Final = re.compile("[0-9a-z]{1,12}")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in its place: ``chain_id`` is that of the stack that ends with it."""

    descriptor: Descriptor
    diff_id: Digest
    chain_id: ChainId


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``directory`` is a short name: mount(2) takes a page of lower paths, and chain ids would fill it soon.

    ``file_bytes`` are the lengths of its files together, -1 in records of before they were counted.
    """

    directory: str
    used_bytes: int
    inodes: int
    file_bytes: int = -1


@dataclass(frozen=True, slots=True)
class Taken:
    """What nobody needs and nobody can get any more: snapshots whose records are still there, and directories."""

    recorded: Mapping[ChainId, Snapshot]
    unrecorded: Sequence[str]


FollowBlob = Callable[[Descriptor], AbstractAsyncContextManager[Following]]


class Snapshots:
    """All snapshots below ``root``, in memory and on disk, unpacked by ``workers``.

    ``on_progress`` is told how many bytes of a layer's blob are unpacked.
    """

    def __init__(self, root: str, workers: Workers, executor: Executor, on_progress: Watch = unwatched) -> None:
        self._root = root
        self._workers = workers
        self._executor = executor
        self._on_progress = on_progress
        self._ready: dict[ChainId, Snapshot] = {}
        self._recorded: set[ChainId] = set()
        self._leases: Counter[ChainId] = Counter()
        self._flights: Flights[ChainId, None] = Flights()
        self._making: set[str] = set()
        self._numbers = itertools.count(1)
        self._spared: frozenset[str] = frozenset()
        self.used_bytes = 0
        self.inodes = 0

    def __contains__(self, chain_id: ChainId) -> bool:
        return chain_id in self._ready

    def path(self, chain_id: ChainId) -> str:
        """The absolute directory of a snapshot that is there."""
        return self.directory(self._ready[chain_id])

    def directory(self, snapshot: Snapshot) -> str:
        """Its absolute directory."""
        return os.path.join(self._root, snapshot.directory)

    def load(self, stored: Mapping[ChainId, Snapshot]) -> list[Change]:
        """Take over the records of an earlier life; returns those to be dropped because their directory is gone."""
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        there = set(os.listdir(self._root))
        lost: list[Change] = []
        for chain_id, snapshot in stored.items():
            if snapshot.directory not in there:
                log.warning("layer is gone from the disk", chain_id=chain_id, directory=self._root)
                lost.append(Delete(RECORD, chain_id))
                continue
            self._add(chain_id, snapshot)
            self._recorded.add(chain_id)
        taken = [int(name, 36) for name in there if _DIRECTORY_NAME.fullmatch(name)]
        self._numbers = itertools.count(max(taken, default=0) + 1)
        return lost

    def sweep(self) -> None:
        """Delete what lies there without a record. Only before the first pull of this life."""
        for leftover in self._nameless():
            log.info("removing an unfinished layer", directory=os.path.join(self._root, leftover))
            remove_tree(os.path.join(self._root, leftover))

    def spare(self) -> None:
        """Instead of ``sweep``, where one of these may have lost its record and lie below a container."""
        self._spared = frozenset(self._nameless())

    def _nameless(self) -> set[str]:
        return set(os.listdir(self._root)) - {each.directory for each in self._ready.values()}

    @property
    def ready(self) -> dict[ChainId, Snapshot]:
        """All that can be used."""
        return dict(self._ready)

    def claims(self, directory: str) -> bool:
        """Whether it is a snapshot, is being filled or is spared."""
        ready = (each.directory for each in self._ready.values())
        return directory in self._making or directory in self._spared or directory in ready

    def forget(self, chain_id: ChainId) -> None:
        """It is damaged: whoever needs it has it unpacked again."""
        snapshot = self._ready.pop(chain_id, None)
        if snapshot is not None:
            self._recorded.discard(chain_id)
            self.used_bytes -= snapshot.used_bytes
            self.inodes -= snapshot.inodes

    @contextmanager
    def lease(self, chain_ids: Collection[ChainId]) -> Iterator[None]:
        """Within the block, none of these is dropped, whether it is there already or not."""
        self._leases.update(chain_ids)
        try:
            yield
        finally:
            self._leases.subtract(chain_ids)
            self._leases += Counter()  # drops what nobody leases any more

    def leased(self, chain_id: ChainId) -> bool:
        return chain_id in self._leases

    async def prepare(self, stack: Sequence[Layer], follow_blob: FollowBlob, subject: str, *, whole: bool) -> None:
        """Unpack what is missing of a stack (the base first), side by side. The caller holds a lease on it.

        ``follow_blob`` gives a layer's blob, be it here or on its way. Raises the first layer's error, and then nothing
        runs on. ``whole``: the blobs of layers that are unpacked already are wanted, too.
        """
        self._workers.warm([each.descriptor.size for each in stack if each.chain_id not in self._ready])
        try:
            async with asyncio.TaskGroup() as group:
                for position in range(len(stack)):
                    group.create_task(self._ensure(stack, position, follow_blob, subject))
                    if whole and stack[position].chain_id in self._ready:
                        group.create_task(_fetch(stack[position], follow_blob))
        except BaseExceptionGroup as failures:
            raise first_of(failures) from failures

    def unrecorded(self, chain_ids: Sequence[ChainId]) -> list[Change]:
        """The records that make these snapshots last, to be committed once the disk has them."""
        missing = [each for each in chain_ids if each not in self._recorded]
        return [Put(RECORD, each, msgspec.json.encode(self._ready[each])) for each in missing]

    def recorded(self, chain_ids: Collection[ChainId]) -> None:
        """Their records are committed."""
        faults.trace("image recorded")
        self._recorded.update(chain_ids)

    def take_unneeded(self, needed: Collection[ChainId]) -> Taken:
        """Forget what is neither needed nor leased. The caller deletes records first, then directories."""
        gone = [each for each in self._ready if each not in needed and each not in self._leases]
        recorded = {each: self._ready[each] for each in gone if each in self._recorded}
        taken = Taken(recorded, [self.path(each) for each in gone if each not in recorded])
        for chain_id in gone:
            self.forget(chain_id)
        return taken

    def put_back(self, taken: Taken) -> None:
        """Their records could not be deleted, so they still count."""
        for chain_id, snapshot in taken.recorded.items():
            if chain_id not in self._ready:
                self._add(chain_id, snapshot)
                self._recorded.add(chain_id)

    def _add(self, chain_id: ChainId, snapshot: Snapshot) -> None:
        self._ready[chain_id] = snapshot
        self.used_bytes += snapshot.used_bytes
        self.inodes += snapshot.inodes

    async def _ensure(self, stack: Sequence[Layer], position: int, follow_blob: FollowBlob, subject: str) -> None:
        chain_id = stack[position].chain_id
        if chain_id not in self._ready:
            await self._flights.join(chain_id, lambda: self._make(stack, position, follow_blob, subject))

    async def _make(self, stack: Sequence[Layer], position: int, follow_blob: FollowBlob, subject: str) -> None:
        layer = stack[position]
        directory = _base36(next(self._numbers))
        path = os.path.join(self._root, directory)
        self._making.add(directory)
        try:
            async with follow_blob(layer.descriptor) as blob:
                what = f"layer {position + 1} of {subject} ({layer.descriptor.digest})"
                with telemetry.TRACING.stage("unpack layer", digest=layer.descriptor.digest):
                    unpacked = await self._unpack(blob, path, layer, lowest=position == 0, subject=what)
            faults.trace("layer unpacked")
            if position:
                await self._ensure(stack, position - 1, follow_blob, subject)
            if position and unpacked.implied:
                lowers = [self.path(each.chain_id) for each in reversed(stack[:position])]
                await on_thread(self._executor, adopt, path, unpacked.implied, lowers)
        except BaseException:
            await on_thread(self._executor, remove_tree, path)
            raise
        finally:
            self._making.discard(directory)
        self._add(layer.chain_id, Snapshot(directory, *unpacked[:3]))

    async def _unpack(self, blob: Following, path: str, layer: Layer, *, lowest: bool, subject: str) -> Unpacked:
        """Unpack while the blob comes; again from the start if it does. Returns only once the blob is verified."""
        digest, size = layer.descriptor.digest, layer.descriptor.size
        while True:
            await on_thread(self._executor, _make_directory, path)
            faults.trace("layer begun")
            try:
                unpacked = await self._workers.unpack(
                    blob,
                    path,
                    size=size,
                    diff_id=layer.diff_id,
                    lowest=lowest,
                    subject=subject,
                    watch=lambda position: self._on_progress(digest, position),
                )
                await blob.whole()
            except Restarted:
                blob.rewind()
            except (DataLoss, Unimplemented):
                if await _stands(blob):
                    raise
            else:
                return unpacked
            await on_thread(self._executor, remove_tree, path)


def decode(put: Put) -> Snapshot:
    """A snapshot from its record. Raises what msgspec raises, or ValueError, for one that was not written so."""
    snapshot = msgspec.json.decode(put.body, type=Snapshot)
    sizes = (snapshot.used_bytes, snapshot.inodes, snapshot.file_bytes + 1)
    if not _DIRECTORY_NAME.fullmatch(snapshot.directory) or not all(0 <= size < SIZES_END for size in sizes):
        raise ValueError(f"{snapshot} is none")
    return snapshot


async def _fetch(layer: Layer, follow_blob: FollowBlob) -> None:
    async with follow_blob(layer.descriptor) as blob:
        while True:
            try:
                return await blob.whole()
            except Restarted:
                blob.rewind()


async def take_all(blobs: Iterable[Descriptor], follow_blob: FollowBlob) -> None:
    """Make an artifact's blobs present; they are kept as they come."""

    async def take(descriptor: Descriptor) -> None:
        async with follow_blob(descriptor) as blob:
            await blob.whole()

    try:
        async with asyncio.TaskGroup() as tasks:
            for descriptor in dict.fromkeys(blobs):
                tasks.create_task(take(descriptor))
    except BaseExceptionGroup as failures:
        raise first_of(failures) from failures


async def _stands(blob: Following) -> bool:
    """Whether an error in what was read is the layer's own fault.

    If the blob turns out to be damaged, that is the error to show; if another host has a sound one, there is none.
    """
    try:
        await blob.whole()
    except Restarted:
        blob.rewind()
        return False
    return True


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path)
        os.chmod(path, 0o755)  # noqa: S103 (a root directory; without umask, and without a set-gid bit from above)
    except OSError as error:
        raise refused(path, error) from error


def remove_tree(path: str) -> None:
    """Delete a directory; a missing one is fine."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Internal(f"{path} can't be removed: {error}") from error


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of those that layers met side by side: one raised on purpose, if any."""
    expected, _ = failures.split(CriError)
    found: BaseException = expected or failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits
