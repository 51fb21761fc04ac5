"""Directories on their way out: taken out of sight by a rename, deleted in the background."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import threading
from typing import Final

import structlog

from cri_py.errors import Internal

log = structlog.get_logger()

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 300.0


class Trash:
    """One directory per filesystem; what a killed daemon left in it goes with the next start.

    What can't be deleted, as a mount below it holds it, is tried again after ``retry_s``, then after twice that, up to
    five minutes.
    """

    def __init__(self, *directories: str, retry_s: float = _FIRST_RETRY_S) -> None:
        self._directories = directories
        self._retry_s = retry_s
        self._names = (f"{os.getpid()}-{number}" for number in itertools.count())
        self._told: set[str] = set()
        self._closing = False
        self._wanted = threading.Event()
        self._wanted.set()
        self._thread = threading.Thread(target=self._run, name="trash", daemon=True)
        self._thread.start()

    def discard(self, path: str) -> None:
        """Take a directory away at once. One that isn't there is fine, also if what it lay in is gone (a reboot).
        Raises Internal where nothing can be written."""
        name = f"{next(self._names)}-{os.path.basename(path)}"
        for directory in self._directories:
            try:
                os.rename(path, f"{directory}/{name}")
            except FileNotFoundError:
                return
            except OSError as error:
                # Of another filesystem, or mount: a bind mount parts what has the same device number.
                if error.errno != errno.EXDEV:
                    raise _refused(path, error.strerror) from error
            else:
                self._wanted.set()
                return
        raise _refused(path, "no trash is on its file system")

    def close(self) -> None:
        """What is not deleted yet waits for the next start."""
        self._closing = True
        self._wanted.set()
        self._thread.join()

    # ---------------------------------------------------------- on its thread

    def _run(self) -> None:
        delay_s = self._retry_s
        failed = False
        while not self._closing:
            if self._wanted.wait(delay_s if failed else None):
                delay_s = self._retry_s
            else:
                delay_s = min(delay_s * 2, _LAST_RETRY_S)
            self._wanted.clear()
            failed = not self._empty()

    def _empty(self) -> bool:
        """Delete all there is; whether nothing withstood."""
        withstood: set[str] = set()
        for directory in self._directories:
            while paths := set(_entries(directory)) - withstood:
                for path in paths:
                    if self._closing:
                        return True
                    try:
                        _delete(path, directory)
                    except OSError as error:
                        withstood.add(path)
                        self._tell(path, error)
        self._told &= withstood
        return not withstood

    def _tell(self, path: str, error: OSError) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning("a discarded directory can't be deleted yet; it is tried again", path=path, error=str(error))


def _refused(path: str, cause: str | None) -> Internal:
    return Internal(f"{path} can't be removed: {cause}", hint="is its file system read-only or broken?")


def _entries(directory: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [f"{directory}/{name}" for name in os.listdir(directory)]
    return []


def _delete(path: str, trash: str) -> None:
    """Delete a directory's files, move its directories into ``trash`` for their own turn, and remove it.

    So neither the interpreter's stack nor PATH_MAX limits how deep a container may nest directories. The trash is
    private to root, so no link can be slipped in.
    """
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            try:
                os.rmdir(entry.path)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                os.rename(entry.path, f"{trash}/{secrets.token_hex(8)}")
    os.rmdir(path)
