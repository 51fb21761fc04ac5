"""systemd over D-Bus: units are started, stopped and changed, each within a deadline. Loaded only where it is used.

Every act has a connection of its own: one is made in a millisecond or two, none is there to go stale when systemd or
the bus is started anew, and no signals pile up in one that nobody reads. The system bus is asked, as runc does it;
where it is not there or silent, systemd's private socket, which is root's.

Source: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call
from jeepney.wrappers import DBusErrorResponse

from cri_py.cgroups.systemd import Property
from cri_py.errors import Internal, InvalidArgument, Unavailable

PRIVATE: Final = "/run/systemd/private"
SYSTEM: Final = "/run/dbus/system_bus_socket"
_JOB_S: Final = 20.0  # a daemon-reload of a big node takes seconds, in which nothing is answered
_MANAGER: Final = DBusAddress(
    "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
)
_PROPERTIES: Final = _MANAGER.with_interface("org.freedesktop.DBus.Properties")
_BUS: Final = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
_JOB_REMOVED: Final = (
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',"
    "interface='org.freedesktop.systemd1.Manager',member='JobRemoved'"
)
_NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"
_UNIT_EXISTS: Final = "org.freedesktop.systemd1.UnitExists"
_INVALID: Final = "org.freedesktop.DBus.Error.InvalidArgs"
_HINT: Final = "look at `systemctl status` and `journalctl -b _PID=1`"


class Refused(Internal):
    """systemd said no; ``name`` is D-Bus' name of the error."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message, hint=_HINT)
        self.name = name


