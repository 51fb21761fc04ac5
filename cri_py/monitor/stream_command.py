"""Exec and attach: bytes between a client's session and a process's pipes or terminal, until one of both has ended."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import termios
import time
from typing import Any, Protocol

from cri_py.cgroups import ExecScope
from cri_py.errors import CriError, KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.steps import told
from cri_py.monitor.link import READ_BYTES, Interests, Link, Outflow
from cri_py.monitor.tracked import exit_code
from cri_py.runtime import container
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import ChildError, Parent
from cri_py.wire.channels import STDERR, STDIN, STDOUT, Exit, Failure, Outcome, Streams
from cri_py.wire.events import Command, Dropped, Event, Gone, HalfClosed, Ready, Received, Resized
from cri_py.wire.violation import ProtocolError

_START_S = 30.0
_DRAIN_S = 2.0  # how long output is awaited once the process has ended: a grandchild may hold the pipes for ever
_HANGUP_S = 1.0  # what a terminal's process gets to end by itself
_KILL_S = 5.0


class Process(Protocol):
    """What a command works on. ``outputs``: lane → descriptor to read; ``stdin``: to write, or -1."""

    outputs: dict[int, int]
    stdin: int
    exit_fd: int  # readable once the process has ended; -1 before it runs

    def start(self) -> str:
        """Make it run; returns what went wrong, "" for nothing."""

    def resize(self, columns: int, rows: int) -> None:
        """Give its terminal a size; nothing where it has none."""

    def end_input(self) -> None:
        """Let it read the end of its stdin."""

    def outcome(self) -> Outcome:
        """How it ended; asked once its outputs have ended, or it has."""

    def abandon(self) -> None:
        """The client has gone: end what ran for it alone."""

    def close(self) -> None:
        """Let go of all there is."""


class CommandPump:
    """One loop for all directions. Nothing is read that could not be passed on: both sides wait for each other."""

    def __init__(self, link: Link, session: Command, process: Process, idle_s: float) -> None:
        self._link = link
        self._session = session
        self._process = process
        self._idle_s = idle_s
        self._interests = Interests()
        self._to_stdin = Outflow()
        self._stdin_ends = False
        self._running = False
        self._ended_at = 0.0
        self._error = ""

    def run(self, rest: bytes) -> str:
        """Until it is over; ``rest`` came with the request's head. Returns what went wrong, "" for nothing."""
        try:
            self._take(self._session.receive(rest))
            while not self._session.gone:
                self._link.flush()
                self._register()
                happened = self._interests.wait(self._patience())
                self._turn(happened)
        except OSError as error:
            self._error = f"the client's connection broke: {error.strerror}"
        finally:
            if not self._ended_at:
                self._process.abandon()
            self._process.close()
        self._link.linger()
        return self._error

    # -------------------------------------------------------------------- turns

    def _register(self) -> None:
        self._link.register(self._interests)
        outputs, stdin = self._process.outputs, self._process.stdin
        for lane, fd in outputs.items():
            reads = self._link.has_room and self._session.room(lane) > 0
            self._interests.want(fd, read=reads, write=fd == stdin and bool(self._to_stdin))  # a terminal is both
        if stdin >= 0 and stdin not in outputs.values():
            self._interests.want(stdin, write=bool(self._to_stdin))
        if self._process.exit_fd >= 0 and not self._ended_at:
            self._interests.want(self._process.exit_fd, read=True)

    def _patience(self) -> float:
        if self._ended_at:
            return self._ended_at + _DRAIN_S - time.monotonic()
        return self._link.active_at + self._idle_s - time.monotonic()

    def _turn(self, happened: dict[int, int]) -> None:
        if not happened and self._patience() <= 0:
            self._time_out()
            return
        if self._link.fd in happened and happened[self._link.fd] & ~select.POLLOUT:
            self._take(self._link.receive())
        for lane, fd in list(self._process.outputs.items()):
            if happened.get(fd, 0) & ~select.POLLOUT:
                self._read(lane, fd)
        if self._process.stdin >= 0 and happened.get(self._process.stdin, 0):
            self._write()
        if self._process.exit_fd in happened and not self._ended_at:
            self._ended_at = time.monotonic()
            self._interests.drop(self._process.exit_fd)
        self._finish_if_over()

    def _time_out(self) -> None:
        if self._ended_at:  # somebody else holds its output open
            self._finish(self._process.outcome())
        else:
            self._error = f"nothing was said for {self._idle_s:.0f} s"
            self._finish(Failure(f"the session ended: {self._error}"))

    def _finish_if_over(self) -> None:
        if self._running and not self._process.outputs and (self._ended_at or self._process.exit_fd < 0):
            self._ended_at = self._ended_at or time.monotonic()
            self._finish(self._process.outcome())

    def _finish(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._error = self._error or outcome.text
        try:
            self._session.finish(outcome)
        except ProtocolError as error:
            self._error = str(error)
            self._session.leave()

    # ------------------------------------------------------------------- client

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Ready):
                self._start()
            elif isinstance(event, Received):
                self._to_stdin.put(event.payload)
                self._write()
            elif isinstance(event, HalfClosed) or (isinstance(event, Dropped) and event.lane == STDIN):
                self._stdin_ends = True
                self._end_input_if_due()
            elif isinstance(event, Dropped):
                self._drop_output(event.lane)
            elif isinstance(event, Resized):
                self._process.resize(event.columns, event.rows)
            elif isinstance(event, Gone):
                self._error = str(event.error) if event.error else self._error

    def _start(self) -> None:
        failure = self._process.start()
        if failure:
            self._ended_at = time.monotonic()
            self._finish(Failure(failure))
            return
        self._running = True
        self._write()
        self._end_input_if_due()

    # ------------------------------------------------------------------ process

    def _read(self, lane: int, fd: int) -> None:
        room = self._session.room(lane)
        if not room:
            return  # the lane before it has taken all: to read nothing would look like the end
        try:
            output = os.read(fd, min(READ_BYTES, room))
        except BlockingIOError:
            return
        except OSError:
            output = b""  # EIO: the last slave of a terminal was closed
        if output:
            self._session.send(lane, output)
        else:
            self._drop_output(lane)

    def _drop_output(self, lane: int) -> None:
        fd = self._process.outputs.pop(lane, -1)
        if fd >= 0:
            self._interests.drop(fd)
            if fd != self._process.stdin:  # a terminal is both
                os.close(fd)

    def _write(self) -> None:
        """Feed the process; what it will not read any more is taken and let go, as a shell's pipe does."""
        if not self._running:
            return
        try:
            while self._to_stdin and self._process.stdin >= 0:
                written = os.write(self._process.stdin, self._to_stdin.first)
                self._to_stdin.taken(written)
                self._session.consumed(STDIN, written)
        except BlockingIOError:
            return
        except OSError:
            self._end_input()
        if self._process.stdin < 0 and (size := self._to_stdin.clear()):
            self._session.consumed(STDIN, size)
        self._end_input_if_due()

    def _end_input_if_due(self) -> None:
        if self._stdin_ends and self._running and not self._to_stdin:
            self._end_input()

    def _end_input(self) -> None:
        if self._process.stdin >= 0 and self._process.stdin not in self._process.outputs.values():
            self._interests.drop(self._process.stdin)
            self._process.end_input()


