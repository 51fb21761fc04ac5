"""A directory watched by inotify(7); where that can't be, nothing is told and the caller's poll has to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final

from cri_py.errors import KernelError
from cri_py.kernel import inotify

_EVENTS: Final = (
    *(inotify.IN_CLOSE_WRITE, inotify.IN_CREATE, inotify.IN_DELETE, inotify.IN_MOVED_FROM, inotify.IN_MOVED_TO),
    *(inotify.IN_ATTRIB, inotify.IN_DELETE_SELF, inotify.IN_MOVE_SELF),
)
_READ_BYTES: Final = 1 << 16


class Watch:
    """One directory, which may be missing, go and come again. Belongs to one event loop; whoever made it closes it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._changed = asyncio.Event()
        try:
            self._fd = inotify.open_watch()
        except KernelError:
            self._fd = -1  # the user's limit of instances is reached
            return
        asyncio.get_running_loop().add_reader(self._fd, self._hear)

    def arm(self) -> None:
        """Hear of what changes from now on, in the directory that is there now; then look at it."""
        if self._fd >= 0:
            with contextlib.suppress(KernelError):  # it is not there; of the same one it would be the same watch
                inotify.watch_directory(self._fd, self._directory, sum(_EVENTS))

    async def wait(self, timeout_s: float) -> None:
        """Until something changed. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _hear(self) -> None:
        """What it was doesn't matter: the directory is read again."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ_BYTES):
                self._changed.set()
