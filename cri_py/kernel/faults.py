"""Where tests make it fail: system calls and trace points ask here. Nothing happens unless CRI_PY_FAULTS names a file.

The file is mapped and shared, so that a plan is seen at once and also in a child that has changed its root already::

    offset  0   for the daemon:    calls left until it happens, and what happens
    offset 16   for its monitors:  the same; their children and the holders included
    offset 32   the call where it happened
    offset 256  how calls begin that count; empty if all do

The sweeps of tests/system/test_faults_sweep.py count up until a verb ends with calls left.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
from typing import Final

from cri_py.errors import KernelError
from cri_py.kernel import syscalls

VARIABLE: Final = "CRI_PY_FAULTS"
DAEMON: Final = 0
MONITORS: Final = 16
PLACE: Final = 32
ONLY: Final = 256
SIZE: Final = 512
KILL: Final = 1  # SIGKILL the process that calls
FAIL: Final = 2  # the call fails with EIO; trace points pass
_PLAN: Final = struct.Struct("=qq")
_TRACE: Final = "trace"


def arm(side: int) -> None:
    """Follow the plan for DAEMON or MONITORS from now on, if there is one."""
    path = os.environ.get(VARIABLE)
    if path:
        with open(path, "r+b") as file:
            plan = mmap.mmap(file.fileno(), SIZE)
        syscalls.failpoint = lambda call, subject: _ask(plan, side, call, subject)


def trace(point: str) -> None:
    """A step is made: a place where the process may be killed between two steps."""
    if syscalls.failpoint is not None:
        syscalls.failpoint(_TRACE, point)


def _ask(plan: mmap.mmap, side: int, call: str, subject: str) -> None:
    left, act = _PLAN.unpack_from(plan, side)
    if left <= 0 or (call == _TRACE and act == FAIL):
        return
    name = f"{call} {subject}".encode()[: ONLY - PLACE]
    if not name.startswith(plan[ONLY:SIZE].rstrip(b"\0")):
        return
    _PLAN.pack_into(plan, side, left - 1, act)
    if left > 1:
        return
    plan[PLACE:ONLY] = name.ljust(ONLY - PLACE, b"\0")
    if act == KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    raise KernelError(errno.EIO, os.strerror(errno.EIO), call, subject)
