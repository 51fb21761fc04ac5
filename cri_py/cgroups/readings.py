"""What a group uses: the kernel's counters of version 1 and 2 as the same values.

Files are opened at their first reading, kept open, and read from their beginning by pread: an open costs ten times a
read (18 and 3 µs for cpuacct.usage). An open file does not keep its group from being removed; it then answers ENODEV,
which here is a counter that isn't there. Sources: admin-guide/cgroup-v1/{cpuacct,memory}.rst,
admin-guide/cgroup-v2.rst, accounting/psi.rst.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from cri_py.cgroups import files
from cri_py.cgroups.hierarchy import checked
from cri_py.cgroups.v1 import V1
from cri_py.errors import KernelError

if TYPE_CHECKING:
    from cri_py.cgroups.hierarchy import Cgroups

_READ_BYTES = 16384
_MISSING = -1
_ALONE = 1000  # files; no group has as many
_SURELY_ALL = 2048  # a page of a list that is not the last is nearly full
_NO_CHILDREN = 2  # links of a directory without directories: "." and its name
_MOST_CHILDREN = 64  # execs have few; a container that makes groups of its own may make thousands
_V1_UNLIMITED = 1 << 62  # the kernel rounds its largest number down to a page


class Memory(NamedTuple):
    """Bytes, and faults since the group was made. ``working_set``: usage less the files that were not used of late."""

    usage: int
    working_set: int
    limit: int | None  # of the group itself; None: no limit
    rss: int
    faults: int
    major_faults: int


class Swap(NamedTuple):
    """Bytes. ``limit`` is of swap alone; None: no limit."""

    usage: int
    limit: int | None


class Stall(NamedTuple):
    """How long processes stood still for want of something: in all, and the share of late in percent."""

    total_ns: int
    avg10: float
    avg60: float
    avg300: float


class Pressure(NamedTuple):
    """PSI of one resource: ``some`` process waited, or all did at once (``full``)."""

    some: Stall
    full: Stall


class Usage(NamedTuple):
    """One look at a group; None where this kernel, or the group by now, has no such counter."""

    cpu_ns: int | None = None
    memory: Memory | None = None
    swap: Swap | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


class Room:
    """How many files may stay open, of all groups that share it. Beyond that a file is opened for each reading."""

    def __init__(self, files: int) -> None:
        self.left = files


class Group(ABC):
    """The open files of one group. Whoever opened it closes it; it belongs to one thread, and so does its room."""

    def __init__(self, path: str, room: Room | None = None) -> None:
        self._path = checked(path)
        self._room = room or Room(_ALONE)
        self._fds: dict[str, int] = {}

    def read(self, file: str, offset: int = 0) -> bytes:
        """The content of a file; b"" where this kernel has none, or the group is gone.

        Of a list (cgroup.procs) the kernel gives a page at a time, of all others the whole.
        """
        fd = self._fds.get(file)
        if fd is None and (fd := self._keep(file)) is None:
            return self._read_once(file, offset)
        return b"" if fd == _MISSING else self._read(fd, file, offset)

    def _read(self, fd: int, file: str, offset: int) -> bytes:
        try:
            return os.pread(fd, _READ_BYTES, offset)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):  # gone; PSI that is off (cgroup.pressure, psi=0)
                return b""
            raise KernelError(error.errno or 0, error.strerror or str(error), "read", self._place(file)) from error

    def _read_once(self, file: str, offset: int) -> bytes:
        fd = self._open(file)
        if fd == _MISSING:
            return b""
        try:
            return self._read(fd, file, offset)
        finally:
            os.close(fd)

    def _keep(self, file: str) -> int | None:
        """Open it to stay open; None where there is no room for that."""
        if self._room.left <= 0:
            return None
        fd = self._fds[file] = self._open(file)
        self._room.left -= fd != _MISSING
        return fd

    def _open(self, file: str) -> int:
        place = self._place(file)
        if not place:
            return _MISSING
        try:
            return files.open_to_read(place)
        except KernelError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                return _MISSING
            raise

    def has(self, file: str) -> bool:
        """Whether the kernel has the file, be it empty."""
        fd = self._fds.get(file)
        if fd is None and (fd := self._keep(file)) is None:
            return os.path.exists(self._place(file))
        return fd != _MISSING

    def members(self) -> tuple[int, ...] | None:
        """The processes in the group and in the groups of execs below it; None for more than are worth a look."""
        text = part = self.read("cgroup.procs")
        while len(part) > _SURELY_ALL and len(text) < _READ_BYTES:
            part = self.read("cgroup.procs", len(text))
            text += part
        return tuple(map(int, text.split())) if len(text) < _READ_BYTES else None

    def number(self, file: str) -> int | None:
        """A file that holds one number; None where it is missing, or says that there is no limit."""
        text = self.read(file)
        return int(text) if text and text != b"max\n" else None

    def close(self) -> None:
        """Let all files go; a later reading opens them again."""
        for fd in self._fds.values():
            if fd != _MISSING:
                os.close(fd)
                self._room.left += 1
        self._fds.clear()

    @abstractmethod
    def _place(self, file: str) -> str:
        """The full path of a file; "" where no hierarchy has its controller."""

    @abstractmethod
    def cpu_ns(self) -> int | None:
        """CPU time of all processes that are or were in the group and below it, in ns."""

    @abstractmethod
    def usage(self) -> Usage:
        """All that statistics tell."""

    def processes(self) -> int | None:
        """How many tasks (threads count) are in the group and below it."""
        return self.number("pids.current")


class V1Group(Group):
    """One directory per hierarchy; memory counters named total_… are those of the group with all below it."""

    def __init__(self, cgroups: V1, path: str, room: Room | None = None) -> None:
        super().__init__(path, room)
        self._mount_of = {name: part.mount for part in cgroups.hierarchies for name in part.controllers}

    def _place(self, file: str) -> str:
        mount = self._mount_of.get("memory" if file == "cgroup.procs" else file.partition(".")[0])
        return f"{mount}{self._path}/{file}" if mount else ""

    def cpu_ns(self) -> int | None:
        """As Group.cpu_ns."""
        return self.number("cpuacct.usage")

    def usage(self) -> Usage:
        """As Group.usage. Version 1 has no PSI."""
        stat, limit = self.read("memory.stat"), self.limit("memory.limit_in_bytes")
        return Usage(self.cpu_ns(), self._memory(stat, limit), self._swap(stat, limit))

    def _memory(self, stat: bytes, limit: int | None) -> Memory | None:
        usage = self.number("memory.usage_in_bytes")
        if usage is None or not stat:
            return None
        return Memory(
            usage=usage,
            working_set=max(usage - field(stat, b"total_inactive_file"), 0),
            limit=limit,
            rss=field(stat, b"total_rss"),
            faults=field(stat, b"total_pgfault"),
            major_faults=field(stat, b"total_pgmajfault"),
        )

    def _swap(self, stat: bytes, memory: int | None) -> Swap | None:
        """Version 1 limits memory and swap together."""
        if b"\ntotal_swap " not in stat:
            return None
        both = self.limit("memory.memsw.limit_in_bytes")
        return Swap(field(stat, b"total_swap"), None if both is None else max(both - (memory or 0), 0))

    def limit(self, file: str) -> int | None:
        """A limit in bytes; None for none."""
        limit = self.number(file)
        return None if limit is None or limit >= _V1_UNLIMITED else limit


class V2Group(Group):
    """One directory, whose counters include those below."""

    def __init__(self, mount: str, path: str, room: Room | None = None) -> None:
        super().__init__(path, room)
        self._directory = f"{mount}{self._path}"

    def _place(self, file: str) -> str:
        return f"{self._directory}/{file}"

    def members(self) -> tuple[int, ...] | None:
        """As Group.members. Here an exec's group is the container's child, on version 1 in another hierarchy only."""
        found = super().members()
        try:
            children = os.stat(self._directory).st_nlink - _NO_CHILDREN
            if found is None or children <= 0:
                return found
            if children > _MOST_CHILDREN:
                return None
        except FileNotFoundError:
            return ()
        below = [files.read_if_there(f"{child}/cgroup.procs") for child in files.below(self._directory)]
        return (
            None if any(len(text) >= _READ_BYTES for text in below) else (*found, *map(int, b" ".join(below).split()))
        )

    def cpu_ns(self) -> int | None:
        """As Group.cpu_ns; to the microsecond."""
        stat = self.read("cpu.stat")
        return field(stat, b"usage_usec") * 1000 if stat else None

    def usage(self) -> Usage:
        """As Group.usage."""
        return Usage(
            self.cpu_ns(),
            self._memory(),
            self._swap(),
            pressure(self.read("cpu.pressure")),
            pressure(self.read("memory.pressure")),
            pressure(self.read("io.pressure")),
        )

    def _memory(self) -> Memory | None:
        usage, stat = self.number("memory.current"), self.read("memory.stat")
        if usage is None or not stat:
            return None
        return Memory(
            usage=usage,
            working_set=max(usage - field(stat, b"inactive_file"), 0),
            limit=self.number("memory.max"),
            rss=field(stat, b"anon"),
            faults=field(stat, b"pgfault"),
            major_faults=field(stat, b"pgmajfault"),
        )

    def _swap(self) -> Swap | None:
        usage = self.number("memory.swap.current")
        return None if usage is None else Swap(usage, self.number("memory.swap.max"))


def open_group(cgroups: Cgroups, path: str, room: Room | None = None) -> Group:
    """The readings of a group, which need not be there (any more); nothing is opened yet."""
    return V1Group(cgroups, path, room) if isinstance(cgroups, V1) else V2Group(cgroups.mounts[0], path, room)


def field(stat: bytes, name: bytes) -> int:
    """The number in the line ``name number``; 0 where no line has the name."""
    line = stat.find(b"\n%b " % name)
    if line < 0 and not stat.startswith(b"%b " % name):
        return 0
    start = line + len(name) + 2  # the first line has no break before it, as if it stood at -1
    return int(stat[start:].split(b"\n", 1)[0])


def pressure(text: bytes) -> Pressure | None:
    """A pressure file: lines ``some|full avg10=0.00 avg60=0.00 avg300=0.00 total=0``, the total in µs."""
    lines = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        avg10, avg60, avg300, total = (pair.partition(b"=")[2] for pair in pairs)
        lines[kind] = Stall(int(total) * 1000, float(avg10), float(avg60), float(avg300))
    if b"some" not in lines:
        return None
    # Before Linux 5.13 nothing is said of "full" for the CPU: there it can't be.
    return Pressure(lines[b"some"], lines.get(b"full", Stall(0, 0.0, 0.0, 0.0)))
