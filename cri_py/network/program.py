"""Programs run without forking the daemon (docs/adr/0003-posix-spawn.md): nft, and the plugins of CNI.

Each is the leader of a process group of its own, so that one that hangs ends with all that it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cri_py.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from cri_py.kernel.syscalls import pidfd_open

SEARCH_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"
OUTPUT_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 16
_KILLED: Final = -1000  # no exit code
_DYING_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Ended:
    """A program's exit code (-N: killed by signal N), and what it wrote."""

    code: int
    output: bytes
    errors: bytes

    @property
    def told(self) -> str:
        """What a person reads of it: errors and output, one after the other."""
        return b"\n".join(filter(None, (self.errors.strip(), self.output.strip()))).decode(errors="replace")


async def run(
    arguments: Sequence[str],
    stdin: bytes = b"",
    *,
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
    limit: int = OUTPUT_BYTES,
) -> Ended:
    """Run a program by posix_spawn: the daemon's memory is not copied and no fork handler of gRPC's core runs.

    It has ended when its process has; what somebody else holds open of its output is not waited for. ``limit`` is of
    output and of errors each, in bytes. Raises Unavailable (can't be executed), DeadlineExceeded, ResourceExhausted
    (more output); then, and when this is cancelled, its whole process group was killed and the program reaped.
    """
    with contextlib.ExitStack() as stack:
        output, errors = stack.enter_context(_pipe()), stack.enter_context(_pipe())
        pid = _spawn(arguments, stdin, environment, output.write_end, errors.write_end)
        code = _KILLED
        try:
            pidfd = pidfd_open(pid)
            stack.callback(os.close, pidfd)
            try:
                async with asyncio.timeout(deadline_s):
                    await _end(arguments[0], pidfd, (output, errors), limit)
            except TimeoutError:
                raise DeadlineExceeded(f"{arguments[0]} did not end within {deadline_s:g} s and was killed") from None
            code = _reap(pid)
        finally:
            if code == _KILLED:
                os.killpg(pid, signal.SIGKILL)  # not reaped yet, so the number is still its group's
                _reap_killed(pid)
        return Ended(code, bytes(output.kept), bytes(errors.kept))


class _Pipe:
    """What a program writes: the end that it is given, and what was read from the other so far."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self.kept = bytearray()

    def take(self, limit: int) -> bool:
        """Read what there is, up to ``limit`` in all and a bit more. Whether more may come."""
        while len(self.kept) <= limit:
            try:
                piece = os.read(self.read_end, _PIECE_BYTES)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.kept += piece
        return False


@contextlib.contextmanager
def _pipe() -> Iterator[_Pipe]:
    pipe = _Pipe()
    try:
        yield pipe
    finally:
        os.close(pipe.read_end)
        if pipe.write_end >= 0:
            os.close(pipe.write_end)


def _spawn(
    arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str] | None, output: int, errors: int
) -> int:
    source = os.memfd_create("stdin")  # takes any length; a pipe would have to be fed
    try:
        view = memoryview(stdin)
        while view:
            view = view[os.write(source, view) :]
        os.lseek(source, 0, os.SEEK_SET)
        return os.posix_spawn(
            arguments[0],
            list(arguments),
            dict(environment) if environment is not None else {"PATH": SEARCH_PATH, "LC_ALL": "C"},
            file_actions=[(os.POSIX_SPAWN_DUP2, end, fd) for fd, end in enumerate((source, output, errors))],
            setpgroup=0,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE],  # Python ignores it, and an ignored signal is inherited
        )
    except OSError as error:
        raise Unavailable(f"{arguments[0]} can't be executed: {error.strerror}") from error
    finally:
        os.close(source)


async def _end(name: str, pidfd: int, pipes: tuple[_Pipe, _Pipe], limit: int) -> None:
    """Read what the program writes until it has ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def read(pipe: _Pipe) -> None:
        if not pipe.take(limit):
            loop.remove_reader(pipe.read_end)
            if len(pipe.kept) > limit and not ended.done():
                ended.set_exception(ResourceExhausted(f"{name} wrote more than {limit} bytes and was killed"))

    def note_the_end() -> None:
        loop.remove_reader(pidfd)
        if not ended.done():
            ended.set_result(None)

    for pipe in pipes:
        os.close(pipe.write_end)
        pipe.write_end = -1
        loop.add_reader(pipe.read_end, read, pipe)
    loop.add_reader(pidfd, note_the_end)
    try:
        await ended
    finally:
        for fd in (pidfd, *(pipe.read_end for pipe in pipes)):
            loop.remove_reader(fd)
    for pipe in pipes:
        pipe.take(limit)


def _reap(pid: int) -> int:
    """The exit code of a child that has ended: there is nothing to wait for."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _reap_killed(pid: int) -> None:
    """It dies at once, unless the kernel holds it, in a wait that nothing ends or in a frozen group: then a thread
    waits for it, and not the loop."""
    pidfd = pidfd_open(pid)
    try:
        dying = select.poll()
        dying.register(pidfd, select.POLLIN)
        dead = bool(dying.poll(_DYING_S * 1000))
    finally:
        os.close(pidfd)
    if dead:
        _reap(pid)
    else:
        threading.Thread(target=_reap, args=(pid,), name=f"reap-{pid}", daemon=True).start()
