"""Port-forward: bytes between a client's session and connections that are made inside the pod's network namespace."""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWNET
from cri_py.monitor.link import READ_BYTES, Interests, Link, Outflow
from cri_py.wire.events import Dropped, Event, Forward, Gone, HalfClosed, Opened, Received

_PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class _Connection:
    """One forwarded connection, on its way or made. ``places``: where it may still be tried."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.places = list(_PLACES)
        self.to_pod = Outflow()
        self.ends = False  # the client sends nothing more
        self.made = False
        self.over = False  # the pod sends nothing more
        self.socket = socket.socket()
        self.refusal = ""

    def try_next(self) -> bool:
        """Begin to connect to the next place; False if there is none left, with the reason in ``refusal``."""
        while self.places:
            family, host = self.places.pop(0)
            self.socket.close()
            self.socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            code = self.socket.connect_ex((host, self.port))
            if code in (0, errno.EINPROGRESS):
                return True
            self.refusal = self.refusal or os.strerror(code)
        return False

    def connected(self) -> bool:
        """Whether the attempt under way has succeeded."""
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.refusal = self.refusal or os.strerror(code)
            return False
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.made = True
        return True


class ForwardPump:
    """One loop for all connections of one client. ``holder``: a process in the pod's network namespace."""

    def __init__(self, link: Link, session: Forward, holder: int, idle_s: float) -> None:
        self._link = link
        self._session = session
        self._holder = holder
        self._idle_s = idle_s
        self._interests = Interests()
        self._connections: dict[int, _Connection] = {}  # by lane
        self._error = ""

    def run(self, rest: bytes) -> str:
        """Until the client leaves; ``rest`` came with the request's head. Returns what went wrong, "" for nothing."""
        target = syscalls.pidfd_open(self._holder)
        syscalls.setns(target, CLONE_NEWNET)
        os.close(target)
        try:
            self._take(self._session.receive(rest))
            while not self._session.gone:
                self._link.flush()
                self._register()
                happened = self._interests.wait(self._link.active_at + self._idle_s - time.monotonic())
                self._turn(happened)
        except OSError as error:
            self._error = f"the client's connection broke: {error.strerror}"
        for connection in self._connections.values():
            connection.socket.close()
        self._link.linger()
        return self._error

    def _register(self) -> None:
        self._link.register(self._interests)
        for lane, connection in self._connections.items():
            fd = connection.socket.fileno()
            if not connection.made:
                self._interests.want(fd, write=True)
                continue
            reads = not connection.over and self._link.has_room and self._session.room(lane) > 0
            self._interests.want(fd, read=reads, write=bool(connection.to_pod))

    def _turn(self, happened: dict[int, int]) -> None:
        if not happened and time.monotonic() >= self._link.active_at + self._idle_s:
            self._error = f"nothing was said for {self._idle_s:.0f} s"
            self._session.leave()
            return
        if self._link.fd in happened and happened[self._link.fd] & ~select.POLLOUT:
            self._take(self._link.receive())
        for lane, connection in list(self._connections.items()):
            mask = happened.get(connection.socket.fileno(), 0)
            if mask and not connection.made:
                self._advance(lane, connection)
            elif mask:
                self._serve(lane, connection, mask)

    def _take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Opened):
                self._open(event)
            elif isinstance(event, Gone):
                self._error = str(event.error) if event.error else self._error
            elif isinstance(event, Received | HalfClosed | Dropped):
                connection = self._connections.get(event.lane)
                if connection is not None:
                    self._hear(connection, event)
                elif isinstance(event, Received):
                    self._session.consumed(event.lane, len(event.payload))

    def _open(self, event: Opened) -> None:
        connection = self._connections[event.lane] = _Connection(event.port)
        if not connection.try_next():
            self._fail(event.lane, connection)

    def _hear(self, connection: _Connection, event: Received | HalfClosed | Dropped) -> None:
        if isinstance(event, Received):
            connection.to_pod.put(event.payload)
            self._write(event.lane, connection)
        elif isinstance(event, HalfClosed):
            connection.ends = True
            self._write(event.lane, connection)
        else:
            self._end(event.lane)

    # -------------------------------------------------------------- connections

    def _advance(self, lane: int, connection: _Connection) -> None:
        """An attempt to connect has come to its end."""
        self._interests.drop(connection.socket.fileno())
        if connection.connected():
            self._write(lane, connection)
        elif not connection.try_next():
            self._fail(lane, connection)

    def _fail(self, lane: int, connection: _Connection) -> None:
        text = f"failed to connect to localhost:{connection.port} inside the pod: {connection.refusal}"
        self._session.fail(lane, text)
        self._end(lane)

    def _serve(self, lane: int, connection: _Connection, mask: int) -> None:
        if mask & select.POLLOUT:
            self._write(lane, connection)
        if lane in self._connections and mask & ~select.POLLOUT and not connection.over:
            self._read(lane, connection)

    def _read(self, lane: int, connection: _Connection) -> None:
        try:
            received = connection.socket.recv(min(READ_BYTES, max(1, self._session.room(lane))))
        except BlockingIOError:
            return
        except OSError as error:
            self._session.fail(lane, f"the connection to port {connection.port} broke: {error.strerror}")
            self._end(lane)
            return
        if received:
            self._session.send(lane, received)
            return
        connection.over = True
        self._session.close(lane)
        self._end_if_over(lane, connection)

    def _write(self, lane: int, connection: _Connection) -> None:
        if not connection.made:
            return
        try:
            while connection.to_pod:
                sent = connection.socket.send(connection.to_pod.first)
                connection.to_pod.taken(sent)
                self._session.consumed(lane, sent)
            if connection.ends:
                connection.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError as error:
            self._session.fail(lane, f"the connection to port {connection.port} broke: {error.strerror}")
            self._end(lane)
            return
        self._end_if_over(lane, connection)

    def _end_if_over(self, lane: int, connection: _Connection) -> None:
        if connection.over and connection.ends and not connection.to_pod:
            self._end(lane)

    def _end(self, lane: int) -> None:
        connection = self._connections.pop(lane, None)
        if connection is not None:
            self._interests.drop(connection.socket.fileno())
            if size := connection.to_pod.clear():
                self._session.consumed(lane, size)
            connection.socket.close()
        self._session.end(lane)
