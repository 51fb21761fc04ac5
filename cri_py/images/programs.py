"""Credential helpers are programs of others: run by posix_spawn, in a process group that is killed at the deadline.

docs/adr/0003-posix-spawn.md says why the daemon doesn't fork. Blocking: called on a thread.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cri_py.errors import DeadlineExceeded, Unavailable

OUTPUT_BYTES: Final = 1 << 16  # what is kept; a secret is far shorter
_PIPE_BYTES: Final = 4096  # what a pipe takes at once for certain (pipe(7), PIPE_BUF)


@dataclass(frozen=True, slots=True)
class Ended:
    """``status`` is the exit status, or minus the signal; ``output`` what came on standard output."""

    status: int
    output: bytes


def run(arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str], timeout_s: float) -> Ended:
    """Run a program to its end; what it and its children still do at the deadline is killed.

    ``stdin`` has at most 4096 bytes. Raises Unavailable if it can't be executed, DeadlineExceeded.
    """
    assert len(stdin) <= _PIPE_BYTES
    deadline = time.monotonic() + timeout_s
    pid, output_end = _spawn(arguments, stdin, environment)
    try:
        pidfd = os.pidfd_open(pid)
        try:
            output = _until_ended(pidfd, output_end, deadline)
        finally:
            os.close(pidfd)
    finally:
        os.close(output_end)
        # It is not reaped yet, so the group's number can't belong to anybody else.
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if output is None:
        raise DeadlineExceeded(f"{arguments[0]} did not end within {timeout_s:g} s and was killed")
    return Ended(os.waitstatus_to_exitcode(status), output)


def _spawn(arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str]) -> tuple[int, int]:
    """The pid of the program and the end of a pipe that its output comes from."""
    input_end, feed = os.pipe()
    with open(feed, "wb", buffering=0) as stream:
        stream.write(stdin)
    output_end, report = os.pipe()
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_DUP2, input_end, 0),
        (os.POSIX_SPAWN_DUP2, report, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),  # it may show secrets
    ]
    try:
        pid = os.posix_spawn(
            arguments[0], list(arguments), environment, file_actions=actions, setpgroup=0, setsigmask=[]
        )
    except OSError as error:
        os.close(output_end)
        raise Unavailable(f"{arguments[0]} can't be executed: {error.strerror}") from error
    finally:
        os.close(input_end)
        os.close(report)
    os.set_blocking(output_end, False)
    return pid, output_end


def _until_ended(pidfd: int, output_end: int, deadline: float) -> bytes | None:
    """The output when the program has ended, whoever still holds the pipe; None at the deadline."""
    kept = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pidfd, selectors.EVENT_READ)
        selector.register(output_end, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))}
            if not ready:
                return None
            if output_end in ready and not _take(output_end, kept):
                selector.unregister(output_end)
            if pidfd in ready:
                _take(output_end, kept)
                return bytes(kept)


def _take(output_end: int, kept: bytearray) -> bool:
    """Read what is there; False at the end of it."""
    while True:
        try:
            piece = os.read(output_end, OUTPUT_BYTES)
        except BlockingIOError:
            return True
        if not piece:
            return False
        kept += piece[: OUTPUT_BYTES - len(kept)]
