"""A container's output: pipes or a tty in, the CRI log file out. Never blocks the container, never fails it."""

from __future__ import annotations

import errno
import os
import select
import stat
import time

from cri_py.monitor.crilog import LineCutter

_READ_BYTES = 256 << 10
PIPE_BYTES = 1 << 20
_RETRY_S = 5.0
_STUCK_S = 0.25
_PATIENCE_S = 2.0
_REGAINED = 0.05
# A fifo must not block the monitor, and a link must not lead root's writes out of the log directory.
_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW


class LogFile:
    """One log file. What can't be written is dropped and counted by lines; the path is tried again later."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._fd = -1
        self._tried = 0.0
        self._torn = False  # the last write was cut short by a full disk: the next begins on a line of its own
        self.dropped = 0

    def open(self) -> None:
        """(Re)open the path, so that a rotated file is let go. Raises OSError and keeps the old one if that fails."""
        try:
            fd = os.open(self._path, _LOG_FLAGS, 0o640)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._path), 0o755, exist_ok=True)
            fd = os.open(self._path, _LOG_FLAGS, 0o640)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "is not a regular file", self._path)
        self.close()
        self._fd = fd
        self._torn = False

    def write(self, lines: bytes) -> None:
        if self._fd < 0 and not self._try_open():
            self.dropped += lines.count(b"\n")
            return
        if self._torn:
            lines = b"\n" + lines
        view = memoryview(lines)
        while view:
            try:
                written = os.write(self._fd, view)
            except OSError:
                self._give_up(lines[: len(lines) - len(view)], bytes(view))
                return
            view = view[written:]
        self._torn = False

    def _give_up(self, written: bytes, rest: bytes) -> None:
        """Drop ``rest`` and count its lines, the one that was cut too."""
        opening = self._torn and not written  # the newline that ends the torn line ends none of ours
        self.dropped += rest.count(b"\n") - opening
        if written:
            self._torn = not written.endswith(b"\n")

    def _try_open(self) -> bool:
        """Open a path that could not be opened before, at most every few seconds."""
        now = time.monotonic()
        if now - self._tried < _RETRY_S and self._tried:
            return False
        self._tried = now
        try:
            self.open()
        except OSError:
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _Patience:
    """How long a stream waits for those who are to have all that it says, and may only not have had a processor.

    For one who takes nothing a quarter of a second, for all together two seconds, and in the long run a twentieth of
    the time. Then it goes on without.
    """

    def __init__(self) -> None:
        self._left_s = _PATIENCE_S
        self._waited_at = time.monotonic()

    def wait_for_room(self, fd: int) -> bool:
        """Until the pipe takes more; False if that is too long."""
        begun = time.monotonic()
        left_s = min(_PATIENCE_S, self._left_s + (begun - self._waited_at) * _REGAINED)
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        happened = poll.poll(max(0.0, min(_STUCK_S, left_s)) * 1000)
        self._waited_at = time.monotonic()
        self._left_s = left_s - (self._waited_at - begun)
        return bool(happened)


class OutputStream:
    """One of stdout, stderr, or a tty's master: read when the selector says so."""

    def __init__(self, fd: int, name: str, log: LogFile | None, line_bytes: int) -> None:
        self.fd = fd
        self.name = name
        self._log = log
        self._cutter = LineCutter(name, line_bytes)
        self._taps: list[int] = []
        self._patience = _Patience()
        os.set_blocking(fd, False)

    def take_tap(self, fd: int) -> None:
        """Let a pipe's write end have all that comes from now on, as long as its reader keeps up."""
        os.set_blocking(fd, False)
        self._taps.append(fd)

    def drop_unread_taps(self) -> None:
        """Close those whose reader has gone. A write would tell, but the stream may be silent for ever."""
        poll = select.poll()
        for fd in self._taps:
            poll.register(fd, 0)  # a pipe without readers is an error, which needs not be asked for
        for fd, _ in poll.poll(0):
            self._drop_tap(fd)

    def _feed_taps(self, data: bytes) -> None:
        """One that does not take all gets nothing more, and its reader sees the end."""
        for fd in list(self._taps):
            if not self._feed(fd, data):
                self._drop_tap(fd)

    def _feed(self, fd: int, data: bytes) -> bool:
        """False if the reader has gone or is too slow."""
        rest = memoryview(data)
        while True:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                pass
            except OSError:
                return False
            if not rest:
                return True
            if not self._patience.wait_for_room(fd):
                return False

    def _drop_tap(self, fd: int) -> None:
        self._taps.remove(fd)
        os.close(fd)

    def read_once(self) -> bool:
        """Take what is there, up to a buffer's length; False once the stream has ended."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""  # EIO: the last slave of a tty was closed
        if self._taps:
            self._feed_taps(data)
        now = time.time_ns()
        lines = self._cutter.feed(data, now) if data else self._cutter.end(now)
        if lines and self._log is not None:
            self._log.write(lines)
        return bool(data)

    def drain(self) -> None:
        """Read what the pipe holds, at most its size: whoever still writes after the container's end is not awaited."""
        for _ in range(PIPE_BYTES // _READ_BYTES + 1):
            try:
                data = os.read(self.fd, _READ_BYTES)
            except OSError:
                break
            if not data:
                break
            self._put(data)
        rest = self._cutter.end(time.time_ns())
        if rest and self._log is not None:
            self._log.write(rest)

    def _put(self, data: bytes) -> None:
        self._feed_taps(data)
        lines = self._cutter.feed(data, time.time_ns())
        if lines and self._log is not None:
            self._log.write(lines)

    def close(self) -> None:
        os.close(self.fd)
        for fd in list(self._taps):
            self._drop_tap(fd)
