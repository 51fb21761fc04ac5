"""What /proc tells of a process's isolation and limits, for who looks at a container from outside (proc(5)).

As in ``procfs``, None means that the process is gone. A module of its own, for monitors never ask.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from cri_py.errors import KernelError
from cri_py.kernel.procfs import GONE, read_of


class IdRange(NamedTuple):
    """A line of uid_map or gid_map (user_namespaces(7)): ``length`` ids, counted from these two."""

    inside: int
    outside: int
    length: int


class ResourceLimit(NamedTuple):
    """One line of /proc/PID/limits; -1 is unlimited."""

    name: str  # RLIMIT_NOFILE
    soft: int
    hard: int
    unit: str  # files, bytes … or ""


def namespaces(pid: int, proc: str = "/proc") -> dict[str, int] | None:
    """The process's namespaces, their numbers by the names of namespaces(7): ``{"mnt": 4026531841, …}``.

    Needs the right to trace it (ptrace(2), PTRACE_MODE_READ_FSCREDS).
    """
    found = {}
    try:
        for name in os.listdir(f"{proc}/{pid}/ns"):
            if not name.endswith("_for_children"):
                found[name] = int(os.readlink(f"{proc}/{pid}/ns/{name}").partition(":[")[2][:-1])
    except OSError as error:
        if error.errno in GONE:
            return None
        raise KernelError(error.errno or 0, error.strerror or str(error), "readlink", f"{proc}/{pid}/ns") from error
    return found


def parse_id_map(raw: bytes) -> tuple[IdRange, ...]:
    """The lines of /proc/PID/uid_map or gid_map."""
    return tuple(IdRange(*map(int, line.split())) for line in raw.splitlines())


def id_map(pid: int, file: str, proc: str = "/proc") -> tuple[IdRange, ...] | None:
    """``file`` is uid_map or gid_map; outside ids are those of the reader's user namespace."""
    raw = read_of(pid, file, proc)
    return None if raw is None else parse_id_map(raw)


_LIMIT_NAMES = {
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max data size": "DATA",
    "Max stack size": "STACK",
    "Max core file size": "CORE",
    "Max resident set": "RSS",
    "Max processes": "NPROC",
    "Max open files": "NOFILE",
    "Max locked memory": "MEMLOCK",
    "Max address space": "AS",
    "Max file locks": "LOCKS",
    "Max pending signals": "SIGPENDING",
    "Max msgqueue size": "MSGQUEUE",
    "Max nice priority": "NICE",
    "Max realtime priority": "RTPRIO",
    "Max realtime timeout": "RTTIME",
}


def parse_limits(raw: bytes) -> tuple[ResourceLimit, ...]:
    """/proc/PID/limits, its columns as wide as the kernel prints them (fs/proc/base.c); new limits are left out."""
    found = []
    for line in raw.decode().splitlines()[1:]:
        name = _LIMIT_NAMES.get(line[:25].rstrip())
        if name is not None:
            soft, hard, *unit = line[26:].split()
            found.append(ResourceLimit(f"RLIMIT_{name}", _number(soft), _number(hard), unit[0] if unit else ""))
    return tuple(found)


def _number(word: str) -> int:
    return -1 if word == "unlimited" else int(word)


def limits(pid: int, proc: str = "/proc") -> tuple[ResourceLimit, ...] | None:
    """The process's resource limits (getrlimit(2))."""
    raw = read_of(pid, "limits", proc)
    return None if raw is None else parse_limits(raw)


def oom_score_adj(pid: int, proc: str = "/proc") -> int | None:
    """-1000 (never) to 1000 (first): how the OOM killer's choice is shifted."""
    raw = read_of(pid, "oom_score_adj", proc)
    return None if raw is None else int(raw)


def security_label(pid: int, proc: str = "/proc") -> str | None:
    """What AppArmor or SELinux confines the process by; "" where the kernel runs neither (EINVAL)."""
    try:
        raw = read_of(pid, "attr/current", proc)
    except KernelError as error:
        if error.errno == errno.EINVAL:
            return ""
        raise
    return None if raw is None else raw.rstrip(b"\0\n").decode(errors="replace")
