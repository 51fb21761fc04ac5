"""What containers wrote into their own layers: bytes and inodes, counted beside the calls that ask for them.

Nothing tells the size of a tree but a walk, unless the filesystem keeps quotas per project. So no call walks: it
answers the last count with its time, and thereby asks for the next one. One thread walks, one tree after the other, and
takes at most a share of a core, in slices, whatever the trees' sizes: a tree of a million files is counted late, not
dearly. Where nobody asks, nothing walks: who asks first waits a moment for the first count. A layer whose container has
ended is counted once more and then known.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

import structlog

from cri_py.model import Container, ContainerId, Exited, FilesystemUsage, Lost, Nanos
from cri_py.pods.places import Places

log = structlog.get_logger()
_SHARE: Final = 0.05  # of a core, at most
_SLICE_S: Final = 0.002  # as long as the walk keeps the interpreter from others
_FILES_A_LOOK: Final = 128  # entries between two looks at the clock
_PATIENCE_S: Final = 0.05  # of a call for counts that were never made
_BLOCK_BYTES: Final = 512  # the unit of st_blocks (stat(2))


class Layers:
    """The last count of each container's layer, and the walks that make it."""

    def __init__(self, places: Places, clock: Callable[[], Nanos], period_s: float) -> None:
        self._places = places
        self._clock = clock
        self._period_ns = int(period_s * 1e9)
        self._counted: dict[ContainerId, FilesystemUsage] = {}
        self._awaited: set[ContainerId] = set()  # no call waits a second time for one that takes long
        self._wanted: dict[ContainerId, None] = {}  # in the order in which they were asked for
        self._woken = asyncio.Event()
        self._news = asyncio.Condition()  # a walk has ended
        self._closing = False
        self._rest_s = 0.0  # what the thread owes to others for its last walk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layers")

    def of(self, container: Container) -> FilesystemUsage | None:
        """The last count; None before the first. Asks for another one if it is due."""
        counted = self._counted.get(container.id)
        if counted is None or self._due(container, counted):
            self.want(container.id)
        return counted

    def _due(self, container: Container, counted: FilesystemUsage) -> bool:
        if isinstance(container.state, Exited | Lost):
            return counted.at <= container.state.finished_at
        return self._clock() - counted.at >= self._period_ns

    def want(self, container_id: ContainerId) -> None:
        """Have it counted as soon as its turn comes."""
        self._wanted[container_id] = None
        self._woken.set()

    async def first(self, containers: Iterable[Container]) -> None:
        """Wait for those that were never counted, but no longer than a call may take."""
        known = self._counted.keys() | self._awaited
        missing = [container.id for container in containers if container.id not in known]
        for container_id in missing:
            self.want(container_id)
        self._awaited.update(missing)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S), self._news:
                await self._news.wait_for(lambda: self._wanted.keys().isdisjoint(missing))

    def forget(self, container_id: ContainerId) -> None:
        """The container is gone."""
        self._wanted.pop(container_id, None)
        self._counted.pop(container_id, None)
        self._awaited.discard(container_id)

    async def run(self) -> None:
        """Count what is wanted, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._wanted:
                await self._count(next(iter(self._wanted)))
                async with self._news:
                    self._news.notify_all()

    async def _count(self, container_id: ContainerId) -> None:
        at = self._clock()  # what is written during the walk may be missing in it
        loop = asyncio.get_running_loop()
        upper = f"{self._places.writable(container_id)}/upper"
        found = await loop.run_in_executor(self._thread, self._measure, upper)
        if self._wanted.pop(container_id, "gone") == "gone":
            return  # removed meanwhile
        if found is not None:
            self._counted[container_id] = FilesystemUsage(self._places.containers, *found, at)

    def _measure(self, upper: str) -> tuple[int, int] | None:
        time.sleep(self._rest_s)
        begun = time.thread_time()
        try:
            return _sum(_paced(entries(upper), lambda: self._closing))
        except OSError as error:
            log.debug("a layer could not be counted", path=upper, cause=str(error))
            return None
        finally:
            self._rest_s = min(time.thread_time() - begun, _SLICE_S) * (1 / _SHARE - 1)

    def close(self) -> None:
        """Ends a walk that is under way."""
        self._closing = True
        self._thread.shutdown(wait=True)


def _sum(found: Iterator[os.stat_result]) -> tuple[int, int]:
    """Bytes on the disk and inodes; of a file with several names only the first counts."""
    used = inodes = 0
    linked: set[tuple[int, int]] = set()
    for each in found:
        if each.st_nlink > 1 and not stat.S_ISDIR(each.st_mode):
            key = (each.st_dev, each.st_ino)
            if key in linked:
                continue
            linked.add(key)
        used += each.st_blocks * _BLOCK_BYTES
        inodes += 1
    return used, inodes


def _paced(found: Iterator[os.stat_result], closing: Callable[[], bool]) -> Iterator[os.stat_result]:
    """As it comes, with pauses, so that no more than ``_SHARE`` of a core is spent; stops when ``closing``."""
    begun = time.thread_time()
    for number, each in enumerate(found, 1):
        yield each
        if number % _FILES_A_LOOK:
            continue
        worked = time.thread_time() - begun
        if worked >= _SLICE_S:
            if closing():
                raise InterruptedError("the daemon ends")
            time.sleep(worked * (1 / _SHARE - 1))
            begun = time.thread_time()


def entries(top: str) -> Iterator[os.stat_result]:
    """``top`` and all below it. What goes meanwhile is left out; a directory that moves meanwhile is an OSError.

    The tree belongs to a container: paths may be longer than PATH_MAX, nested deeper than there are descriptors, and
    replaced by links at any time. So one directory is open at a time, names are looked up in it without following
    links, and the way back is ``..``, checked to lead where the walk came from.
    """
    current = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield os.fstat(current)
        above: list[tuple[tuple[int, int], list[str]]] = []  # where the way back leads, and what is left to do there
        pending = yield from _listed(current)
        while True:
            if pending:
                below = _enter(current, pending.pop())
                if below is None:
                    continue
                above.append((_identity(current), pending))
                os.close(current)
                current = below
                pending = yield from _listed(current)
            elif above:
                came_from, pending = above.pop()
                parent = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = parent
                if _identity(current) != came_from:
                    raise InterruptedError(f"a directory below {top} was moved")
            else:
                return
    finally:
        os.close(current)


def _listed(directory: int) -> Generator[os.stat_result, None, list[str]]:
    """The directory's entries; returns the names of those that are directories themselves."""
    names = []
    with os.scandir(directory) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                yield entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
    return names


def _enter(directory: int, name: str) -> int | None:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        return None  # gone, or another file by now


def _identity(directory: int) -> tuple[int, int]:
    found = os.fstat(directory)
    return found.st_dev, found.st_ino