class ExecutedProcess:
    """A further process in a container, a child of this one."""

    def __init__(self, program: int, words: list[list[Any]], pid: int, scope: ExecScope, streams: Streams) -> None:
        self.outputs: dict[int, int] = {}
        self.stdin = -1
        self.exit_fd = -1
        self._program = program
        self._words = words
        self._target = pid
        self._scope = scope
        self._streams = streams
        self._pid = 0

    def start(self) -> str:
        """As Process.start."""
        stdio = container.Stdio(-1, -1, -1) if self._streams.tty else self._pipes()
        try:
            self._pid, parent = runtime_exec.start(self._program, self._target, stdio)
        except runtime_exec.StepFailed as error:
            return told(self._words, error.report)
        except (CriError, OSError, ChildError) as error:
            return str(error)
        finally:
            for fd in (*stdio, self._program):
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
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
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
            return f"the program was not executed within {_START_S:.0f} s"
        finally:
            parent.close()

    def resize(self, columns: int, rows: int) -> None:
        """As Process.resize."""
        if self._streams.tty and self.stdin >= 0:
            fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end_input(self) -> None:
        """As Process.end_input."""
        os.close(self.stdin)
        self.stdin = -1

    def outcome(self) -> Outcome:
        """As Process.outcome."""
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return Exit(exit_code(status))

    def abandon(self) -> None:
        """A terminal's process is told by the hang-up and then killed; without one it is killed with all it started."""
        if not self._pid:
            return
        if self._streams.tty:
            self.close()
            self._await_exit(_HANGUP_S)
        os.kill(self._pid, signal.SIGKILL)
        try:
            if not self._streams.tty:
                self._scope.kill(_KILL_S)
        except KernelError:
            return  # in uninterruptible sleep: it ends when the kernel lets it
        finally:
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _await_exit(self, timeout_s: float) -> None:
        if self.exit_fd >= 0:
            poll = select.poll()
            poll.register(self.exit_fd, select.POLLIN)
            poll.poll(timeout_s * 1000)

    def close(self) -> None:
        """As Process.close."""
        for fd in {*self.outputs.values(), self.stdin} - {-1}:
            os.close(fd)
        self.outputs, self.stdin = {}, -1
        if not self._pid:
            self._scope.drop()


class AttachedProcess:
    """The container's own process, whose output the monitor lets us have a copy of."""

    def __init__(self, pid: int, stdin: int, outputs: tuple[int, int], streams: Streams) -> None:
        wanted = {STDOUT: streams.stdout, STDERR: streams.stderr and not streams.tty}
        self.outputs = {}
        for lane, fd in zip((STDOUT, STDERR), outputs, strict=True):
            if fd >= 0 and wanted[lane]:
                os.set_blocking(fd, False)
                self.outputs[lane] = fd
            elif fd >= 0:
                os.close(fd)
        self.stdin = stdin
        self.exit_fd = syscalls.pidfd_open(pid)
        self._tty = streams.tty

    def start(self) -> str:
        """As Process.start: it runs already."""
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
        return ""

    def resize(self, columns: int, rows: int) -> None:
        """As Process.resize; with a terminal stdin is its master."""
        if self._tty and self.stdin >= 0:
            fcntl.ioctl(self.stdin, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end_input(self) -> None:
        """As Process.end_input: with stdin_once this was the only descriptor."""
        if not self._tty:
            os.close(self.stdin)
            self.stdin = -1

    def outcome(self) -> Outcome:
        """Its exit is the container's own affair; an end of its output before that is ours."""
        poll = select.poll()
        poll.register(self.exit_fd, select.POLLIN)
        if poll.poll(_DRAIN_S * 1000):
            return Exit(0)
        return Failure("the client read too slowly: the container does not wait for it, so it is cut off")

    def abandon(self) -> None:
        """As Process.abandon: it goes on."""

    def close(self) -> None:
        """As Process.close."""
        for fd in {*self.outputs.values(), self.stdin} - {-1}:
            os.close(fd)
        self.outputs, self.stdin = {}, -1
