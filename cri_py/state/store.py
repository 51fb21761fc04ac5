"""Records in SQLite: WAL, one writer thread, versioned.

A record is a kind, a key, a version of its layout, a small JSON body of ours, and the kubelet's bytes as they came.
Changes that arrive while the writer is busy are committed together in one transaction, so a burst pays one commit.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cri_py import telemetry
from cri_py.errors import Internal
from cri_py.state.migrations import migrate

COMMIT_S: Final = 60.0  # for which a disk may be busy with what others write; after that it hangs
CLOSE_S: Final = 30.0  # for each of two stores; who stops the daemon waits 90 s by default (systemd)


@dataclass(frozen=True, slots=True)
class Put:
    """Insert or replace one record."""

    kind: str
    key: str
    body: bytes
    verbatim: bytes = b""
    version: int = 1


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove one record; a missing one is fine."""

    kind: str
    key: str


Change = Put | Delete


@dataclass(slots=True)
class _Commit:
    """``withdrawn``: nobody waits for it any more, so it is not to be begun."""

    changes: tuple[Change, ...]
    done: Callable[[BaseException | None], object]
    withdrawn: bool = False


_STOP: Final = None


class Store:
    """One database file, owned by this object and its one writer thread.

    ``durable`` asks for ``synchronous=FULL`` (a commit survives a power cut, 0.3 ms) instead of NORMAL (it survives a
    crash of the process, 0.04 ms).
    """

    def __init__(self, path: str, *, durable: bool, commit_s: float = COMMIT_S) -> None:
        self._path = path
        self.name = os.path.basename(path).removesuffix(".db")
        self._seconds = telemetry.STORE_SECONDS.labels(self.name)
        self._errors = telemetry.STORE_ERRORS.labels(self.name)
        self._commit_s = commit_s
        self._connection = _connect(path, durable=durable)
        self._queue: queue.SimpleQueue[_Commit | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_loop, name="store", daemon=True)
        self._thread.start()

    def load(self, kind: str) -> list[Put]:
        """All records of a kind, ordered by key. Meant for the start, before the first commit.

        Raises Internal if the file is damaged.
        """
        try:
            rows = self._connection.execute(
                "SELECT kind, key, body, verbatim, version FROM records WHERE kind = ? ORDER BY key", (kind,)
            )
            return [Put(*row) for row in rows]
        except sqlite3.Error as error:
            raise Internal(
                f"the database {self._path} can't be read: {error}", hint="move it away to start empty"
            ) from error

    def size(self) -> float:
        """Bytes of the file and its write-ahead log."""
        return float(sum(os.path.getsize(file) for file in (self._path, f"{self._path}-wal") if os.path.exists(file)))

    async def commit(self, *changes: Change) -> None:
        """Make all changes or none; returns once they are recorded.

        Raises Internal if the disk refuses, or hangs: then they may still be recorded if the disk had begun with them.
        """
        begun = time.perf_counter()
        try:
            await self._commit(changes)
        except Internal:
            self._errors.inc()
            raise
        self._seconds.observe(time.perf_counter() - begun)

    async def _commit(self, changes: tuple[Change, ...]) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if future.done():  # the caller was cancelled; the record stands all the same
                return
            if error is None:
                future.set_result(None)
            else:
                hint = "does the disk hang?" if isinstance(error, TimeoutError) else "is the disk full?"
                future.set_exception(Internal(f"{self._path} could not be written: {error}", hint=hint))

        def give_up() -> None:
            commit.withdrawn = True
            settle(TimeoutError(f"the disk has not taken it for {self._commit_s:g} s"))

        commit = _Commit(changes, lambda error: loop.call_soon_threadsafe(settle, error))
        self._queue.put(commit)
        timer = loop.call_later(self._commit_s, give_up)
        try:
            await future
        finally:
            timer.cancel()

    def close(self) -> None:
        """Finish what was asked for and close the file; on a disk that hangs, leave it to the end of the process."""
        self._queue.put(_STOP)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._connection.close()

    def _write_loop(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ended = self._gather(first)
            self._write(batch)
            if ended:
                return

    def _gather(self, first: _Commit) -> tuple[list[_Commit], bool]:
        batch = [first]
        while not self._queue.empty():
            following = self._queue.get()
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False

    def _write(self, batch: list[_Commit]) -> None:
        """One transaction for all; if it fails, each by itself, so that one bad change harms no other."""
        batch = [commit for commit in batch if not commit.withdrawn]
        try:
            self._transact([change for commit in batch for change in commit.changes])
        except sqlite3.Error as error:
            if len(batch) == 1:
                batch[0].done(error)
                return
            for commit in batch:
                self._write([commit])
            return
        for commit in batch:
            commit.done(None)

    def _transact(self, changes: list[Change]) -> None:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for change in changes:
                if isinstance(change, Put):
                    self._connection.execute(
                        "INSERT OR REPLACE INTO records (kind, key, body, verbatim, version) VALUES (?, ?, ?, ?, ?)",
                        (change.kind, change.key, change.body, change.verbatim, change.version),
                    )
                else:
                    self._connection.execute(
                        "DELETE FROM records WHERE kind = ? AND key = ?", (change.kind, change.key)
                    )


def _connect(path: str, *, durable: bool) -> sqlite3.Connection:
    try:
        # check_same_thread: the opening thread only reads, and only before the writer's first commit.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise Internal(f"the database {path} can't be opened: {error}", hint="move it away to start empty") from error
    return connection
