"""Directories on their way out: taken out of sight by a rename, deleted in the background."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

log = structlog.get_logger()


class Trash:
    """One directory per filesystem; what a killed daemon left in it goes with the next start."""

    def __init__(self, *directories: str) -> None:
        self._directories = directories
        self._names = (f"{os.getpid()}-{number}" for number in itertools.count())
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trash")
        for directory in directories:
            for entry in os.scandir(directory):
                self._delete_soon(entry.path)

    def discard(self, path: str) -> None:
        """Take a directory away at once. One that isn't there is fine."""
        for directory in self._directories:
            if os.stat(directory).st_dev == os.stat(os.path.dirname(path)).st_dev:
                target = f"{directory}/{next(self._names)}-{os.path.basename(path)}"
                break
        else:
            raise FileNotFoundError(f"no trash on the filesystem of {path}")
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return
        self._delete_soon(target)

    def _delete_soon(self, path: str) -> None:
        self._pool.submit(_delete, path).add_done_callback(_report)

    def close(self) -> None:
        """What is not deleted yet waits for the next start."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _report(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.warning("a discarded directory could not be deleted", error=str(error))


def _delete(path: str) -> None:
    """Delete a tree. The trash is private to root, so no link can be slipped in, which shutil.rmtree guards against."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _delete(entry.path)
            else:
                os.unlink(entry.path)
    os.rmdir(path)
