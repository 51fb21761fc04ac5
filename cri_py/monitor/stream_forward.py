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
from cri_py.wire.channels import Buffer
from cri_py.wire.events import Dropped, Event, Forward, Gone, HalfClosed, Opened, Received

_PLACES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_PODS_AT_ONCE = 8
_HANG_UPS = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)  # the last by shutdown(2), after a reset
_KIND = (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


class _Connection:
    """One forwarded connection, on its way or made. ``places``: where it may still be tried."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.places = list(_PLACES)
        self.to_pod = Outflow()
        self.ends = False  # the client sends nothing more…
        self.deaf = False  # …or the pod takes nothing more
        self.made = False
        self.over = False  # the pod sends nothing more
        self.reads = False  # it is waited for what the pod sends
        self.refusal = ""
        self.socket = socket.socket(*_KIND)

    def try_next(self) -> bool:
        """Begin to connect to the next place; False if there is none left, with the reason in ``refusal``."""
        while self.places:
            family, host = self.places.pop(0)
            try:
                if self.socket.family != family:
                    self.socket.close()
                    self.socket = socket.socket(family, *_KIND[1:])
                code = self.socket.connect_ex((host, self.port))
            except OSError as error:
                code = error.errno or errno.EIO  # without IPv6, or out of descriptors
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
    """One loop for all connections of one client. ``pod``: a pidfd of a process in the pod's network namespace."""

    def __init__(self, link: Link, session: Forward, pod: int, idle_s: float) -> None:
        self._link = link
        self._session = session
        self._pod = pod
        self._idle_s = idle_s
        self._interests = Interests()
        self._readable = select.epoll()  # pods that may have said something; one descriptor, to be left out as a whole
        self._connections: dict[int, _Connection] = {}  # by lane
        self._lanes: dict[int, int] = {}  # by descriptor
        self._changed: set[int] = set()  # lanes that may have to wait for something else than before
        self._happened: dict[int, int] = {}  # what is still to be looked at in this turn
        self._error = ""

    def run(self, rest: bytes) -> str:
        """Until the client leaves; ``rest`` came with the request's head. Returns what went wrong, "" for nothing."""
        syscalls.setns(self._pod, CLONE_NEWNET)
        os.close(self._pod)
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
        self._readable.close()
        self._link.linger()
        return self._error

    # -------------------------------------------------------------------- turns

    def _register(self) -> None:
        """The cost is that of what has changed, not of all connections."""
        self._link.register(self._interests)
        self._interests.want(self._readable.fileno(), read=self._link.has_room)
        for lane in list(self._changed):
            connection = self._connections.get(lane)
            if connection is None or self._adjust(lane, connection):
                self._changed.remove(lane)

    def _adjust(self, lane: int, connection: _Connection) -> bool:
        """Wait for what can come next; False if only the client's next grant can tell."""
        fd = connection.socket.fileno()
        self._lanes[fd] = lane
        self._interests.want(fd, write=not connection.made or bool(connection.to_pod))
        speaks = connection.made and not connection.over
        reads = speaks and self._session.room(lane) > 0
        if reads and not connection.reads:
            self._readable.register(fd, select.EPOLLIN)
        elif connection.reads and not reads:
            self._readable.unregister(fd)
        connection.reads = reads
        return reads or not speaks

    def _turn(self, happened: dict[int, int]) -> None:
        if not happened and time.monotonic() >= self._link.active_at + self._idle_s:
            self._error = f"nothing was said for {self._idle_s:.0f} s"
            self._session.leave()
            return
        self._happened = happened
        self._take(self._link.receive(happened.pop(self._link.fd, 0)))
        hears = happened.pop(self._readable.fileno(), 0)
        while happened:
            fd, _ = happened.popitem()
            lane = self._lanes[fd]
            self._changed.add(lane)
            if self._connections[lane].made:
                self._write(lane, self._connections[lane])
            else:
                self._advance(lane, self._connections[lane])
        if hears:
            self._hear_pods()

    def _hear_pods(self) -> None:
        """In turn, which the kernel keeps; as many as the client's connection takes."""
        for fd, _ in self._readable.poll(0, _PODS_AT_ONCE):
            lane = self._lanes[fd]
            self._changed.add(lane)
            self._read(lane, self._connections[lane])
            self._link.flush()
            if not self._link.has_room:
                return

    def _let_go(self, connection: _Connection) -> None:
        """The number of its descriptor may come again within this turn: what happened to it is no news of the next."""
        fd = connection.socket.fileno()
        self._interests.drop(fd)
        self._happened.pop(fd, None)
        self._lanes.pop(fd, None)
        if connection.reads:
            self._readable.unregister(fd)
            connection.reads = False

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
        try:
            connection = self._connections[event.lane] = _Connection(event.port)
        except OSError as error:  # out of descriptors: the other connections go on
            self._session.fail(event.lane, f"port {event.port} can't be connected to: {error.strerror}")
            self._session.end(event.lane)
            return
        self._changed.add(event.lane)
        if not connection.try_next():
            self._fail(event.lane, connection)

    def _hear(self, connection: _Connection, event: Received | HalfClosed | Dropped) -> None:
        self._changed.add(event.lane)
        if isinstance(event, Received):
            self._feed(event.lane, connection, event.payload)
        elif isinstance(event, HalfClosed):
            connection.ends = True
            self._write(event.lane, connection)
        else:
            self._end(event.lane)

    # -------------------------------------------------------------- connections

    def _advance(self, lane: int, connection: _Connection) -> None:
        """An attempt to connect has come to its end."""
        self._let_go(connection)
        if connection.connected():
            self._write(lane, connection)
        elif not connection.try_next():
            self._fail(lane, connection)

    def _fail(self, lane: int, connection: _Connection) -> None:
        text = f"failed to connect to localhost:{connection.port} inside the pod: {connection.refusal}"
        self._session.fail(lane, text)
        self._end(lane)

    def _read(self, lane: int, connection: _Connection) -> None:
        room = self._session.room(lane)
        if not room:
            return  # a lane before it has taken all, or the client has left
        try:
            received = connection.socket.recv(min(READ_BYTES, room))
        except BlockingIOError:
            return
        except OSError as error:
            self._break(lane, connection, error)
            return
        if received:
            self._session.send(lane, received)
            return
        connection.over = True
        self._session.close(lane)
        self._end_if_over(lane, connection)

    def _break(self, lane: int, connection: _Connection, error: OSError) -> None:
        """That a program hangs up with bytes unread is no error of the forward: told of one, clients leave it."""
        if error.errno not in _HANG_UPS:
            self._session.fail(lane, f"the connection to port {connection.port} broke: {error.strerror}")
        self._end(lane)

    def _feed(self, lane: int, connection: _Connection, payload: Buffer) -> None:
        """To the pod, at once where it is taken at once: what waits has to be copied."""
        if connection.deaf:
            self._session.consumed(lane, len(payload))
            return
        if connection.made and not connection.to_pod:
            try:
                sent = connection.socket.send(payload)
            except OSError:
                sent = 0  # full, or broken; _write tells the one from the other
            self._session.consumed(lane, sent)
            payload = memoryview(payload)[sent:]
        if payload:
            connection.to_pod.put(payload)
            self._write(lane, connection)

    def _write(self, lane: int, connection: _Connection) -> None:
        if not connection.made or connection.deaf:
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
            if error.errno not in _HANG_UPS:
                self._break(lane, connection, error)
                return
            connection.ends = connection.deaf = True  # what it has said before is still to be read
            if size := connection.to_pod.clear():
                self._session.consumed(lane, size)
        self._end_if_over(lane, connection)

    def _end_if_over(self, lane: int, connection: _Connection) -> None:
        if connection.over and connection.ends and not connection.to_pod:
            self._end(lane)

    def _end(self, lane: int) -> None:
        connection = self._connections.pop(lane, None)
        if connection is not None:
            self._let_go(connection)
            if size := connection.to_pod.clear():
                self._session.consumed(lane, size)
            connection.socket.close()
        self._session.end(lane)
