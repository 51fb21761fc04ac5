"""What the processes of a container have open, from /proc: descriptors, sockets, and the limit of them."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Final, NamedTuple

_MOST_PROCESSES: Final = 256
_MOST_DESCRIPTORS: Final = 2048


class Opened(NamedTuple):
    """Of a container's processes together; None where there are too many to look at each within a scrape.

    ``soft_limit``: RLIMIT_NOFILE of the first process, -1 for none; None if it has ended meanwhile.
    """

    processes: int
    descriptors: int | None
    sockets: int | None
    soft_limit: int | None


def opened(pids: Sequence[int]) -> Opened:
    """Look at each process; those that end meanwhile count nothing."""
    soft_limit = _soft_limit(pids[0]) if pids else None
    if len(pids) > _MOST_PROCESSES:
        return Opened(len(pids), None, None, soft_limit)
    counts = [_count(pid) for pid in pids]
    descriptors = sum(counts)
    sockets = sum(_sockets(pid) for pid in pids) if descriptors <= _MOST_DESCRIPTORS else None
    return Opened(len(pids), descriptors, sockets, soft_limit)


def _soft_limit(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except ProcessLookupError:
        return None


def _count(pid: int) -> int:
    """How many descriptors a process has: the size of the directory (Linux 6.2), else by reading it."""
    directory = f"/proc/{pid}/fd"
    try:
        return os.stat(directory).st_size or len(os.listdir(directory))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _sockets(pid: int) -> int:
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    try:
        return sum(_is_socket(fd, directory) for fd in os.listdir(directory))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    finally:
        os.close(directory)


def _is_socket(fd: str, directory: int) -> bool:
    try:
        return os.readlink(fd, dir_fd=directory).startswith("socket:")
    except (FileNotFoundError, ProcessLookupError):
        return False
