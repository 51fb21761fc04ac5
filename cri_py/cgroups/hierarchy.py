"""A group of processes, whichever version of cgroups the node has: what v1 and v2 share.

A group is named by its path below the root of every hierarchy, ``/pods/podX/ctr``. On v1 it is one directory per
hierarchy, on v2 one alone.
"""

from __future__ import annotations

import os
import select
import signal
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from errno import EBUSY, ESRCH
from typing import TYPE_CHECKING, NamedTuple

from cri_py.cgroups import files
from cri_py.errors import InvalidArgument, KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from cri_py.cgroups.writes import Write

_WATCHED = 64  # processes waited for at once: a fork bomb must not use up our descriptors
_ROUND_S = 0.05  # after which a kill looks again whether all are gone


class Made(NamedTuple):
    """What ``create`` did: the directories it made, the outermost first, and what it left out, in words."""

    path: str
    directories: tuple[str, ...]
    notes: tuple[str, ...] = ()


def checked(path: str) -> str:
    """The path, if it is absolute, plain and not the root itself."""
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]) or "\0" in path or "\n" in path:
        raise InvalidArgument(
            f"{path!r} is not the path of a cgroup", hint="use an absolute path below the root, without . and .."
        )
    return path


def wait_for_exits(pids: Iterable[int], until: float) -> None:
    """Sleep until all of ``pids`` (64 of them at most) have ended, or till ``until`` on the monotonic clock."""
    poller = select.poll()
    watched = []
    try:
        for pid in list(pids)[:_WATCHED]:
            with suppress(ProcessLookupError):
                watched.append(os.pidfd_open(pid))
                poller.register(watched[-1], select.POLLIN)
        waiting = len(watched)
        while waiting and (remaining := until - time.monotonic()) > 0:
            for fd, _ in poller.poll(remaining * 1000):
                poller.unregister(fd)
                waiting -= 1
    finally:
        for fd in watched:
            os.close(fd)


def send_kill(pids: Iterable[int]) -> None:
    """SIGKILL to each. Pids are read just before: the kernel hands a number out again only after all the others."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except OSError as error:
            raise KernelError(error.errno or 0, error.strerror or str(error), "kill", str(pid)) from error


class Cgroups(ABC):
    """The groups of one node. Paths are checked; a missing group is no error where something is ended or removed."""

    mounts: tuple[str, ...]  # where each hierarchy is mounted
    born_into = False  # whether clone3 can put a process into a group at its birth, by ``directory_fd``
    leaves_only = False  # whether a group that hands controllers down may hold no processes (v2's rule on inner groups)

    def directories(self, path: str) -> tuple[str, ...]:
        """The group's directories, one per hierarchy."""
        below = checked(path)
        return tuple(mount + below for mount in self.mounts)

    # ------------------------------------------------------- made and entered

    @abstractmethod
    def plan(self, path: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
        """The writes that give the group its limits, as data. Pure; ``resources`` is OCI's ``linux.resources``."""

    @abstractmethod
    def create(self, path: str, resources: Mapping[str, Any], pod: bool = False) -> Made:
        """Make the group and its missing parents and write its limits; undone in whole where a step fails.

        ``pod``: the group will hold groups and no processes of its own (v2 hands its controllers down to them).
        """

    @abstractmethod
    def enter(self, path: str) -> None:
        """Move the calling process, which must be single-threaded, into the group."""

    @abstractmethod
    def enter_plan(self, path: str) -> Sequence[str]:
        """The files into each of which "0" must be written to enter: for a caller that opens them early."""

    @abstractmethod
    def directory_fd(self, path: str) -> int | None:
        """The group for clone3's CLONE_INTO_CGROUP, which v2 alone has; the caller owns the descriptor."""

    def undo(self, made: Made) -> None:
        """Take back what ``create`` made; what holds processes by now is a KernelError."""
        for directory in reversed(made.directories):
            self._drop(directory, time.monotonic() + 1.0)

    @abstractmethod
    def exec_scope(self, container_path: str, name: str) -> ExecScope:
        """The child group of a container's in which an exec's processes are gathered, so that all can be killed."""

    # ---------------------------------------------------------- looked into

    def processes(self, path: str) -> list[int]:
        """The processes in the group and below it, in order; none where it is missing.

        Those of a pid namespace that isn't ours or below it show as 0, and are left out: 0 would mean ourselves.
        """
        found: set[int] = set()
        for directory in self.directories(path):
            for group in files.tree(directory):
                found.update(map(int, files.read_if_there(f"{group}/cgroup.procs").split()))
        return sorted(found - {0})

    def children(self, path: str) -> tuple[str, ...]:
        """The paths of the child groups, in order, of any hierarchy; ``/`` asks for those at the top."""
        starts = self.mounts if path == "/" else self.directories(path)
        names = {os.path.basename(child) for start in starts for child in files.below(start)}
        return tuple(f"{path.rstrip('/')}/{name}" for name in sorted(names))

    def exists(self, path: str) -> bool:
        """Whether any hierarchy has the group."""
        return any(os.path.isdir(directory) for directory in self.directories(path))

    @abstractmethod
    def oom_kills(self, path: str) -> int:
        """How many processes of the group and below it the kernel has killed for want of memory."""

    @abstractmethod
    def open_oom(self, path: str) -> int | None:
        """A descriptor for ``oom_count``, good as long as the group is there; None without a memory controller."""

    # ---------------------------------------------------------------- ended

    @abstractmethod
    def freeze(self, path: str, deadline_s: float = 5.0) -> None:
        """Stop every process of the group and below it, and return when they stand still."""

    @abstractmethod
    def thaw(self, path: str) -> None:
        """Let them go on."""

    def kill(self, path: str, deadline_s: float) -> None:
        """SIGKILL all in the group and below it, and return when all has ended: fork bombs, frozen groups too."""
        until = time.monotonic() + deadline_s
        tries = 0
        while pids := self.processes(path):
            if tries and time.monotonic() >= until:
                raise self._left_over(path, pids, "kill")
            self._kill_once(path, pids, tries, until)
            wait_for_exits(pids, min(until, time.monotonic() + _ROUND_S))
            tries += 1

    @abstractmethod
    def _kill_once(self, path: str, pids: list[int], tries: int, until: float) -> None:
        """One round of ``kill``; ``tries`` counts those before it."""

    def remove(self, path: str, deadline_s: float = 2.0) -> None:
        """Remove the group from all hierarchies, children first; waits for processes that are ending already."""
        until = time.monotonic() + deadline_s
        for directory in self.directories(path):
            self._drop(directory, until)

    def remove_empty_parents(self, path: str, stop_at: str) -> None:
        """Remove the parents of ``path`` that are empty, from the inner to the outer, up to but not ``stop_at``."""
        for directory, stop in zip(self.directories(path), self._directories_or_roots(stop_at), strict=True):
            parent = os.path.dirname(directory)
            while parent.startswith(f"{stop}/") and files.drop(parent):
                parent = os.path.dirname(parent)

    def _directories_or_roots(self, path: str) -> tuple[str, ...]:
        return self.mounts if path == "/" else self.directories(path)

    def _drop(self, directory: str, until: float) -> None:
        pause_s = 0.0005
        while not files.drop(directory):
            for child in files.below(directory):
                self._drop(child, until)
            pids = [int(pid) for pid in files.read_if_there(f"{directory}/cgroup.procs").split()]
            if time.monotonic() >= until:
                raise self._left_over(directory, pids, "rmdir")
            wait_for_exits(filter(None, pids), until)
            if not any(pids):  # the last is on its way out, or not to be seen from here: nothing tells when it has left
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.05)

    def _left_over(self, subject: str, pids: Sequence[int], act: str) -> KernelError:
        names = ", ".join(_named(pid) for pid in pids[:8]) + (" …" if len(pids) > 8 else "")
        text = f"{len(pids)} processes left: {names}" if pids else "busy, though no process is listed"
        return KernelError(EBUSY, text, act, subject)


