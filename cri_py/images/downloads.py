"""Blobs on their way: a file each, fetched once for all who need it, readable while it grows, kept when it is cut.

What has come of a blob stays in its partial file when the download fails or the daemon dies; the next who needs it goes
on from there, after everything in the file was hashed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from cri_py import telemetry
from cri_py.errors import DataLoss, Internal, ResourceExhausted
from cri_py.images.content import Content, refused
from cri_py.images.flights import Flights, on_thread
from cri_py.images.manifest import Descriptor
from cri_py.images.registry import Repository
from cri_py.images.unpacking import Ready
from cri_py.kernel import faults
from cri_py.model import Digest

BATCH_BYTES: Final = 1 << 20  # what is worth a hop to a thread
PIECES_MAX: Final = 512  # writev(2) takes 1,024
Watch = Callable[[Digest, int], None]


def unwatched(_: Digest, __: int) -> None:
    """Nobody wants to know how far it is."""


class BlobFile:
    """A file that takes a blob's pieces and hashes them, on a thread: the disk may be slow.

    ``on_change`` is told after each write how many bytes can be read, and 0 after a restart, which makes a new file.
    """

    def __init__(self, path: str, algorithm: str, executor: Executor, on_change: Callable[[int], None]) -> None:
        self._path = path
        self._executor = executor
        self._on_change = on_change
        self._fd = -1
        self._hasher = hashlib.new(algorithm)
        self._batch: list[bytes] = []
        self._batched = 0
        self._taken = 0

    @property
    def offset(self) -> int:
        """How many bytes it holds, written or not yet."""
        return self._taken

    async def open(self) -> None:
        """Take up what an earlier attempt left."""
        self._taken = await on_thread(self._executor, self._take_up)
        if self._taken:
            self._on_change(self._taken)

    async def restart(self, algorithm: str) -> None:
        self.close()
        self._on_change(0)  # before the name means another file
        self._taken = 0
        self._hasher = hashlib.new(algorithm)
        self._batch, self._batched = [], 0
        self._fd = await on_thread(self._executor, self._create)

    async def write(self, piece: bytes) -> None:
        self._batch.append(piece)
        self._batched += len(piece)
        self._taken += len(piece)
        if self._batched >= BATCH_BYTES or len(self._batch) >= PIECES_MAX:
            await self._flush()

    async def hexdigest(self) -> str:
        await self._flush()
        return self._hasher.hexdigest()

    async def settle(self) -> None:
        """Write what has come, so that the next attempt has it, and close."""
        try:
            if self._fd >= 0:
                await self._flush()
        finally:
            self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _take_up(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            taken = 0
            while piece := os.read(self._fd, BATCH_BYTES):
                self._hasher.update(piece)
                taken += len(piece)
            return taken
        return 0

    def _create(self) -> int:
        # A new inode: what a cancelled attempt still writes must not end up in this one, and who reads the old one
        # must not see this one's bytes.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise refused(self._path, error) from error

    async def _flush(self) -> None:
        batch, self._batch, self._batched = self._batch, [], 0
        if not batch:
            return
        try:
            await on_thread(self._executor, self._put, batch)
        except OSError as error:
            raise refused(self._path, error) from error
        self._on_change(self._taken)

    def _put(self, batch: Sequence[bytes]) -> None:
        for piece in batch:
            self._hasher.update(piece)
        written = os.writev(self._fd, batch)
        if written < sum(len(piece) for piece in batch):
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.write(self._fd, rest) :]


class _Blob:
    """How far a blob is, for all who follow it. It is at the first of ``places`` that exists."""

    def __init__(self, places: tuple[str, str]) -> None:
        self.places = places
        self.holders = 0
        self.available = 0
        self.whole = False
        self.generation = 0  # counts how often it began anew, in a new file
        self._changed = asyncio.Event()

    def change(self, available: int) -> None:
        self.generation += self.available > available
        self.available = available
        self.wake()

    def finish(self, size: int) -> None:
        self.available, self.whole = size, True
        self.wake()

    def wake(self) -> None:
        """Whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        await self._changed.wait()

    def take_fd(self) -> int:
        for place in self.places:
            try:
                return os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # it has got its name in this moment
            except OSError as error:
                raise Internal(f"{place} can't be read: {error.strerror}") from error
        raise Internal(f"the blob {self.places[1]} has vanished", hint="pull again")


class Restarted(Exception):
    """The blob began anew: read it again from the start."""


