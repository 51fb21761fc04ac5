"""Plugins that a killed daemon has left running, found by a mark in their environment and ended.

One that goes on with its ADD would give a pod what the new daemon has just had taken back, and a GC would take from
pods that it has not heard of; so they end before the first call of ours.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from cri_py.errors import KernelError
from cri_py.kernel import procfs
from cri_py.kernel.syscalls import pidfd_open

log = structlog.get_logger()
MARK: Final = "CRI_PY_CALLED_BY"  # beside the CNI_ variables; its value is the daemon's owner text
_DYING_S: Final = 2.0


def end_orphans(owner: str, bin_dirs: Sequence[str]) -> list[int]:
    """Kill the process groups of all plugins that a daemon of ``owner`` has called; returns their leaders' pids.

    Only at the start, as it can't tell calls of an earlier daemon from those of this one. Blocks until they are dead,
    two seconds at most for each: some ten microseconds for each process of the node.
    """
    found = list(_orphans(f"{MARK}={owner}".encode(), bin_dirs))
    for pid in found:
        log.warning("a CNI plugin that an earlier daemon has called still runs; it is killed", pid=pid)
        _end(pid)
    return found


def _orphans(mark: bytes, bin_dirs: Sequence[str]) -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit() and mark in _words(int(name), "environ") and _is_plugin(int(name), bin_dirs):
            yield int(name)


def _is_plugin(pid: int, bin_dirs: Sequence[str]) -> bool:
    """A plugin leads a group of its own; a service that one has started may, too, and is no file of a bin_dir."""
    with contextlib.suppress(ProcessLookupError):
        words = (os.path.dirname(os.fsdecode(word)) for word in _words(pid, "cmdline"))
        return os.getpgid(pid) == pid and any(word in bin_dirs for word in words)
    return False


def _words(pid: int, file: str) -> list[bytes]:
    try:
        return (procfs.read_of(pid, file, "/proc") or b"").split(b"\0")
    except KernelError:  # a stranger, of another user namespace
        return []


def _end(pid: int) -> None:
    try:
        pidfd = pidfd_open(pid)
    except KernelError:
        return  # it has just ended
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        dying = select.poll()
        dying.register(pidfd, select.POLLIN)
        dying.poll(_DYING_S * 1000)
    finally:
        os.close(pidfd)