class SystemdBus:
    """For any thread. Raises Unavailable where systemd does not answer in time, Refused or InvalidArgument
    where it refuses."""

    def __init__(self, addresses: Sequence[str] = (SYSTEM, PRIVATE), timeout_s: float = _JOB_S) -> None:
        self._addresses = addresses
        self._timeout_s = timeout_s

    def version(self) -> str:
        """Of systemd, which proves that it answers."""
        with self._talk("ask its version") as talk:
            return str(talk.call(_PROPERTIES, "Get", "ss", (_MANAGER.interface, "Version"))[0][1])

    def start_scope(self, name: str, slice_name: str, pid: int, description: str, limits: Iterable[Property]) -> None:
        """A delegated scope with ``pid`` in it. Once it is empty nothing of it is kept, failed or not."""
        asked = [
            Property("Description", "s", description),
            Property("Slice", "s", slice_name),
            Property("PIDs", "au", [pid]),
            Property("Delegate", "b", True),
            Property("DefaultDependencies", "b", False),  # as runc: it does not go before the kubelet at a shutdown
            Property("CollectMode", "s", "inactive-or-failed"),
            *limits,
        ]
        with self._talk(f"start {name}") as talk:
            talk.job(*talk.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", _pairs(asked), [])))

    def start_slice(self, name: str, description: str) -> None:
        """A slice, and those above it. One that is known is started as it is."""
        asked = [Property("Description", "s", description)]
        with self._talk(f"start {name}") as talk:
            try:
                job = talk.call(_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", _pairs(asked), []))
            except Refused as error:
                if error.name != _UNIT_EXISTS:
                    raise
                job = talk.call(_MANAGER, "StartUnit", "ss", (name, "replace"))
            talk.job(*job)

    def stop(self, name: str) -> None:
        """End what is in the unit, and the unit. A missing one is fine."""
        with self._talk(f"stop {name}") as talk:
            try:
                job = talk.call(_MANAGER, "StopUnit", "ss", (name, "replace"))
            except Refused as error:
                if error.name == _NO_SUCH_UNIT:
                    return
                raise
            talk.job(*job)

    def change(self, name: str, limits: Iterable[Property]) -> None:
        """New properties until the next boot; those that are not named stay."""
        with self._talk(f"change {name}") as talk:
            talk.call(_MANAGER, "SetUnitProperties", "sba(sv)", (name, True, _pairs(limits)))

    @contextlib.contextmanager
    def _talk(self, act: str) -> Iterator[_Talk]:
        try:
            with contextlib.closing(self._connect(act)) as talk:
                yield talk
        except (OSError, EOFError) as error:  # TimeoutError is one
            raise Unavailable(
                f"systemd could not {act}: {error or 'no answer'}", hint=f"it will be tried again; {_HINT}"
            ) from error

    def _connect(self, act: str) -> _Talk:
        begun, failed = time.monotonic(), []
        for number, address in enumerate(self._addresses, 1):
            # To each its share: one that accepts and says nothing must not take the next one's time.
            talk = _Talk(socket.socket(socket.AF_UNIX), begun + self._timeout_s * number / len(self._addresses))
            try:
                talk.connect(address)
            except (OSError, EOFError) as error:
                talk.close()
                failed.append(f"{address}: {error}")
            except BaseException:
                talk.close()
                raise
            else:
                talk.deadline = begun + self._timeout_s
                return talk
        raise Unavailable(
            f"systemd could not {act}, it is not to be reached: {'; '.join(failed)}",
            hint="is systemd this node's init?",
        )


class _Talk:
    """One connection, until ``deadline`` on the monotonic clock."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self.deadline = deadline
        self._parser = Parser()
        self._serial = 0
        self._ended: dict[str, tuple[str, str]] = {}  # jobs: unit and result

    def close(self) -> None:
        self._connection.close()

    def connect(self, address: str) -> None:
        """Until methods may be called (D-Bus Specification, "Authentication Protocol").

        All lines are sent at once: what comes together with BEGIN, but after it, systemd leaves unread in its buffer
        until more comes. A bus wants a Hello besides; systemd's private socket is none, and sends all signals.
        """
        self._connection.settimeout(self._left())
        self._connection.connect(address)
        self._connection.sendall(b"\0AUTH EXTERNAL %b\r\nBEGIN\r\n" % str(os.geteuid()).encode().hex().encode())
        line = b""
        while not line.endswith(b"\r\n"):  # nothing can follow it: nothing was asked yet
            line += self._read(256)
        if not line.startswith(b"OK "):
            raise PermissionError(f"it says {line.decode(errors='replace').strip()}")
        if address == PRIVATE:
            return
        self.call(_BUS, "Hello", "", ())
        self.call(_BUS, "AddMatch", "s", (_JOB_REMOVED,))
        self.call(_MANAGER, "Subscribe", "", ())

    def call(self, address: DBusAddress, method: str, signature: str, body: tuple[Any, ...]) -> tuple[Any, ...]:
        """The body of the answer. Raises Refused."""
        message = new_method_call(address, method, signature, body) if body else new_method_call(address, method)
        self._serial += 1
        self._connection.settimeout(self._left())
        self._connection.sendall(message.serialise(serial=self._serial))
        while True:
            answer = self._receive()
            if answer.header.fields.get(HeaderFields.reply_serial) == self._serial:
                break
        if answer.header.message_type is MessageType.error:
            error = DBusErrorResponse(answer)
            said = error.data[0] if error.data else error.name
            if error.name == _INVALID:
                raise InvalidArgument(f"systemd refused {method}: {said}", hint="ask for a value that it takes")
            raise Refused(f"systemd refused {method}: {said}", error.name)
        return tuple(answer.body)

    def job(self, path: str) -> None:
        """Wait for the end of a job. Raises Refused if it came to nothing."""
        while path not in self._ended:
            self._receive()
        unit, result = self._ended[path]
        if result != "done":
            raise Refused(f"systemd's job for {unit} ended as {result}", result)

    def _receive(self) -> Message:
        while (message := self._parser.get_next_message()) is None:
            self._parser.add_data(self._read(65536))
        fields = message.header.fields
        if message.header.message_type is MessageType.signal and fields.get(HeaderFields.member) == "JobRemoved":
            _, path, unit, result = message.body
            self._ended[path] = (unit, result)
        return message

    def _read(self, most: int) -> bytes:
        self._connection.settimeout(self._left())
        read = self._connection.recv(most)
        if not read:
            raise EOFError("it closed the connection")
        return read

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left


def _pairs(limits: Iterable[Property]) -> list[tuple[str, tuple[str, Any]]]:
    return [(each.name, (each.signature, each.value)) for each in limits]