class Following:
    """A blob while somebody needs it, to be read while it grows."""

    def __init__(self, blob: _Blob, fetching: asyncio.Future[None]) -> None:
        self._blob = blob
        self._fetching = fetching
        self._generation = blob.generation

    @property
    def state(self) -> Ready:
        return Ready(self._blob.available, self._blob.whole)

    def rewind(self) -> None:
        """Follow it from its new start."""
        self._generation = self._blob.generation

    def take_fd(self) -> int:
        """A descriptor at the blob's start, which the caller owns; raises Restarted."""
        self._check()
        return self._blob.take_fd()

    async def beyond(self, position: int) -> Ready:
        """Once more than ``position`` bytes, or all, can be read. Raises Restarted, or what the download ends with."""
        while True:
            if self._fetching.done():
                self._fetching.result()
            self._check()
            if self._blob.whole or self._blob.available > position:
                return self.state
            await self._blob.changed()

    async def whole(self) -> None:
        """Once the blob is whole and verified. Raises Restarted, or what the download ends with."""
        await asyncio.shield(self._fetching)
        self._check()

    def _check(self) -> None:
        if self._generation != self._blob.generation:
            raise Restarted


class Downloads:
    """All blobs that are being fetched into ``content``, at most ``parallel`` at once from one registry, so that a slow
    one holds up none but itself.

    ``on_progress`` is told how many bytes of a blob have come.
    """

    def __init__(self, content: Content, parallel: int, executor: Executor, on_progress: Watch = unwatched) -> None:
        self._content = content
        self._executor = executor
        self._on_progress = on_progress
        self._parallel = parallel
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._flights: Flights[Digest, None] = Flights()
        self._blobs: dict[Digest, _Blob] = {}

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, repository: Repository) -> AsyncIterator[Following]:
        """Follow a blob that is here or being fetched, for as long as the block runs. The caller holds a lease."""
        blob = self._blobs.get(descriptor.digest)
        if blob is None:
            places = self._content.partial(descriptor.digest), self._content.path(descriptor.digest)
            blob = self._blobs[descriptor.digest] = _Blob(places)
        blob.holders += 1
        fetching = asyncio.ensure_future(self._ensure(descriptor, repository, blob))
        fetching.add_done_callback(lambda _: blob.wake())
        try:
            yield Following(blob, fetching)
        finally:
            blob.holders -= 1
            if not blob.holders:
                del self._blobs[descriptor.digest]
            fetching.cancel()
            await asyncio.wait([fetching])
            if not fetching.cancelled():
                fetching.exception()  # raised by whom it concerned

    @asynccontextmanager
    async def here(self, descriptor: Descriptor) -> AsyncIterator[Following]:
        """A blob that must be here already. Raises NotFound, or DataLoss if it is damaged."""
        path = self._content.path(descriptor.digest)
        await on_thread(self._executor, self._content.verify, descriptor.digest)
        fetched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        fetched.set_result(None)
        blob = _Blob((path, path))
        blob.finish(descriptor.size)
        yield Following(blob, fetched)

    async def _ensure(self, descriptor: Descriptor, repository: Repository, blob: _Blob) -> None:
        while not blob.whole:
            await self._flights.join(descriptor.digest, lambda: self._fetch(descriptor, repository, blob))

    async def _fetch(self, descriptor: Descriptor, repository: Repository, blob: _Blob) -> None:
        digest, content = descriptor.digest, self._content
        if not await on_thread(self._executor, content.has, digest, descriptor.size):
            turns = self._turns.get(repository.registry) or asyncio.Semaphore(self._parallel)
            self._turns[repository.registry] = turns
            async with turns:
                await self._download(descriptor, repository, blob)
            faults.trace("blob verified")
            await on_thread(self._executor, content.keep, digest, content.partial(digest))
            faults.trace("blob kept")
        blob.finish(descriptor.size)
        self._on_progress(digest, descriptor.size)

    async def _download(self, descriptor: Descriptor, repository: Repository, blob: _Blob) -> None:
        def change(available: int) -> None:
            blob.change(available)
            self._on_progress(descriptor.digest, available)
            faults.trace("blob grown")

        algorithm = descriptor.digest.partition(":")[0]
        file = BlobFile(self._content.partial(descriptor.digest), algorithm, self._executor, change)
        try:
            await file.open()
            with telemetry.TRACING.stage("fetch blob", digest=descriptor.digest):
                await repository.blob(descriptor, file)
        except (DataLoss, ResourceExhausted):
            file.close()  # of no use any more, or in the way of everything else
            change(0)
            await on_thread(self._executor, self._content.drop_partial, descriptor.digest)
            raise
        finally:
            await file.settle()
