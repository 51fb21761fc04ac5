"""The daemon's end of the processes that unpack: started when a pull needs one, kept a while, killed when in doubt."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, Protocol

import structlog

from cri_py import errors
from cri_py.errors import CriError, Internal
from cri_py.images import unpacking
from cri_py.images.layers import Unpacked
from cri_py.images.unpacking import Done, Failed, Implied, Job, Reached, Ready, Starved

MOST_BY_CORES: Final = 8  # each takes some ten MiB, and one disk is not written to faster by more
IDLE_S: Final = 2.0
SMALL_BYTES: Final = 4 << 20  # unpacked in about the time that a process takes to start…
SPARE_S: Final = 0.05  # …so it waits a little for one that gets free
SILENCE_S: Final = 120.0  # a worker that says nothing for so long, though there is something to do, is killed
DEATH_S: Final = 10.0
PATIENCE_S: Final = 1.0  # for which a worker keeps its turn while its blob does not come
_PROGRAM: Final = "import sys; sys.path[:] = {path!r}; from cri_py.images.worker import run; run(3, {pid})"

log = structlog.get_logger()


class Feed(Protocol):
    """A blob that can be read while it grows."""

    @property
    def state(self) -> Ready: ...

    def take_fd(self) -> int:
        """A new descriptor at the blob's start, which the caller owns."""
        ...

    async def beyond(self, position: int) -> Ready:
        """Once more than ``position`` bytes, or all, can be read. Raises what the download ends with."""
        ...


class _Turn:
    """The right to unpack, given up by who waits for a slow host: two of its layers would hold up all other pulls."""

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._held = False
        self._left_s = PATIENCE_S

    async def take(self) -> None:
        await self._turns.acquire()
        self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._turns.release()

    async def beyond(self, feed: Feed, position: int) -> Ready:
        """As the feed's; short waits, altogether PATIENCE_S, give nothing up."""
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._left_s):
                ready = await feed.beyond(position)
            self._left_s = max(0.0, self._left_s - (time.monotonic() - began))
            return ready
        self._left_s = 0.0
        self.leave()
        ready = await feed.beyond(position)
        await self.take()
        return ready


class Workers:
    """At most ``most`` work at once, 0 being as many as there are cores; those that wait for their blobs are beside
    them, no more than blobs are fetched.

    All methods belong to one event loop.
    """

    def __init__(self, most: int, *, idle_s: float = IDLE_S, silence_s: float = SILENCE_S) -> None:
        self._most = most = most or min(len(os.sched_getaffinity(0)), MOST_BY_CORES)
        self._busy: set[_Worker] = set()
        self._turns = asyncio.Semaphore(most)
        self._idle_s = idle_s
        self._silence_s = silence_s
        self._idle: list[_Worker] = []
        self._rested = asyncio.Event()

    async def unpack(
        self,
        feed: Feed,
        target: str,
        *,
        size: int,
        diff_id: str,
        lowest: bool,
        subject: str,
        watch: Callable[[int], None],
    ) -> Unpacked:
        """Unpack a layer into the empty directory ``target``, as ``layers.unpack`` does, while ``feed`` still grows.

        ``watch`` is told how many bytes of the blob are unpacked. When this returns or raises, nothing writes to
        ``target`` any more. Raises also what the feed ends with, and Internal if the worker dies or hangs.
        """
        await feed.beyond(0)  # no worker waits for a host that has not answered yet
        turn = _Turn(self._turns)
        await turn.take()
        try:
            worker = await self._take(size)
            self._busy.add(worker)
            try:
                state = await feed.beyond(0)
                job = Job(target, diff_id, subject, size, state.available, state.whole, lowest)
                unpacked = await worker.unpack(job, feed, turn, watch)
            except BaseException:
                await worker.kill()  # who failed once may hold what it should not: another is started in 30 ms
                raise
            finally:
                self._busy.discard(worker)
            self._rest(worker)
            watch(size)
            return unpacked
        finally:
            turn.leave()

    def warm(self, sizes: Collection[int]) -> None:
        """Start what blobs of these sizes will need soon, so that it is up when the first bytes come."""
        wanted = max(sum(size >= SMALL_BYTES for size in sizes), 1 if sizes else 0)
        missing = min(wanted, self._most) - len(self._busy) - len(self._idle)
        for _ in range(missing):
            self._rest(_Worker(self._silence_s))

    async def close(self) -> None:
        """End those that idle; the others are killed with the pulls that use them, before."""
        idle, self._idle = self._idle, []
        for worker in idle:
            await worker.kill()

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [worker.pid for worker in (*self._busy, *self._idle)]

    async def _take(self, size: int) -> _Worker:
        """One that idles, or a new one."""
        if size < SMALL_BYTES and self._busy and not self._idle:
            self._rested.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(SPARE_S):
                    await self._rested.wait()
        while self._idle:
            worker = self._idle.pop()
            worker.wake()
            if worker.alive:
                return worker
        return _Worker(self._silence_s)

    def _rest(self, worker: _Worker) -> None:
        def leave() -> None:
            if worker in self._idle:
                self._idle.remove(worker)
                worker.dismiss()

        self._idle.append(worker)
        self._rested.set()
        worker.sleep(self._idle_s, leave)


