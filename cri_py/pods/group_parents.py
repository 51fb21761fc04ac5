"""The groups above the pods' own that this daemon made.

A kubelet makes them itself; for other clients the runtime does. They are kept while pods come and go: on v1 a parent is
eight directories, and to make and remove them for each pod costs as much as all of its own groups. What nobody is below
of goes some seconds after a pod's removal, and at the daemon's end. A file tells of them before they are made, so those
of a daemon that was killed are removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cri_py.cgroups import files
from cri_py.errors import KernelError


class GroupParents:
    """For the threads that make and remove groups; ``note`` is the file, which belongs to this object.

    ``drop`` removes a directory; False where it is in use.
    """

    def __init__(self, note: Path, drop: Callable[[str], bool] = files.drop) -> None:
        self._drop = drop
        self._note = note
        self._ours = set(_lines(note))
        self._inodes: dict[str, int] = {}  # of those that were made in this life: a name may be somebody else's later
        self._lock = threading.Lock()
        self._making = 0

    def __bool__(self) -> bool:
        """Whether there may be something to remove."""
        return bool(self._ours)

    @contextlib.contextmanager
    def below(self, parents: Iterable[str]) -> Iterator[None]:
        """While groups are made below ``parents``: what is missing of these is ours, and none goes meanwhile."""
        with self._lock:
            missing = {directory for parent in parents for directory in _missing(parent)}
            if missing - self._ours:
                self._write(self._ours | missing)
                self._ours |= missing
            self._making += 1
        try:
            yield
        finally:
            with self._lock:
                self._inodes |= {directory: inode for directory in missing if (inode := _inode(directory))}
                self._making -= 1

    def sweep(self) -> bool:
        """Remove those that are empty, and forget those that somebody has removed and made again; False, and nothing is
        done, while groups are being made."""
        with self._lock:
            if self._making:
                return False
            others = {each for each, made in self._inodes.items() if _inode(each) not in (0, made)}
            mine = sorted(self._ours - others, key=len, reverse=True)
            gone = others | {directory for directory in mine if self._drop(directory)}
            if gone:
                self._ours -= gone
                self._inodes = {each: made for each, made in self._inodes.items() if each not in gone}
                self._write(self._ours)
        return True

    def _write(self, directories: Iterable[str]) -> None:
        """Replaced, never half there: a line that was cut would name a group above, which may be somebody else's.

        Raises KernelError.
        """
        beside = self._note.with_name(f".{self._note.name}.new")
        try:
            beside.write_text("".join(f"{each}\n" for each in sorted(directories)), errors="surrogateescape")
            beside.rename(self._note)
        except OSError as error:
            raise KernelError(error.errno or 0, error.strerror or str(error), "write", str(self._note)) from error


def _lines(note: Path) -> list[str]:
    try:
        return note.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []


def _inode(directory: str) -> int:
    """0 if it is not there. cgroup file systems give no number twice."""
    try:
        return os.stat(directory).st_ino
    except FileNotFoundError:
        return 0


def _missing(directory: str) -> Iterator[str]:
    while not os.path.isdir(directory):
        yield directory
        directory = os.path.dirname(directory)
