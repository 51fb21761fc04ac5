"""Content-addressed blobs: manifests, configs and layers as registries serve them, each in a file named by its digest.

    blobs/sha256/HEX            whole and verified
    blobs/partial/sha256-HEX    on its way; whatever lies here is hashed again before anybody trusts it

A blob gets its place by a rename after its digest was verified. That says nothing about a power cut, so a file counts
in the next life only if a record names it, and records are committed after ``sync``: ``settle`` moves all others back
to the partial ones, where a later pull takes up what is good of them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, Final

from cri_py.errors import CriError, DataLoss, Internal, NotFound, ResourceExhausted
from cri_py.images.compression import Source
from cri_py.kernel.syscalls import syncfs
from cri_py.model import Digest

ALGORITHMS: Final = ("sha256", "sha384", "sha512")
PARTIAL_AGE_S: Final = 86_400.0  # what nobody took up for so long is dropped
_PIECE: Final = 1 << 20
_PARTIAL: Final = "partial"
_PARTIAL_NAME: Final = re.compile(r"sha(256|384|512)-[0-9a-f]+")


class Content:
    """All blobs below ``directory``. Methods block on the disk, but for leases, which belong to the event loop."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._leases: Counter[Digest] = Counter()

    def settle(self, recorded: Collection[Digest]) -> None:
        """Begin a life: make the directories and keep what ``recorded`` names; all else is no longer whole."""
        for name in (*ALGORITHMS, _PARTIAL):
            os.makedirs(os.path.join(self._directory, name), mode=0o700, exist_ok=True)
        for digest in self.digests():
            if digest not in recorded:
                os.replace(self.path(digest), self.partial(digest))
        for entry in os.scandir(os.path.join(self._directory, _PARTIAL)):
            if not _PARTIAL_NAME.fullmatch(entry.name):
                os.unlink(entry.path)  # half written by another way than a pull, or about to be removed
        self.drop_old_partials()

    # ------------------------------------------------------------------ places

    def path(self, digest: Digest) -> str:
        """Where the blob is or would be."""
        algorithm, _, hexadecimal = digest.partition(":")
        return os.path.join(self._directory, algorithm, hexadecimal)

    def partial(self, digest: Digest) -> str:
        """Where what has come of the blob is kept until it is whole."""
        return os.path.join(self._directory, _PARTIAL, digest.replace(":", "-"))

    # -------------------------------------------------------------------- look

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob is here, with ``size`` bytes."""
        return self.size(digest) == size

    def size(self, digest: Digest) -> int | None:
        """In bytes; None if it is not here."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            return None

    def digests(self) -> list[Digest]:
        """Of all blobs that are here; files that are named otherwise are not counted."""
        found: list[Digest] = []
        for algorithm in ALGORITHMS:
            with contextlib.suppress(FileNotFoundError):
                names = sorted(os.listdir(os.path.join(self._directory, algorithm)))
                length = hashlib.new(algorithm).digest_size * 2
                found += [Digest(f"{algorithm}:{name}") for name in names if len(name) == length]
        return found

    def usage(self) -> tuple[int, int]:
        """What all blobs take on disk, partial ones too: bytes and inodes."""
        used, inodes = 0, 0
        for name in (*ALGORITHMS, _PARTIAL):
            for entry in os.scandir(os.path.join(self._directory, name)):
                with contextlib.suppress(FileNotFoundError):
                    used += entry.stat().st_blocks * 512
                    inodes += 1
        return used, inodes

    def open(self, digest: Digest) -> BinaryIO:
        """The blob for reading; it stays readable if it is removed meanwhile. Raises NotFound."""
        try:
            return open(self.path(digest), "rb")
        except FileNotFoundError:
            raise NotFound(f"the blob {digest} is not here", hint="pull the image again") from None

    def read(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified. Raises NotFound, or DataLoss if it is damaged or longer than ``limit`` bytes."""
        with self.open(digest) as file:
            content = file.read(limit + 1)
        algorithm, _, expected = digest.partition(":")
        if len(content) > limit or hashlib.new(algorithm, content).hexdigest() != expected:
            raise DataLoss(f"the blob {self.path(digest)} is damaged", hint="run `cri-py image check --repair`")
        return content

    def intact(self, digest: Digest, go_on: Callable[[], object] = lambda: None) -> bool:
        """Whether the blob is here and hashes to its name: reads all of it, unless ``go_on`` raises between two MiB."""
        try:
            with self.open(digest) as file:
                algorithm, _, expected = digest.partition(":")
                hasher = hashlib.new(algorithm)
                while piece := file.read(_PIECE):
                    go_on()
                    hasher.update(piece)
                return hasher.hexdigest() == expected
        except NotFound:
            return False

    def verify(self, digest: Digest) -> None:
        """Read all of a blob. Raises NotFound, or DataLoss if it is not what its name says."""
        self.open(digest).close()
        if not self.intact(digest):
            raise DataLoss(f"the blob {self.path(digest)} is damaged", hint="pull the image again")

    # ------------------------------------------------------------------- change

    def put(self, digest: Digest, content: bytes) -> None:
        """Keep a blob that was verified by the caller."""
        self._write(digest, iter((content,)))

    def put_all(self, contents: Mapping[Digest, bytes]) -> None:
        """The same for several."""
        for digest, content in contents.items():
            self.put(digest, content)

    def put_file(self, digest: Digest, source: Source) -> int:
        """Keep what ``source`` holds from where it stands to its end; returns the size in bytes.

        Raises DataLoss if it is not ``digest``, ResourceExhausted if the disk is full.
        """
        algorithm, _, expected = digest.partition(":")
        hasher = hashlib.new(algorithm)

        def hashed() -> Iterator[bytes]:
            while piece := source.read(_PIECE):
                hasher.update(piece)
                yield piece
            if hasher.hexdigest() != expected:
                raise DataLoss(f"what should be {digest} is {algorithm}:{hasher.hexdigest()}")

        return self._write(digest, hashed())

    def keep(self, digest: Digest, path: str) -> None:
        """Give the verified file ``path``, on the same filesystem, the place of its blob. Raises ResourceExhausted."""
        try:
            os.replace(path, self.path(digest))
        except OSError as error:
            raise refused(self.path(digest), error) from error

    def remove(self, digest: Digest) -> None:
        """Delete a blob and what lies of it among the partial ones; missing is fine."""
        for path in (self.path(digest), self.partial(digest)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def drop_partial(self, digest: Digest) -> None:
        """Delete what has come of a blob; missing is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial(digest))

    def drop_old_partials(self) -> None:
        """Delete what has come of blobs that nobody asked for any more; what is leased is about to be taken up."""
        oldest = time.time() - PARTIAL_AGE_S
        for entry in os.scandir(os.path.join(self._directory, _PARTIAL)):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < oldest and not self.leased(Digest(entry.name.replace("-", ":"))):
                    os.unlink(entry.path)

    def sync(self) -> None:
        """Bring all blobs to the disk, and whatever else its filesystem holds. Raises Internal if the disk fails."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        except OSError as error:
            raise Internal(f"{self._directory} can't be synced: {error.strerror}", hint="check the disk") from error
        finally:
            os.close(fd)

    def _write(self, digest: Digest, pieces: Iterator[bytes]) -> int:
        temporary = f"{self.partial(digest)}.{os.urandom(4).hex()}"
        try:
            with open(temporary, "xb", opener=_private) as file:
                file.writelines(pieces)
                size = file.tell()
            self.keep(digest, temporary)
        except OSError as error:
            raise refused(temporary, error) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        return size

    # ------------------------------------------------------------------- leases

    @contextmanager
    def lease(self, digests: Collection[Digest]) -> Iterator[None]:
        """Within the block, none of these counts as unneeded, whether it is here already or not."""
        self._leases.update(digests)
        try:
            yield
        finally:
            self._leases.subtract(digests)
            self._leases += Counter()  # drops what nobody leases any more

    def leased(self, digest: Digest) -> bool:
        return digest in self._leases

    def take_unneeded(self, needed: Collection[Digest], listed: Collection[Digest]) -> list[str]:
        """Take what of ``listed`` is neither needed nor leased from its place; returns the files, to be deleted.

        Belongs to the event loop: who leases a blob and then finds it must not lose it, and a rename takes no time.
        """
        gone = []
        for digest in listed:
            if digest not in needed and digest not in self._leases:
                name = f"{self.partial(digest)}.{os.urandom(4).hex()}"
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.path(digest), name)
                    gone.append(name)
        return gone


def refused(path: str, error: OSError) -> CriError:
    """What it means that the disk did not take ``path``: ResourceExhausted if it is full, else Internal."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        hint = "free space below the root directory"
        return ResourceExhausted(f"{path} can't be written: {error.strerror}", hint=hint)
    return Internal(f"{path} can't be written: {error.strerror}", hint="check the disk")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def delete_files(paths: Iterable[str]) -> None:
    """Delete what was taken; missing is fine."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