class _Worker:
    """One process. ``kill`` ends it for certain; ``dismiss`` lets it end by itself."""

    def __init__(self, silence_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection = ours
        try:
            with theirs:
                self.pid = _start(theirs.fileno())
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            ours.close()
            said = f"no process can be started that unpacks: {error.strerror}"
            raise Internal(said, hint="are there too many processes, or open files?") from error
        ours.setblocking(False)
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    def sleep(self, idle_s: float, leave: Callable[[], None]) -> None:
        self._timer = self._loop.call_later(idle_s, leave)

    def wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def dismiss(self) -> None:
        """It reads the end of the connection, and ends."""
        self._connection.close()

    async def kill(self) -> None:
        """Returns once the process can write no more, or after DEATH_S if the kernel holds it."""
        self.wake()
        if self.alive:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            await asyncio.wait([self._ended], timeout=DEATH_S)
            if self.alive:
                log.warning("an unpacking process does not die: the disk may hang", pid=self.pid)
        self._connection.close()

    async def unpack(self, job: Job, feed: Feed, turn: _Turn, watch: Callable[[int], None]) -> Unpacked:
        fd = feed.take_fd()
        try:
            socket.send_fds(self._connection, [unpacking.encode(job)], [fd])
        except OSError as error:
            raise await self._died(job.subject) from error
        finally:
            os.close(fd)
        implied: list[bytes] = []
        while True:
            frame = unpacking.decode(await self._receive(job.subject))
            if isinstance(frame, Starved | Reached):
                watch(frame.position)
            if isinstance(frame, Starved):
                await self._send(await turn.beyond(feed, frame.position), job.subject)
            elif isinstance(frame, Implied):
                implied += frame.paths
            elif isinstance(frame, Done):
                return Unpacked(*frame, tuple(implied))
            elif isinstance(frame, Failed):
                raise _raised(frame)

    async def _receive(self, subject: str) -> bytes:
        try:
            async with asyncio.timeout(self._silence_s):
                packet = await self._loop.sock_recv(self._connection, unpacking.PACKET_LIMIT)
        except TimeoutError as error:
            said = f"the process {self.pid} that unpacks {subject} said nothing for {self._silence_s:g} s"
            raise Internal(said, hint="does the disk hang? it was killed; pull again") from error
        except OSError as error:
            raise await self._died(subject) from error
        if not packet:
            raise await self._died(subject)
        return packet

    async def _send(self, ready: Ready, subject: str) -> None:
        try:
            await self._loop.sock_sendall(self._connection, unpacking.encode(ready))
        except OSError as error:
            raise await self._died(subject) from error

    async def _died(self, subject: str) -> Internal:
        await asyncio.wait([self._ended], timeout=DEATH_S)
        how = "has closed its connection"
        if self._ended.done():
            status = self._ended.result()
            how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
        return Internal(f"the process {self.pid} that unpacks {subject} {how}", hint="out of memory? pull again")

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            status = 0  # whoever ignores SIGCHLD gets no statuses
        self._ended.set_result(status)


def _start(fd: int) -> int:
    """Neither site nor what it brings: it is told where modules are, and is up in half the time."""
    program = _PROGRAM.format(path=sys.path, pid=os.getpid())
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", program],
        {"PATH": os.defpath, "LANG": "C.UTF-8"},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, 3)],
        setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
    )


def _raised(failed: Failed) -> CriError:
    kind = getattr(errors, failed.kind, Internal)
    if not (isinstance(kind, type) and issubclass(kind, CriError)):
        kind = Internal
    return kind(failed.message, hint=failed.hint)
