"""A directory belongs to one daemon at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from cri_py.errors import FailedPrecondition

_NAME: Final = "lock"


@contextlib.contextmanager
def claimed(directory: str) -> Iterator[None]:
    """Hold ``directory`` for this process; the kernel lets go of it when the process dies, however it dies.

    Two daemons on one directory would take the pods' monitors from each other and sweep away what the other begins.
    The lock is on the file, so it holds also where one of them comes through a symbolic link or a bind mount. Raises
    FailedPrecondition, with the pid of the owner, if another process holds it, and where nothing can be written.
    """
    try:
        fd = os.open(f"{directory}/{_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FailedPrecondition(
            f"{directory}/{_NAME} can't be opened for writing: {error.strerror}",
            hint="is the file system read-only or full?",
        ) from error
    try:
        _lock(fd, directory)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        raise FailedPrecondition(
            f"{directory} is in use by another daemon (pid {owner})",
            hint="stop it, or give this one directories of its own by --root and --state",
        ) from None
