"""How a monitor and the process that it forks talk until execve.

One socket pair, close-on-exec. The child's end carries JSON messages up and one-byte commands down; when the child
executes its program the kernel closes its end, and that end of file is how success is told::

    monitor                          child
       │  clone3 ──────────────────────▶ │  namespaces, mounts, pivot_root
       │ ◀──────────── {"ready": …}      │  (init only) + the tty's master
       │  "g" ─────────────────────────▶ │  user, capabilities, seccomp
       │ ◀──────────── {"error": …}      │  or
       │ ◀──────────── end of file       │  execve
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from cri_py.errors import FailedPrecondition
from cri_py.kernel import fds, syscalls

_LIMIT = 65536
_TEXT_LIMIT = 4096
_HIGH_FD = 16


class ChildError(Exception):
    """What the child said before it gave up; ``str`` is meant for a person."""


class Parent:
    """Both ends of the pair: the monitor keeps ``fd``, the child ``child_fd``."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    # -- in the child

    @property
    def child_fd(self) -> int:
        return self._theirs.fileno()

    def run_child(self, body: Callable[[], None]) -> NoReturn:
        """Run ``body``, which should end in execve; say what went wrong if it doesn't. Never returns."""
        self._ours.close()  # else the monitor's death would be no end of file here
        try:
            body()
        except BaseException as error:
            self._say_last(error)
        os._exit(128)

    def _say_last(self, error: BaseException) -> None:
        try:
            kind = "state" if isinstance(error, FailedPrecondition) else "failed"
            text = str(error) or type(error).__name__  # it may quote an argument, and those may be longer than a frame
            self.say({"error": text[:_TEXT_LIMIT], "kind": kind})
        except OSError:
            os._exit(129)  # the monitor is gone; nobody is left to tell

    def say(self, message: dict[str, Any], sent: list[int] | None = None) -> None:
        body = json.dumps(message).encode()
        if sent:
            socket.send_fds(self._theirs, [body], sent)
        else:
            self._theirs.send(body)

    def await_go(self) -> bool:
        """Wait for the monitor's word; False if the monitor is gone or wants no start."""
        return self._theirs.recv(1) == b"g"

    def child_end_is_at(self, fd: int) -> None:
        """``arrange`` has put the child's end there."""
        self._theirs.detach()
        self._theirs = socket.socket(fileno=fd)

    # -- in the monitor

    @property
    def fd(self) -> int:
        return self._ours.fileno()

    def started(self) -> None:
        """The child has its end; ours of it is closed, so that end of file means what it should."""
        self._theirs.close()

    def go(self) -> None:
        self._ours.send(b"g")

    def hear(self) -> tuple[dict[str, Any] | None, list[int]]:
        """The child's next message and its descriptors; None at end of file."""
        body, descriptors = fds.receive(self._ours, _LIMIT, 2)
        if not body:
            return None, descriptors
        message: dict[str, Any] = json.loads(body)
        return message, descriptors

    def expect_exec(self, timeout_s: float) -> None:
        """Wait until the child has executed its program. Raises ChildError with its words, or on time-out."""
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        try:
            if not poll.poll(timeout_s * 1000):
                raise ChildError(f"no execve within {timeout_s:.0f} s")
            message, _ = self.hear()
        finally:
            self.close()
        if message is not None:
            raise ChildError(message["error"])

    def close(self) -> None:
        self._ours.close()


def arrange(*pairs: tuple[int, int]) -> None:
    """Put each descriptor at its number, close-on-exec but for 0, 1 and 2.

    By way of high numbers: a descriptor may stand where another one goes, and what stands where depends on all that
    the monitor has opened and closed before.
    """
    copies = [(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD), number) for fd, number in pairs]
    for fd, number in copies:
        os.dup2(fd, number, inheritable=number <= 2)


def keep_only(*kept: int, null_stdio: bool = False) -> None:
    """Close every descriptor but 0, 1, 2 and ``kept``: what the monitor holds must not leak into a container."""
    if null_stdio:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in (0, 1, 2):
            os.dup2(null, number)
    following = 3
    for fd in sorted(kept):
        if fd > following:
            syscalls.close_range(following, fd - 1)
        following = max(following, fd + 1)
    syscalls.close_range(following)
