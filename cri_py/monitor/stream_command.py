"""Exec and attach: bytes between a client's session and a process's pipes or terminal, until one of both has ended."""

from __future__ import annotations

import os
import select
import time

from cri_py.monitor.link import READ_BYTES, Interests, Link, Outflow
from cri_py.monitor.stream_process import DRAIN_S, Process
from cri_py.wire.channels import STDIN, Buffer, Failure, Outcome
from cri_py.wire.events import Command, Dropped, Event, Gone, HalfClosed, Ready, Received, Resized
from cri_py.wire.violation import ProtocolError

_OPENING_S = 30.0  # what a client has to open its streams in; the kubelet's own server gives as much


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
        self._begun = time.monotonic()
        self._running = False
        self._ended = False  # the process
        self._told = False  # how it ended
        self._stuck = False  # output can't be looked for, as the client takes nothing
        self._listened_s = 0.0  # how long it was looked for since the process ended
        self._error = ""

    def run(self, rest: bytes) -> str:
        """Until it is over; ``rest`` came with the request's head. Returns what went wrong, "" for nothing."""
        try:
            self._take(self._session.receive(rest))
            while not self._session.gone:
                self._link.flush()
                self._register()
                listens, since = self._ended and not self._stuck, time.monotonic()
                self._turn(self._interests.wait(self._patience()))
                if listens:
                    self._listened_s += time.monotonic() - since
        except OSError as error:
            self._error = f"the client's connection broke: {error.strerror}"
        finally:
            if not self._ended:
                self._process.abandon()
            self._process.close()
        self._link.linger(*([self._idle_s] if self._told else []))
        return self._error

    # -------------------------------------------------------------------- turns

    def _register(self) -> None:
        self._link.register(self._interests)
        outputs, stdin = self._process.outputs, self._process.stdin
        self._stuck = False
        for lane, fd in outputs.items():
            reads = self._link.has_room and self._session.room(lane) > 0
            self._stuck = self._stuck or not reads
            self._interests.want(fd, read=reads, write=fd == stdin and bool(self._to_stdin))  # a terminal is both
        if stdin >= 0 and stdin not in outputs.values():
            self._interests.want(stdin, write=bool(self._to_stdin))
        if self._process.exit_fd >= 0 and not self._ended:
            self._interests.want(self._process.exit_fd, read=True)

    def _patience(self) -> float:
        """Seconds until ``_time_out``. Output that waits for a slow client is not given up with the process."""
        if self._ended and not self._stuck:
            return DRAIN_S - self._listened_s
        if not self._running:
            return self._begun + _OPENING_S - time.monotonic()
        return self._link.active_at + self._idle_s - time.monotonic()

    def _turn(self, happened: dict[int, int]) -> None:
        if self._patience() <= 0 and (self._ended or not happened):
            self._time_out()
            return
        self._take(self._link.receive(happened.get(self._link.fd, 0)))
        for lane, fd in list(self._process.outputs.items()):
            if happened.get(fd, 0) & ~select.POLLOUT:
                self._read(lane, fd)
        if self._process.stdin >= 0 and happened.get(self._process.stdin, 0):
            self._write()
        if self._process.exit_fd in happened and not self._ended:
            self._ended = True
            self._interests.drop(self._process.exit_fd)
            self._process.reap()
        self._finish_if_over()

    def _time_out(self) -> None:
        if self._ended and not self._stuck:  # somebody else holds its output open
            self._finish(self._process.outcome())
            return
        self._error = f"nothing was said for {self._idle_s:.0f} s"
        if not self._running:
            self._error = f"the client did not open its streams within {_OPENING_S:.0f} s"
        self._finish(Failure(f"the session ended: {self._error}"))

    def _finish_if_over(self) -> None:
        if self._running and not self._process.outputs and (self._ended or self._process.ends_with_outputs):
            self._ended = True
            self._finish(self._process.outcome())

    def _finish(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self._error = self._error or outcome.text
        self._told = self._running and not self._session.gone
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
                self._feed(event.payload)
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
            self._ended = True
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
        if (fd := self._process.outputs.get(lane, -1)) >= 0:
            self._interests.drop(fd)
            self._process.drop_output(lane)

    def _feed(self, payload: Buffer) -> None:
        """Input, at once where it is taken at once: what waits has to be copied."""
        if self._running and not self._to_stdin and self._process.stdin >= 0:
            try:
                written = os.write(self._process.stdin, payload)
            except OSError:
                written = 0  # full, or closed; _write tells the one from the other
            self._session.consumed(STDIN, written)
            payload = memoryview(payload)[written:]
        if payload:
            self._to_stdin.put(payload)
            self._write()

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
        if size := self._to_stdin.clear():
            self._session.consumed(STDIN, size)
        self._end_input_if_due()

    def _end_input_if_due(self) -> None:
        if self._stdin_ends and self._running and not self._to_stdin:
            self._end_input()

    def _end_input(self) -> None:
        if self._process.stdin >= 0 and not self._process.tty:
            self._interests.drop(self._process.stdin)
            self._process.end_input()
