"""systemd's private socket, as far as the cgroup driver talks to it: units that are started, stopped and changed.

    with SystemdSimulator(tmp_path) as systemd:
        SystemdBus((systemd.address,), timeout_s=1).start_slice("a.slice", "words")
        assert systemd.units == {"a.slice": {"Description": "words"}}

A unit's group is a directory below ``groups``, as deep as its slice lies. What goes wrong is said beforehand.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

from cri_py.cgroups import systemd

HANG: Final = "hang"  # no answer
CLOSE: Final = "close"  # the connection ends
_MANAGER: Final = DBusAddress(
    "/org/freedesktop/systemd1", "org.freedesktop.systemd1", "org.freedesktop.systemd1.Manager"
)


class SystemdSimulator:
    """``faults``: by method HANG, CLOSE, or the name of an error; by ``job`` how jobs end if not as done."""

    def __init__(self, place: Path) -> None:
        self.address, self.groups = str(place / "private"), place / "groups"
        self.groups.mkdir()
        self.units: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.faults: dict[str, str] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._jobs = 0
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []

    def __enter__(self) -> SystemdSimulator:
        self._listener.bind(self.address)
        self._listener.listen()
        self._begin(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
        for connection in (self._listener, *self._connections):
            connection.close()

    def directory(self, unit: str) -> Path:
        """Of a unit's group."""
        above = self.units.get(unit, {}).get("Slice", "")
        return self.groups / (f"{systemd.slice_path(above)}/{unit}" if above else systemd.slice_path(unit)).lstrip("/")

    def _begin(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._begin(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        """Until the client has gone. As systemd does, it reads on after BEGIN only when more has come."""
        with contextlib.suppress(OSError):
            greeting = connection.recv(4096)
            assert greeting.startswith(b"\0AUTH EXTERNAL ")
            assert greeting.endswith(b"\r\nBEGIN\r\n")
            connection.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
            parser = Parser()
            while data := connection.recv(65536):
                parser.add_data(data)
                while (message := parser.get_next_message()) is not None:
                    if not self._answer(connection, message):
                        connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, connection: socket.socket, message: Message) -> bool:
        """False where the connection is to end."""
        method = message.header.fields[HeaderFields.member]
        assert message.header.message_type is MessageType.method_call
        self.calls.append(method)
        fault = self.faults.get(method, "")
        if fault in {HANG, CLOSE}:
            return fault == HANG
        if fault:
            connection.sendall(new_error(message, fault, "s", ("it was told to",)).serialise(serial=1))
            return True
        getattr(self, f"_{method}")(connection, message, *message.body)
        return True

    def _return(self, connection: socket.socket, message: Message, signature: str = "", body: Any = ()) -> None:
        connection.sendall(new_method_return(message, signature or None, body).serialise(serial=1))

    def _refuse(self, connection: socket.socket, message: Message, name: str) -> None:
        connection.sendall(new_error(message, f"org.freedesktop.systemd1.{name}", "s", (name,)).serialise(serial=1))

    def _job(self, connection: socket.socket, message: Message, unit: str) -> None:
        """Its end may be told before its number, which the client gets by the answer."""
        self._jobs += 1
        path = f"/org/freedesktop/systemd1/job/{self._jobs}"
        result = self.faults.get("job", "done")
        removed = new_signal(_MANAGER, "JobRemoved", "uoss", (self._jobs, path, unit, result))
        connection.sendall(removed.serialise(serial=2))
        self._return(connection, message, "o", (path,))

    # -------------------------------------------- methods, of the bus and its own

    def _Hello(self, connection: socket.socket, message: Message) -> None:
        self._return(connection, message, "s", (":1.7",))

    def _AddMatch(self, connection: socket.socket, message: Message, _rule: str) -> None:
        self._return(connection, message)

    def _Subscribe(self, connection: socket.socket, message: Message) -> None:
        self._return(connection, message)

    def _Get(self, connection: socket.socket, message: Message, _interface: str, name: str) -> None:
        self._return(connection, message, "v", (("s", {"Version": "257"}[name]),))

    def _StartTransientUnit(
        self, connection: socket.socket, message: Message, name: str, _mode: str, asked: Any, _others: Any
    ) -> None:
        if name in self.units:
            self._refuse(connection, message, "UnitExists")
            return
        self.units[name] = {key: value for key, (_, value) in asked}
        if self.faults.get("job", "done") == "done":
            self.directory(name).mkdir(parents=True)
        self._job(connection, message, name)

    def _StartUnit(self, connection: socket.socket, message: Message, name: str, _mode: str) -> None:
        self.directory(name).mkdir(parents=True, exist_ok=True)
        self._job(connection, message, name)

    def _StopUnit(self, connection: socket.socket, message: Message, name: str, _mode: str) -> None:
        if name not in self.units:
            self._refuse(connection, message, "NoSuchUnit")
            return
        shutil.rmtree(self.directory(name), ignore_errors=True)
        del self.units[name]
        self._job(connection, message, name)

    def _SetUnitProperties(
        self, connection: socket.socket, message: Message, name: str, runtime: bool, asked: Any
    ) -> None:
        if name not in self.units:
            self._refuse(connection, message, "NoSuchUnit")
            return
        assert runtime
        self.units[name].update({key: value for key, (_, value) in asked})
        self._return(connection, message)