class ExecScope(NamedTuple):
    """The group of one exec: a child of its container's group, so that what it started can be killed as a whole.

    ``groups`` sees only the hierarchy in which the scope is a group of its own; limits are the container's."""

    groups: Cgroups
    path: str
    directory: str
    enter_files: tuple[str, ...]  # each takes "0" from a process that enters

    def make(self) -> None:
        """Make the group, which must be new, below its container's."""
        files.make_one(self.directory)

    def drop(self) -> bool:
        """Remove it if it is empty; False if processes are in it still. A missing one is fine."""
        return files.drop(self.directory)

    def enter(self) -> None:
        """Move the calling process, which must be single-threaded, into the scope and its container's groups."""
        for file in self.enter_files:
            files.write(file, "0")

    def directory_fd(self) -> int | None:
        """As Cgroups.directory_fd: None on v1."""
        return self.groups.directory_fd(self.path)

    def processes(self) -> list[int]:
        """What the exec started and still runs."""
        return self.groups.processes(self.path)

    def kill(self, deadline_s: float) -> None:
        """As Cgroups.kill, of the exec alone."""
        self.groups.kill(self.path, deadline_s)


def write_all(planned: Sequence[Write]) -> tuple[str, ...]:
    """Carry out a plan; returns a note for each optional file that is missing. Neighbours share an open file."""
    notes = []
    position = 0
    while position < len(planned):
        file, _, optional = planned[position]
        texts = []
        while position < len(planned) and planned[position].file == file:
            texts.append(planned[position].text)
            position += 1
        if optional and not os.path.exists(file):
            notes.append(f"{os.path.basename(file)} is not applied: this kernel has no such file")
            continue
        files.write(file, *texts)
    return tuple(notes)


def _named(pid: int) -> str:
    try:
        return f"{pid} ({files.read(f'/proc/{pid}/comm').decode(errors='replace').strip()})"
    except KernelError as error:
        if error.errno not in (ESRCH, 2):
            raise
        return str(pid)


def oom_count(text: bytes) -> int:
    """The ``oom_kill`` line of memory.events (v2) or memory.oom_control (v1, since Linux 4.13)."""
    for line in text.splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def read_oom(fd: int) -> int:
    """The count behind a descriptor of ``open_oom``, of processes that are gone by now too."""
    try:
        return oom_count(os.pread(fd, 4096, 0))
    except OSError as error:
        raise KernelError(error.errno or 0, error.strerror or str(error), "read", "the oom count") from error
