"""A further process in a running container: a program that the daemon has written for it, executed by the monitor.

What such a process does, and why it is safe to let it walk into a hostile place, is in ``pods.exec_steps``; how a list
of system calls becomes a program, in ``kernel.steps``. Nothing is forked that has an interpreter in it: that would copy
some 600 pages, for a process that lives for a millisecond. See docs/adr/0008.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

from cri_py.kernel.steps import FORKED, REPORT_BYTES, REPORT_FD, Report, read_report
from cri_py.runtime.child import ChildError, Parent
from cri_py.runtime.container import Stdio

_TARGET_FD = 4
_FIRST_FREE = 5
_DEV_NULL = tuple((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3))


class StepFailed(Exception):
    """A step of the program failed; whoever wrote the program knows what it was for."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"step {report.step} failed with errno {report.number}")
        self.report = report


def start(program_fd: int, target: int, stdio: Stdio) -> tuple[int, Parent]:
    """Execute the program behind ``program_fd``; returns the pid of the process that becomes the command, and the pair.

    ``target``: a pidfd of the container's init; ``stdio`` of -1 means a tty, which the program opens inside.
    Raises StepFailed for what fails before the fork; what fails after it, ``hear`` tells.
    """
    pid, parent = bear(program_fd, target, stdio)
    let_go_on(parent)
    return pid, parent


def bear(program_fd: int, target: int, stdio: Stdio) -> tuple[int, Parent]:
    """As ``start``, with ``target`` at descriptor 4; but the child waits until it is let go on.

    The program forks, as only a child can be born into a pid namespace, and the child is made our own.
    """
    parent = Parent()
    copies: list[int] = []
    try:
        program = _high(program_fd, copies)
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, _high(parent.child_fd, copies), REPORT_FD),
            (os.POSIX_SPAWN_DUP2, _high(target, copies), _TARGET_FD),
        ]
        for number, fd in enumerate(stdio):
            actions.append(_DEV_NULL[number] if fd < 0 else (os.POSIX_SPAWN_DUP2, _high(fd, copies), number))
        first = os.posix_spawn(f"/proc/self/fd/{program}", [b"cri-exec"], {}, file_actions=actions)
    except BaseException:
        parent.started()
        parent.close()
        raise
    finally:
        for fd in copies:
            os.close(fd)
    parent.started()
    return await_second(parent, first), parent


def _high(fd: int, copies: list[int]) -> int:
    """The same descriptor, or a copy if it stands where another one goes to."""
    if fd >= _FIRST_FREE:
        return fd
    copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE))
    return copies[-1]


def hear(parent: Parent) -> Report | None:
    """The program's last word; None for the end of file that means execve, or where it has ended without a word."""
    return _report_or_master(*parent.read_what_is_there())[0]


def hear_with_terminal(parent: Parent) -> tuple[Report | None, int]:
    """As ``hear``, but waits for it, or first the master of the terminal, which the caller owns; else -1."""
    return _report_or_master(*parent.read_with_descriptor())


def _report_or_master(message: bytes, descriptor: int) -> tuple[Report | None, int]:
    if descriptor >= 0:
        return None, descriptor
    return (read_report(message) if len(message) == REPORT_BYTES else None), -1


def await_second(parent: Parent, first: int) -> int:
    """The pid of the child, when the program's first process has told it and ended.

    Only the first is waited for, which stands outside of the container. The child is inside, where it can be stopped,
    frozen or out of memory, and holds the same end of the pair: no end of file tells of the first. It waits for our
    word before it says its first, which could overtake its pid.
    """
    _, status = os.waitpid(first, 0)
    message, _ = parent.read_what_is_there()
    if not message:
        parent.close()
        raise ChildError(f"the process that enters the container ended with status {status} and said nothing")
    report = read_report(message)
    if report.step != FORKED:
        parent.close()
        raise StepFailed(report)
    return report.number


def let_go_on(parent: Parent) -> None:
    """The child's pid is known, so it may say its first word."""
    try:
        parent.go()
    except BrokenPipeError:
        return  # killed by now, as its exit will tell
