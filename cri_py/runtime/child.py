"""How a monitor and the process that it forks talk until execve.

One socket pair, close-on-exec. The child's end carries words up and one-byte commands down; when the child executes its
program the kernel closes its end, and that end of file is how success is told::

    monitor                          child
       │  clone3 ──────────────────────▶ │  namespaces, mounts, pivot_root
       │ ◀────────────────── born, pid   │  (with a user namespace only: another process goes on, see runtime.crossing)
       │ ◀──────────── ready, ticks, {…} │  (init only) + the tty's master
       │  "g" ─────────────────────────▶ │  user, capabilities, seccomp
       │ ◀──────────── error, kind, text │  or
       │ ◀──────────── end of file       │  execve

What the child says is one packet of three fields, separated by NUL: the monitor splits it and parses nothing, which
would cost it memory for as long as the pod lives (see ``monitor.protocol``).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from typing import NoReturn

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.kernel import fds, syscalls
from cri_py.kernel.null import open_null

READY = b"ready"
BORN = b"born"
ERROR = b"error"
_LIMIT = 65536
_TEXT_LIMIT = 4096
_HIGH_FD = 16
# Plain numbers: a monitor pays for an enum with memory.
_UNIX, _SEQPACKET, _DONT_WAIT = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET), int(socket.MSG_DONTWAIT)


class ChildError(Exception):
    """What the child said before it gave up; ``str`` is meant for a person, ``kind`` is the protocol's."""

    def __init__(self, text: str, kind: str = "failed") -> None:
        super().__init__(text)
        self.kind = kind


class Parent:
    """Both ends of the pair, as descriptors: the monitor keeps ``fd``, the child ``child_fd``."""

    def __init__(self) -> None:
        self.fd, self.child_fd = syscalls.seqpacket_pair()

    # -- in the child

    def run_child(self, body: Callable[[], None]) -> NoReturn:
        """Run ``body``, which should end in execve; say what went wrong if it doesn't. Never returns."""
        os.close(self.fd)  # else the monitor's death would be no end of file here
        try:
            body()
        except BaseException as error:
            self._say_last(error)
        os._exit(128)

    def _say_last(self, error: BaseException) -> None:
        try:
            text = str(error) or type(error).__name__  # it may quote an argument, and those may be longer than a packet
            self._say(ERROR, _kind(error), text[:_TEXT_LIMIT].encode("utf-8", "surrogateescape"))
        except OSError:
            os._exit(129)  # the monitor is gone; nobody is left to tell

    def say_ready(self, ticks: int, answer: bytes, sent: int = -1) -> None:
        """Init is built and waits. ``ticks``: its start time (proc_pid_stat(5), field 22); ``answer``: JSON, passed on
        as it is; ``sent``: a descriptor that goes along."""
        packet = b"\0".join((READY, b"%d" % ticks, answer))
        if sent < 0:
            os.write(self.child_fd, packet)
            return
        with socket.socket(fileno=os.dup(self.child_fd)) as theirs:
            socket.send_fds(theirs, [packet], [sent])

    def say_born(self, pid: int) -> None:
        """From now on ``pid``, another child of the monitor's, is init, and speaks."""
        self._say(BORN, b"%d" % pid, b"")

    def _say(self, *fields: bytes) -> None:
        os.write(self.child_fd, b"\0".join(fields))

    def await_go(self) -> bool:
        """Wait for the monitor's word; False if the monitor is gone or wants no start."""
        return os.read(self.child_fd, 1) == b"g"

    # -- in the monitor

    def started(self) -> None:
        """The child has its end; ours of it is closed, so that end of file means what it should."""
        os.close(self.child_fd)

    def go(self) -> None:
        os.write(self.fd, b"g")

    def read(self) -> bytes:
        """The child's next packet; empty at end of file."""
        return os.read(self.fd, _LIMIT)

    def read_with_descriptor(self, flags: int = 0) -> tuple[bytes, int]:
        """As ``read``, and the descriptor that has come along, which the caller owns, or -1. ``flags``: recv(2)'s."""
        ours = socket.SocketType(_UNIX, _SEQPACKET, 0, self.fd)
        try:
            packet, taken = fds.receive(ours, _LIMIT, 1, flags)
        finally:
            ours.detach()
        return packet, taken[0] if taken else -1

    def read_what_is_there(self) -> tuple[bytes, int]:
        """As ``read_with_descriptor``, but waits for nobody: empty also where nothing has been said."""
        try:
            return self.read_with_descriptor(_DONT_WAIT)
        except BlockingIOError:
            return b"", -1

    def hear(self) -> list[bytes]:
        """The child's next packet, as its three fields; empty at end of file."""
        packet = self.read()
        return packet.split(b"\0", 2) if packet else []

    def hear_with_descriptor(self) -> tuple[list[bytes], int]:
        """As ``hear``, and the descriptor that has come along, which the caller owns, or -1."""
        packet, descriptor = self.read_with_descriptor()
        return packet.split(b"\0", 2) if packet else [], descriptor

    def close(self) -> None:
        os.close(self.fd)


def _kind(error: BaseException) -> bytes:
    if isinstance(error, InvalidArgument):
        return b"invalid"
    return b"state" if isinstance(error, FailedPrecondition) else b"failed"


def said_text(said: list[bytes]) -> str:
    """The text of an ``error``."""
    return said[2].decode("utf-8", "surrogateescape")


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
        null = open_null(os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
    following = 3
    for fd in sorted(kept):
        if fd > following:
            syscalls.close_range(following, fd - 1)
        following = max(following, fd + 1)
    syscalls.close_range(following)
