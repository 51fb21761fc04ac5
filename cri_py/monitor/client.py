"""The daemon's end: the spawner that it keeps, and one connection per monitor."""

from __future__ import annotations

import asyncio
import contextvars
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from cri_py.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    StartError,
    Unavailable,
)
from cri_py.kernel import faults
from cri_py.monitor import protocol, transport


class StepFailed(Exception):
    """A step of a program failed with an errno; the caller, who wrote it, has the words for it."""

    def __init__(self, text: str) -> None:
        super().__init__(f"step and errno {text}")
        self.step, self.errno = map(int, text.split())


SOCKET_NAME: Final = "monitor.sock"
_ERRORS: Final[dict[str, Callable[[str], Exception]]] = {
    "start": StartError,
    "state": FailedPrecondition,
    "missing": NotFound,
    "invalid": InvalidArgument,
    "failed": Internal,
    "step": StepFailed,
}


def _environment() -> dict[str, str]:
    """A spawner and its monitors get as little as they need."""
    kept = {name: os.environ[name] for name in ("PATH", faults.VARIABLE) if name in os.environ}
    return {"PATH": os.defpath, "LANG": "C.UTF-8", **kept}


class SpawnerClient:
    """Keeps one spawner. It holds no state, so a dead one is simply replaced at the next need."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self.on_start: Callable[[], None] = lambda: None
        self.pid = 0

    def start(self) -> None:
        """Execute a spawner. posix_spawn, not fork: no handler of grpc runs, nothing of this process is copied."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-m", "cri_py.monitor.spawner", "3"],
                _environment(),
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)],
                # What the daemon was started with ignored (nohup, a shell's job) would stay so in every container.
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        ours.setblocking(False)
        self._control = ours
        self.on_start()

    def spawn(self, directory: str) -> MonitorClient:
        """Ask for a monitor that lives in ``directory``. Its client is connected at once; the monitor says ``up``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, listen(directory) as listener:
            fds = theirs.fileno(), listener.fileno()
            try:
                self._send(directory, fds)
            except OSError:
                self.close()
                self.start()
                self._send(directory, fds)
        return MonitorClient(ours)

    def _send(self, directory: str, fds: tuple[int, int]) -> None:
        if self._control is None:
            raise BrokenPipeError
        transport.send(self._control, os.fsencode(directory), fds)

    def close(self) -> None:
        """Let the spawner go; its monitors live on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self.pid:
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.pid = 0


def listen(directory: str) -> socket.socket:
    """The socket where a later daemon finds the monitor that gets it; bound through the directory's descriptor: a
    socket's path is limited to 108 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
            listener.listen(4)
        except BaseException:
            listener.close()
            raise
    finally:
        os.close(fd)
    return listener


class MonitorClient:
    """One connection to one monitor: requests with answers, events as they come.

    ``on_event`` is called with each event; ``on_lost`` once, when the monitor has gone without being asked to.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._up: asyncio.Future[int] = self._loop.create_future()
        self.pid = 0
        self._seq = secrets.randbits(
            48
        )  # a monitor may still owe answers to an earlier daemon; they must fit none of ours
        self._outbox: list[tuple[bytes, tuple[int, ...]]] = []
        self._closed = False
        self.early: list[dict[str, Any]] = []  # events from before anybody listened
        self.on_event: Callable[[dict[str, Any]], None] = self.early.append
        self.on_lost: Callable[[], None] = lambda: None
        # What the monitor reports is no part of the call that made it, whose id every line of its log would carry.
        contextvars.Context().run(self._loop.add_reader, connection.fileno(), self._read)

    @classmethod
    def connect(cls, directory: str) -> MonitorClient:
        """Find the monitor that lives in ``directory`` again. Raises Unavailable if none listens there."""
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK  # the queue of one that hangs may be full
        connection = socket.socket(socket.AF_UNIX, kind)
        try:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
            finally:
                os.close(fd)
        except OSError as error:
            connection.close()
            raise Unavailable(f"no monitor answers in {directory}: {error.strerror}") from error
        return cls(connection)

    async def wait_until_up(self, timeout_s: float) -> int:
        """The pid of a monitor that was just spawned. Raises Unavailable if it died, DeadlineExceeded."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._up
        except TimeoutError:
            raise DeadlineExceeded(f"the pod's monitor did not come up within {timeout_s:.0f} s") from None

    async def request(
        self, op: str, *, timeout_s: float | None, fds: tuple[int, ...] = (), **fields: Any
    ) -> dict[str, Any]:
        """One frame out, one frame back. Raises the monitor's refusal as a CriError, Unavailable if it is gone."""
        if self._closed:
            raise Unavailable("the pod's monitor is gone", hint="stop and remove the pod")
        self._seq += 1
        seq = self._seq
        self._send(protocol.request(op, seq, fields), fds)
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[seq] = answer
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded(f"the pod's monitor did not answer {op} within {timeout_s} s") from None
        finally:
            self._answers.pop(seq, None)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Let the connection go; the monitor lives on and awaits the next one."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            for _, fds in self._outbox:
                for fd in fds:
                    os.close(fd)
            self._outbox.clear()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(Unavailable("the pod's monitor is gone", hint="stop and remove the pod"))
            if not self._up.done():
                self._up.set_exception(Unavailable("the pod's monitor died at once"))
                self._up.exception()  # whoever waits hears of it; nobody need

    # ---------------------------------------------------------------- socket

    def _send(self, frame: bytes, fds: tuple[int, ...]) -> None:
        if self._outbox:
            self._outbox.append((frame, _duplicates(fds)))
            return
        try:
            transport.send(self._socket, frame, fds)
        except BlockingIOError:
            self._outbox.append((frame, _duplicates(fds)))
            self._loop.add_writer(self._socket.fileno(), self._flush)
        except OSError:
            self._lost()
            raise Unavailable("the pod's monitor is gone", hint="stop and remove the pod") from None

    def _flush(self) -> None:
        while self._outbox:
            frame, fds = self._outbox[0]
            try:
                transport.send(self._socket, frame, fds)
            except BlockingIOError:
                return
            except OSError:
                self._lost()
                return
            for fd in fds:
                os.close(fd)
            self._outbox.pop(0)
        self._loop.remove_writer(self._socket.fileno())

    def _read(self) -> None:
        while not self._closed:
            try:
                frame, fds = transport.receive(self._socket)
            except BlockingIOError:
                return
            except OSError:
                frame, fds = b"", []
            for fd in fds:
                os.close(fd)
            if not frame:
                self._lost()
                return
            self._take(protocol.parse_reply(frame))

    def _take(self, reply: protocol.Reply) -> None:
        if reply.seq:
            answer = self._answers.get(reply.seq)
            if answer is None or answer.done():
                return
            if reply.word == "ok":
                answer.set_result(reply.content())
            else:
                answer.set_exception(_ERRORS.get(reply.word, Internal)(reply.text()))
        elif reply.word == "up":
            self.pid = reply.content()["pid"]
            if not self._up.done():
                self._up.set_result(self.pid)
        else:
            self.on_event({"event": reply.word, **reply.content()})

    def _lost(self) -> None:
        if self._closed:
            return
        self.close()
        self.on_lost()


def _duplicates(fds: tuple[int, ...]) -> tuple[int, ...]:
    """The caller closes its descriptors when ``request`` returns; a frame that waits needs its own."""
    return tuple(os.dup(fd) for fd in fds)
