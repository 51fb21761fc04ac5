"""What an exec or attach works on: a further process of a container, or its own one, and the descriptors to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from cri_py.cgroups import ExecScope
from cri_py.errors import KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.steps import told
from cri_py.monitor.tracked import KILLED, dropped, end_scope, exit_code
from cri_py.runtime import container
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import ChildError, Parent
from cri_py.wire.channels import STDERR, STDOUT, Exit, Failure, Outcome, Streams

DRAIN_S = 2.0  # how long output is awaited once the process has ended: a grandchild may hold the pipes for ever
_START_S = 30.0
_HANGUP_S = 1.0  # what a terminal's process gets to end by itself
_KILL_S = 5.0


class Process(ABC):
    """``outputs``: lane → descriptor to read; ``stdin``: to write, or -1, and of a terminal the same as its output."""

    def __init__(self, *, tty: bool) -> None:
        self.outputs: dict[int, int] = {}
        self.stdin = -1
        self.exit_fd = -1  # readable once the process has ended; -1 before it runs
        self.tty = tty
        self.ends_with_outputs = False  # rather than with the process
        self._size: tuple[int, int] | None = None

    @abstractmethod
    def start(self) -> str:
        """Make it run; returns what went wrong, "" for nothing."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """How it ended; asked once its outputs have ended, or it has."""

    @abstractmethod
    def reap(self) -> None:
        """It has ended: its exit is collected, so that it is no zombie for as long as its output waits for a reader."""

    @abstractmethod
    def abandon(self) -> None:
        """The client has gone: end what ran for it alone."""

    def resize(self, columns: int, rows: int) -> None:
        """Give its terminal a size, at its birth if it has none yet; nothing where it will have none."""
        self._size = (columns, rows)
        if self.tty and self.stdin >= 0:
            fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end_input(self) -> None:
        """Let it read the end of its stdin; a terminal has none but what is typed."""
        if self.stdin >= 0 and not self.tty:
            os.close(self.stdin)
            self.stdin = -1

    def drop_output(self, lane: int) -> None:
        """Read nothing more of it. Again is nothing."""
        fd = self.outputs.pop(lane, -1)
        if fd >= 0 and fd != self.stdin:  # a terminal is both
            os.close(fd)

    def close(self) -> None:
        """Let go of all there is."""
        for fd in {*self.outputs.values(), self.stdin, self.exit_fd} - {-1}:
            os.close(fd)
        self.outputs, self.stdin, self.exit_fd = {}, -1, -1

    def _await_exit(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self.exit_fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


class Executed(NamedTuple):
    """A new process in the container whose init ``pidfd`` holds."""

    pidfd: int
    scope: ExecScope
    program: int  # a descriptor, of its steps (``kernel.steps``)

    def fds(self) -> tuple[int, ...]:
        return self.pidfd, self.program


class ExecutedTold(NamedTuple):
    """What the daemon tells of an exec: the words of its program's steps (``kernel.steps``), and who it runs as on the
    node (uid, gid)."""

    words: list[list[Any]]
    owner: tuple[int, ...]


class ExecutedProcess(Process):
    """A further process in a container, a child of this one. ``program``: of its steps (``kernel.steps``); ``target``:
    a pidfd of the container's init."""

    def __init__(
        self, target: Executed, asked: ExecutedTold, streams: Streams, tell_killed: Callable[[], object]
    ) -> None:
        super().__init__(tty=streams.tty)
        self._target, self._scope, self._program = target
        self._words, self._owner = asked
        self._streams = streams
        self._tell_killed = tell_killed
        self._abandoned = False
        self._pid = 0
        self._code = 0

    def start(self) -> str:
        """As Process.start."""
        stdio = container.Stdio(-1, -1, -1) if self.tty else self._pipes()
        try:
            self._pid, parent = runtime_exec.start(self._program, self._target, stdio)
        except runtime_exec.StepFailed as error:
            return told(self._words, error.report)
        except ChildError as error:
            end_scope(self._scope)  # the second process may be on its way, and nobody knows its pid
            return str(error)
        except OSError as error:
            return str(error)
        finally:
            for fd in stdio:
                if fd >= 0:
                    os.close(fd)
        self.exit_fd = syscalls.pidfd_open(self._pid)
        failure = self._await_execve(parent)
        if failure:
            self.abandon()
        return failure

    def _pipes(self) -> container.Stdio:
        """The process's ends; ours are kept."""
        child_in = child_out = child_err = -1
        null = os.open("/proc/self/fd/0", os.O_RDWR | os.O_CLOEXEC)  # this process's own is kernel.null's
        if self._streams.stdin:
            child_in, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
        if self._streams.stdout:
            child_out = self._output(STDOUT)
        if self._streams.stderr:
            child_err = self._output(STDERR)
        ends = [fd if fd >= 0 else os.dup(null) for fd in (child_in, child_out, child_err)]
        os.close(null)
        return container.Stdio(*ends)

    def _output(self, lane: int) -> int:
        self.outputs[lane], write_end = os.pipe2(os.O_CLOEXEC)
        os.fchown(write_end, *self._owner)  # who opens /dev/stdout by its name must be allowed to
        os.set_blocking(self.outputs[lane], False)
        return write_end

    def _await_execve(self, parent: Parent) -> str:
        """Until the program runs; with a terminal its master comes first."""
        poll = select.poll()
        poll.register(parent.fd, select.POLLIN)
        try:
            while poll.poll(_START_S * 1000):
                report, master = runtime_exec.hear_with_terminal(parent)
                if master < 0:
                    return told(self._words, report) if report else ""
                self.outputs[STDOUT] = self.stdin = master
                os.set_blocking(master, False)
                if self._size is not None:
                    self.resize(*self._size)
                with contextlib.suppress(BrokenPipeError):  # killed meanwhile: the next message is its end
                    parent.go()
            return f"the program was not executed within {_START_S:.0f} s"
        finally:
            parent.close()

    def outcome(self) -> Outcome:
        """As Process.outcome."""
        self.reap()
        return Exit(self._code)

    def reap(self) -> None:
        """As Process.reap; again is nothing."""
        if self._pid:
            self._code = exit_code(os.waitpid(self._pid, 0)[1])
            self._pid = 0
            if self._code == KILLED and not self._abandoned:
                self._tell_killed()

    def abandon(self) -> None:
        """A terminal's process is told by the hang-up and then killed; without one it is killed with all it started."""
        if not self._pid:
            return
        self._abandoned = True
        if self.tty:
            self._hang_up()
        os.kill(self._pid, signal.SIGKILL)
        try:
            if not self.tty:
                self._scope.kill(_KILL_S)
        except KernelError:
            return  # in uninterruptible sleep: it ends when the kernel lets it
        finally:
            self.reap()

    def _hang_up(self) -> None:
        for fd in {*self.outputs.values(), self.stdin} - {-1}:
            os.close(fd)
        self.outputs, self.stdin = {}, -1
        self._await_exit(_HANGUP_S)

    def close(self) -> None:
        """As Process.close; the scope goes with the last that it holds."""
        super().close()
        self.reap()  # where the client left before it could be told how it ended
        dropped(self._scope)  # what is still held the monitor removes later


class AttachedProcess(Process):
    """The container's own process, whose output the monitor lets us have a copy of. ``target``: its pidfd."""

    def __init__(self, target: int, stdin: int, outputs: tuple[int, int], streams: Streams) -> None:
        super().__init__(tty=streams.tty)
        wanted = {STDOUT: streams.stdout, STDERR: streams.stderr and not streams.tty}
        for lane, fd in zip((STDOUT, STDERR), outputs, strict=True):
            if fd >= 0 and wanted[lane]:
                os.set_blocking(fd, False)
                self.outputs[lane] = fd
            elif fd >= 0:
                os.close(fd)
        self.stdin = stdin
        self.exit_fd = target
        self.ends_with_outputs = bool(self.outputs)

    def start(self) -> str:
        """As Process.start: it runs already."""
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
        return ""

    def outcome(self) -> Outcome:
        """Its exit is the container's own affair; an end of its output before that is ours."""
        if self._await_exit(DRAIN_S):
            return Exit(0)
        return Failure("the output ended before the container: closed, or read too slowly: it waits for nobody long")

    def reap(self) -> None:
        """As Process.reap: the monitor does."""

    def abandon(self) -> None:
        """As Process.abandon: it goes on."""
