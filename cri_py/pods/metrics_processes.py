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
    sockets = [sockets for _, sockets in counts]
    told = None if None in sockets else sum(filter(None, sockets))
    return Opened(len(pids), sum(descriptors for descriptors, _ in counts), told, soft_limit)


def _soft_limit(pid: int) -> int | None:
    try:
        return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except ProcessLookupError:
        return None


def _count(pid: int) -> tuple[int, int | None]:
    """How many descriptors a process has, and how many of them are sockets; None if it has too many to look at."""
    try:
        directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    try:
        size = os.fstat(directory).st_size  # since Linux 6.2 their number, else 0
        if size > _MOST_DESCRIPTORS:
            return size, None
        names = os.listdir(directory)
        return len(names), sum([_is_socket(name, directory) for name in names])
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    finally:
        os.close(directory)


def _is_socket(fd: str, directory: int) -> bool:
    try:
        return os.readlink(fd, dir_fd=directory).startswith("socket:")
    except (FileNotFoundError, ProcessLookupError):
        return False
