"""What /proc tells, as small functions on bytes (proc(5), proc_pid_stat(5), proc_pid_mountinfo(5)).

A process may end between any two reads, so a function that asks about one answers None when it is gone; any other
failure is a KernelError. Imports are few: this module is loaded into the process from which every monitor is forked.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import NamedTuple

from cri_py.errors import KernelError

GONE = (errno.ENOENT, errno.ESRCH)


class MountPoint(NamedTuple):
    """One line of mountinfo. ``root`` is the part of the filesystem that is seen at ``path``."""

    id: int
    parent: int
    device: str  # major:minor
    root: str
    path: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]  # shared:7, master:3 …
    fstype: str
    source: str
    super_options: tuple[str, ...]


class Membership(NamedTuple):
    """One line of /proc/PID/cgroup; version 2 has no controllers and hierarchy 0."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str


def read(path: str) -> bytes:
    """The whole of a file whose size isn't known beforehand, as all of /proc."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(error.errno or 0, error.strerror or str(error), "read", path) from error
    return b"".join(parts)


def read_of(pid: int, file: str, proc: str) -> bytes | None:
    """The whole of a file of a process; None where it is gone."""
    try:
        return read(f"{proc}/{pid}/{file}")
    except KernelError as error:
        if error.errno in GONE:
            return None
        raise


# ------------------------------------------------------------- a process


def stat_fields(raw: bytes) -> tuple[bytes, ...]:
    """The fields of /proc/PID/stat after the name, beginning with the state (field 3 of the manual).

    The name stands in brackets and may hold blanks and brackets itself, so the last bracket is the one that counts.
    """
    return tuple(raw[raw.rindex(b")") + 1 :].split())


def start_ticks(pid: int, proc: str = "/proc") -> int | None:
    """When the process started, in clock ticks since boot (field 22): tells it from a later one with the same pid."""
    raw = read_of(pid, "stat", proc)
    return None if raw is None else int(stat_fields(raw)[19])


def set_own_name(name: str) -> None:
    """Name the calling process in ps and /proc/PID/comm (15 bytes at most), as prctl(PR_SET_NAME) does."""
    fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)


def own_start_ticks() -> int:
    """The same of the calling process, whose pid may be another in the namespace of the /proc that it sees."""
    return int(stat_fields(read("/proc/self/stat"))[19])


def state(pid: int, proc: str = "/proc") -> str | None:
    """R, S, D, T, t, Z or X (field 3)."""
    raw = read_of(pid, "stat", proc)
    return None if raw is None else stat_fields(raw)[0].decode()


def is_ending(pid: int, proc: str = "/proc") -> bool:
    """Whether it is gone or a zombie, exits just now, or has a SIGKILL before it, which nobody can take back.

    Fields 3, 9 (PF_EXITING, PF_SIGNALED of linux/sched.h) and 31: a fatal signal to a process is pending for each of
    its threads (kernel/signal.c, complete_signal).
    """
    raw = read_of(pid, "stat", proc)
    if raw is None:
        return True
    fields = stat_fields(raw)
    return fields[0] in b"ZX" or bool(int(fields[6]) & 0x404 or int(fields[28]) & 1 << (signal.SIGKILL - 1))


def children(pid: int, proc: str = "/proc") -> tuple[int, ...] | None:
    """The children of the process's first thread; exact only while they stand still."""
    raw = read_of(pid, f"task/{pid}/children", proc)
    return None if raw is None else tuple(int(word) for word in raw.split())


def parse_status(raw: bytes) -> dict[str, str]:
    """/proc/PID/status as a mapping, values without the blanks around them: ``{"VmRSS": "2048 kB", …}``."""
    pairs = (line.partition(b":") for line in raw.splitlines())
    return {key.decode(): value.strip().decode(errors="replace") for key, _, value in pairs}


def status(pid: int, proc: str = "/proc") -> dict[str, str] | None:
    """The fields of /proc/PID/status."""
    raw = read_of(pid, "status", proc)
    return None if raw is None else parse_status(raw)


def pss(pid: int, proc: str = "/proc") -> int | None:
    """Proportional set size in bytes: each shared page counted by its share."""
    raw = read_of(pid, "smaps_rollup", proc)
    for line in (raw or b"").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return None if raw is None else 0


# ----------------------------------------------------- mounts and cgroups


def _unescape(field: bytes) -> str:
    """Undo the octal escapes of blank, tab, newline and backslash that mountinfo uses."""
    if b"\\" not in field:
        return os.fsdecode(field)
    head, *rest = field.split(b"\\")
    return os.fsdecode(head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest))


def parse_mountinfo(raw: bytes) -> tuple[MountPoint, ...]:
    """The mounts of /proc/PID/mountinfo in the order in which they were made."""
    found = []
    for line in raw.splitlines():
        before, _, after = line.partition(b" - ")
        number, parent, device, root, path, options, *propagation = before.split(b" ")
        fstype, source, super_options = after.split(b" ")[:3]
        found.append(
            MountPoint(
                id=int(number),
                parent=int(parent),
                device=device.decode(),
                root=_unescape(root),
                path=_unescape(path),
                options=tuple(options.decode().split(",")),
                propagation=tuple(tag.decode() for tag in propagation if tag),
                fstype=fstype.decode(),
                source=_unescape(source),
                super_options=tuple(os.fsdecode(super_options).split(",")),
            )
        )
    return tuple(found)


def mountinfo(pid: int | str = "self", proc: str = "/proc") -> tuple[MountPoint, ...]:
    """The mounts that the process sees."""
    return parse_mountinfo(read(f"{proc}/{pid}/mountinfo"))


def parse_cgroup(raw: bytes) -> tuple[Membership, ...]:
    """The lines ``hierarchy:controller,controller:path`` of /proc/PID/cgroup (cgroups(7))."""
    found = []
    for line in raw.splitlines():
        hierarchy, controllers, path = os.fsdecode(line).split(":", 2)
        found.append(Membership(int(hierarchy), tuple(filter(None, controllers.split(","))), path))
    return tuple(found)


def cgroup(pid: int, proc: str = "/proc") -> tuple[Membership, ...] | None:
    """In which cgroups the process is, one per hierarchy."""
    raw = read_of(pid, "cgroup", proc)
    return None if raw is None else parse_cgroup(raw)


# ----------------------------------------------------------- the machine


def boot_id(proc: str = "/proc") -> str:
    """A new random id per boot: what was recorded under another one is gone."""
    return read(f"{proc}/sys/kernel/random/boot_id").decode().strip()


def last_capability() -> int:
    """The number of the last capability that this kernel has (capabilities(7))."""
    return int(read("/proc/sys/kernel/cap_last_cap"))
