"""inotify(7): be told when a directory changes. Apart from ``syscalls``, which every monitor has in its memory."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from cri_py.errors import KernelError

IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
_IN_ONLYDIR: Final = 0x1000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


def open_watch() -> int:
    """A descriptor that becomes readable with what :func:`watch_directory` asks for. Raises KernelError (EMFILE …)."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise _fail("inotify_init1", "")
    return fd


def watch_directory(fd: int, path: str, events: int) -> None:
    """Be told of ``events``. Asking again for the same directory changes nothing. Raises KernelError (ENOENT …)."""
    if _libc.inotify_add_watch(fd, os.fsencode(path), events | _IN_ONLYDIR) < 0:
        raise _fail("inotify_add_watch", path)


def _fail(syscall: str, subject: str) -> KernelError:
    number = ctypes.get_errno()
    return KernelError(number, os.strerror(number), syscall, subject)
