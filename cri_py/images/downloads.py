"""Blobs on their way: a file each, fetched once for all who need it and gone with the last of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from cri_py.errors import Internal, ResourceExhausted
from cri_py.images.flights import Flights, on_thread
from cri_py.images.manifest import Descriptor
from cri_py.images.registry import Repository
from cri_py.model import Digest

BATCH_BYTES: Final = 1 << 20  # what is worth a hop to a thread


class BlobFile:
    """A file that takes a blob's pieces and hashes them, on a thread: the disk may be slow."""

    def __init__(self, path: str, executor: Executor) -> None:
        self._path = path
        self._executor = executor
        self._fd = -1
        self._hasher = hashlib.sha256()
        self._batch: list[bytes] = []
        self._batched = 0
        self._taken = 0

    @property
    def offset(self) -> int:
        """How many bytes were taken since the last restart, written or not yet."""
        return self._taken

    async def restart(self, algorithm: str) -> None:
        self.close()
        self._taken = 0
        self._hasher = hashlib.new(algorithm)
        self._batch, self._batched = [], 0
        self._fd = await on_thread(self._executor, self._create)

    async def write(self, piece: bytes) -> None:
        self._batch.append(piece)
        self._batched += len(piece)
        self._taken += len(piece)
        if self._batched >= BATCH_BYTES:
            await self._flush()

    async def hexdigest(self) -> str:
        await self._flush()
        return self._hasher.hexdigest()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _create(self) -> int:
        # A new inode: what a cancelled attempt still writes must not end up in this one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def _flush(self) -> None:
        batch, self._batch, self._batched = b"".join(self._batch), [], 0
        try:
            await on_thread(self._executor, self._put, batch)
        except OSError as error:
            hint = "free space below the root directory"
            raise ResourceExhausted(f"{self._path} can't be written: {error.strerror}", hint=hint) from error

    def _put(self, batch: bytes) -> None:
        self._hasher.update(batch)
        view = memoryview(batch)
        while view:
            view = view[os.write(self._fd, view) :]


@dataclass(slots=True)
class _Blob:
    path: str
    holders: int = 0
    ready: bool = False


class Downloads:
    """All blobs that are being fetched into ``directory``, at most ``parallel`` at once."""

    def __init__(self, directory: str, parallel: int, executor: Executor) -> None:
        self._directory = directory
        self._executor = executor
        self._turns = asyncio.Semaphore(parallel)
        self._flights: Flights[str, None] = Flights()
        self._blobs: dict[Digest, _Blob] = {}
        self._numbers = itertools.count()

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, repository: Repository) -> AsyncIterator[str]:
        """The path of a verified blob, for as long as the block runs."""
        blob = self._blobs.get(descriptor.digest)
        if blob is None:
            name = f"{next(self._numbers)}-{descriptor.digest.replace(':', '-')}"
            blob = self._blobs[descriptor.digest] = _Blob(os.path.join(self._directory, name))
        blob.holders += 1
        try:
            if not blob.ready:
                await self._flights.join(blob.path, lambda: self._fetch(descriptor, repository, blob))
            yield blob.path
        finally:
            blob.holders -= 1
            if not blob.holders:
                del self._blobs[descriptor.digest]
                await on_thread(self._executor, _remove, blob.path)

    async def _fetch(self, descriptor: Descriptor, repository: Repository, blob: _Blob) -> None:
        async with self._turns:
            if blob.ready:  # by a flight that ended while we waited for our turn
                return
            file = BlobFile(blob.path, self._executor)
            try:
                await repository.blob(descriptor, file)
            finally:
                file.close()
            blob.ready = True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Internal(f"the fetched blob {path} can't be removed: {error.strerror}") from error
