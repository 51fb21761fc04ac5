"""Parts that the programs of ``exec_steps`` and ``holder_steps`` share. Pure."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cri_py.kernel.constants import AT_FDCWD, PR_SET_DUMPABLE
from cri_py.kernel.steps import REPORT_FD, SCRATCH, Argument, Step, Then, Words

EVERY_FD: Final = 0xFFFFFFFF
_F_SETFD, _FD_CLOEXEC = 2, 1
_SET_MODE_FILTER: Final = 1
_CAPABILITY_VERSION_3: Final = 0x20080522


class Filter(NamedTuple):
    """A compiled seccomp profile and seccomp(2)'s flags for it."""

    bpf: bytes
    flags: int


def report_until_execve() -> Step:
    """The report's socket ends with the execve, which is how its success is told."""
    return Step("fcntl", (REPORT_FD, _F_SETFD, _FD_CLOEXEC))


def close_from(fd: int) -> Step:
    """Close all from ``fd`` on."""
    return Step("close_range", (fd, EVERY_FD, 0))


def awaited() -> Iterator[Step]:
    """A child's first: wait for the byte that says that its pid is known. The end without one: it is nobody's."""
    yield Step("read", (REPORT_FD, SCRATCH, 1))
    yield Step("", (SCRATCH, 0xFF, ord("g"), errno.EPIPE), Then.EXPECT)


def opened(path: bytes, flags: int, name: str) -> Step:
    """``path`` as ``kernel.steps.text`` gives it; the file gets the lowest free descriptor."""
    return Step("openat", (AT_FDCWD, path, flags), words=Words(f"open {name}"))


def root_inside() -> Iterator[Step]:
    """Be root of the user namespace that one has come into: until then the node's ids, which are nobody there."""
    yield Step("setgroups", (0, 0))
    yield Step("setresgid", (0, 0, 0))
    yield Step("setresuid", (0, 0, 0))
    yield Step("prctl", (PR_SET_DUMPABLE, 0))  # a change of ids has set it to what fs.suid_dumpable says


def filtered(secure: Filter) -> Step:
    """Filter this process from now on."""
    program: tuple[Argument, ...] = (len(secure.bpf) // 8, secure.bpf)  # struct sock_fprog
    return Step("seccomp", (_SET_MODE_FILTER, secure.flags, program), words=Words("load the seccomp filter"))


def capability_sets(effective: int, permitted: int, inheritable: int) -> Step:
    """capset(2), of bits by capability."""
    sets = (effective, permitted, inheritable)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    return Step("capset", (header, struct.pack("=6I", *(s & 0xFFFFFFFF for s in sets), *(s >> 32 for s in sets))))
