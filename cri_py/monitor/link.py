"""A stream process's end of the conversation with a client: its socket, what waits to be sent, the loop's poll."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
import time
from collections import deque
from itertools import islice

from cri_py.wire.channels import Buffer
from cri_py.wire.events import Event, Session

READ_BYTES = 128 << 10
_UNSENT_MOST = 128 << 10  # beyond which nothing more is taken from the process, or from a client
_SENT_AT_ONCE = 64  # pieces; IOV_MAX is 1024
_LINGER_S = 5.0
_RESETTING = struct.pack("ii", 1, 0)  # struct linger: what close(2) does, and exit (socket(7))
_ORDERLY = struct.pack("ii", 0, 0)
_OVER = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class Interests:
    """What poll(2) is to wait for, by descriptor; told to the kernel only where it changes."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._masks: dict[int, int] = {}

    def want(self, fd: int, *, read: bool = False, write: bool = False, end: bool = False) -> None:
        """From now on. ``end``: that a socket's other side sends nothing more. With none of them, errors are not looked
        for either."""
        mask = (select.POLLIN if read else 0) | (select.POLLOUT if write else 0) | (select.POLLRDHUP if end else 0)
        if mask == self._masks.get(fd, 0):
            return
        if not mask:
            self.drop(fd)
            return
        self._masks[fd] = mask
        self._poll.register(fd, mask)

    def drop(self, fd: int) -> None:
        """To be called before the descriptor is closed. Again is nothing."""
        if self._masks.pop(fd, 0):
            self._poll.unregister(fd)

    def wait(self, timeout_s: float | None) -> dict[int, int]:
        """What has happened: descriptor → poll's mask; empty on a time-out."""
        return dict(self._poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))


class Link:
    """One client. ``session`` says what its bytes mean."""

    def __init__(self, client: socket.socket, session: Session, answer: bytes) -> None:
        client.setblocking(False)
        # Killed by whomever, this process resets the connection: an orderly end without a status is success.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESETTING)
        self._client = client
        self._session = session
        self._unsent: deque[memoryview] = deque([memoryview(answer)])
        self._waiting = len(answer)
        self._reads = False
        self.received = 0
        self.sent = 0
        self.active_at = time.monotonic()

    @property
    def fd(self) -> int:
        return self._client.fileno()

    @property
    def has_room(self) -> bool:
        """Whether more may be given to the session to be sent."""
        return self._waiting < _UNSENT_MOST

    def register(self, interests: Interests) -> None:
        """Ask for what this end waits for. A client that is not read from may leave all the same."""
        self._reads = self._session.wants_input and self._waiting < 2 * _UNSENT_MOST
        interests.want(self.fd, read=self._reads, write=bool(self._unsent), end=not self._reads)

    def receive(self, mask: int) -> list[Event]:
        """What the client says, if ``mask``, poll's, tells of anything but room. Raises OSError if the connection
        broke."""
        if not mask & ~select.POLLOUT:
            return []
        if not self._reads:
            return self._session.receive_eof() if mask & _OVER else []
        try:
            received = self._client.recv(READ_BYTES)
        except BlockingIOError:
            return []
        self.active_at = time.monotonic()
        self.received += len(received)
        return self._session.receive(received) if received else self._session.receive_eof()

    def flush(self) -> None:
        """Send as much of what the session has as the socket takes. Raises OSError if the connection broke."""
        for piece in self._session.pieces():
            self._unsent.append(memoryview(piece))
            self._waiting += len(piece)
        while self._unsent:
            try:
                sent = self._client.sendmsg(list(islice(self._unsent, _SENT_AT_ONCE)))
            except BlockingIOError:
                return
            self.active_at = time.monotonic()
            self.sent += sent
            self._waiting -= sent
            self._forget(sent)

    def linger(self, patience_s: float = _LINGER_S) -> None:
        """Send the rest, and wait until the client has taken it all and closed.

        A socket that is closed with bytes unread resets the connection, and what the client has not read yet is lost.
        ``patience_s``: how long a client may take nothing at all, for a pager may stand between. One that has all gets
        some seconds to close.
        """
        interests = Interests()
        try:
            self.flush()
            while self._unsent:
                interests.want(self.fd, write=True)
                if not interests.wait(patience_s):
                    return
                self.flush()
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ORDERLY)
            self._client.shutdown(socket.SHUT_WR)
            interests.want(self.fd, read=True)
            self._await_end(interests, patience_s)
        except OSError:
            return  # the client has left already

    def _await_end(self, interests: Interests, patience_s: float) -> None:
        untaken, since = self._untaken(), time.monotonic()
        until = since + _LINGER_S
        while True:
            if interests.wait(until - time.monotonic()) and not self._client.recv(READ_BYTES):
                return
            now = time.monotonic()
            if now < until:
                continue
            left = self._untaken()
            if not left or (left == untaken and now - since >= patience_s):
                return
            if left != untaken:
                untaken, since = left, now
            until = now + _LINGER_S

    def _untaken(self) -> int:
        """Bytes that the other side's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
        return int.from_bytes(fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def _forget(self, sent: int) -> None:
        while sent:
            first = self._unsent[0]
            if sent < len(first):
                self._unsent[0] = first[sent:]
                return
            sent -= len(first)
            self._unsent.popleft()


class Outflow:
    """Bytes on their way into a pipe or socket that may be slower than the client."""

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def put(self, payload: Buffer) -> None:
        """Keep a copy: what a session gives is a view of what comes next into the same place."""
        self._parts.append(memoryview(bytes(payload)))

    @property
    def first(self) -> memoryview:
        return self._parts[0]

    def taken(self, size: int) -> None:
        """``size`` bytes of ``first`` are gone."""
        if size < len(self._parts[0]):
            self._parts[0] = self._parts[0][size:]
        else:
            self._parts.popleft()

    def clear(self) -> int:
        """Drop what waits; how many bytes that was."""
        size = sum(map(len, self._parts))
        self._parts.clear()
        return size
