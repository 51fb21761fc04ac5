"""The monitor: one per pod, it owns the pod's processes and outlives the daemon.

A single-threaded selectors loop. It forks the holder, each container's init and each exec, reaps them (and, as child
subreaper, what they leave behind), pumps output into log files, and keeps every exit until the daemon has it. It
listens on ``monitor.sock`` in the pod's directory, where a restarted daemon finds it again.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from cri_py.cgroups import Cgroups
from cri_py.errors import CriError
from cri_py.kernel import syscalls
from cri_py.kernel.constants import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE
from cri_py.monitor import protocol, transport
from cri_py.monitor.tracked import ContainerProcess, ExecProcess, Missing, WrongState, exit_code
from cri_py.runtime import container, holder
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import ChildError

SOCKET_NAME = "monitor.sock"
_KILL_S = 5.0


def main(request: dict[str, Any], fds: list[int], cgroups: Cgroups) -> None:
    """Entry, right after the spawner's fork, whose signal dispositions it keeps. ``request``: {dir}; ``fds``: the
    daemon's connection."""
    (connection_fd,) = fds
    os.setsid()
    syscalls.set_process_name("cri-monitor")
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
    syscalls.prctl(PR_SET_DUMPABLE, 0)
    Monitor(request["dir"], socket.socket(fileno=connection_fd), cgroups).run()


class Monitor:
    """The pod's state, all of it in this process."""

    def __init__(self, directory: str, connection: socket.socket, cgroups: Cgroups) -> None:
        self._directory = directory
        self._cgroups = cgroups
        self._epoll = select.epoll()
        self._acts: dict[int, Callable[[], None]] = {}  # by descriptor
        self._holder = 0
        self._held = False  # there was a pod to keep
        self._containers: dict[str, ContainerProcess] = {}
        self._execs: dict[int, ExecProcess] = {}  # by pid
        self._ending = False
        self._listener = _listen(directory)
        self._connection: socket.socket | None = None
        self._watch(self._listener.fileno(), self._accept)
        self._watch(_wake_on_child(), self._reap)
        self._adopt(connection)

    # ------------------------------------------------------------------ loop

    def run(self) -> None:
        """Until the daemon says ``end``."""
        self._tell({"event": "up", "pid": os.getpid(), "version": protocol.VERSION})
        while not self._ending:
            for fd, _ in self._epoll.poll():
                act = self._acts.get(fd)
                if act is not None:  # None: an act before it in this round has ended it
                    act()

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        self._acts[fd] = act
        self._epoll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        """Once more is fine: it may have ended by itself before."""
        if self._acts.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._drop_connection()
        self._adopt(connection)

    def _adopt(self, connection: socket.socket) -> None:
        """The newest daemon is the one that counts."""
        connection.settimeout(_KILL_S)  # a daemon that hangs must not hang the pod
        self._connection = connection
        self._watch(connection.fileno(), self._listen_to_daemon)

    def _drop_connection(self) -> None:
        if self._connection is None:
            return
        self._forget(self._connection.fileno())
        self._connection.close()
        self._connection = None
        for process in self._execs.values():
            process.kill()  # nobody is left to read what it says
        for started in self._containers.values():
            started.asked = 0  # the next daemon hears of it by ``hello`` or by its exit
        if not self._held:
            self._ending = True  # the daemon died before there was a pod; no other will look for this one

    def _tell(self, message: dict[str, Any]) -> None:
        if self._connection is None:
            return  # the next daemon asks for the state
        try:
            transport.send(self._connection, message)
        except OSError:
            self._drop_connection()

    def _listen_to_daemon(self) -> None:
        assert self._connection is not None
        try:
            request, fds = transport.receive(self._connection)
        except OSError:
            request, fds = None, []
        if request is None:
            self._drop_connection()
            return
        try:
            result = self._serve(request, fds)
        except (CriError, OSError, ChildError, Missing, WrongState) as error:
            self._tell(protocol.refusal(request["seq"], _kind(error), str(error)))
        else:
            if result is not None:
                self._tell(protocol.answer(request["seq"], result))
        finally:
            for fd in fds:
                os.close(fd)

    def _serve(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any] | None:
        """The answer to one request, or None where it comes later."""
        word = request["op"]
        if word in ("create", "start", "exec"):
            self._begin(word, request, fds)
            return None
        match word:
            case "hello":
                return self._state()
            case "hold":
                return self._hold(request, fds)
            case "kill":
                return self._container(request["id"]).kill(request["signal"], everything=request["all"])
            case "kill_exec":
                return self._kill_exec(request["name"])
            case "reopen":
                return self._container(request["id"]).reopen_log()
            case "abandon":
                return self._abandon(request)
            case "end":
                return self._end()
        raise WrongState(f"this monitor does not know the request {word!r}")

    def _begin(self, word: str, request: dict[str, Any], fds: list[int]) -> None:
        """Requests whose answer waits for a child."""
        if word == "create":
            self._create(request)
        elif word == "start":
            self._start(request)
        else:
            self._exec(request, fds)

    def _container(self, container_id: str) -> ContainerProcess:
        try:
            return self._containers[container_id]
        except KeyError:
            raise Missing(f"the monitor has no container {container_id}") from None

    # --------------------------------------------------------------- requests

    def _state(self) -> dict[str, Any]:
        return {
            "version": protocol.VERSION,
            "pid": os.getpid(),
            "holder": self._holder,
            "containers": {key: value.state() for key, value in self._containers.items()},
        }

    def _hold(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._holder = holder.spawn(request, fds[0] if fds else -1, self._cgroups)
        self._held = True
        return {"holder": self._holder}

    def _create(self, request: dict[str, Any]) -> None:
        """Fork init; the answer follows when it says that it is ready."""
        if request["id"] in self._containers:
            raise WrongState(f"the container {request['id']} exists already")
        process = ContainerProcess(request, self._cgroups)
        self._containers[request["id"]] = process
        process.asked = request["seq"]
        self._watch(process.parent_fd, lambda: self._hear_init(process))
        for stream in process.streams:
            self._watch_stream(process, stream)

    def _watch_stream(self, process: ContainerProcess, stream: Any) -> None:
        def read() -> None:
            if not stream.read_once():
                self._forget(stream.fd)
                process.end_stream(stream)

        self._watch(stream.fd, read)

    def _hear_init(self, process: ContainerProcess) -> None:
        """Init says ready, or what is wrong, or falls silent, which after ``start`` means execve."""
        try:
            message, fds = process.hear()
        except OSError:
            message, fds = None, []
        if message is not None and "ready" in message:
            stream = process.became_ready(message["ready"], fds)
            if stream is not None:
                self._watch_stream(process, stream)
            self._answer(process, message["ready"])
            return
        self._forget(process.parent_fd)
        process.close_parent()
        if message is not None:
            kind = "start" if process.started_at else message["kind"]
            process.failed(message["error"])
            self._refuse(process, kind, message["error"])
        elif process.started_at:
            self._answer(process, process.became_running())
        else:
            self._refuse(process, "failed", "init ended before it was ready")

    def _answer(self, process: ContainerProcess, result: dict[str, Any]) -> None:
        seq, process.asked = process.asked, 0
        if seq:
            self._tell(protocol.answer(seq, result))

    def _refuse(self, process: ContainerProcess, kind: str, text: str) -> None:
        seq, process.asked = process.asked, 0
        if seq:
            self._tell(protocol.refusal(seq, kind, text))

    def _start(self, request: dict[str, Any]) -> None:
        """Let init go on. Asked again, by whoever missed the answer, this tells again that it runs."""
        process = self._container(request["id"])
        if process.running:
            self._tell(protocol.answer(request["seq"], process.became_running()))
            return
        process.go(time.time_ns())
        process.asked = request["seq"]

    def _exec(self, request: dict[str, Any], fds: list[int]) -> None:
        process = self._container(request["id"])
        if process.pid == 0 or process.ended or not process.started_at:
            raise WrongState(f"the container {request['id']} is not running")
        scope = self._cgroups.exec_scope(process.cgroup, request["name"])
        try:
            pid, parent = runtime_exec.start(request, process.pid, container.Stdio(*fds), scope)
        except BaseException:
            scope.remove()
            raise
        started = ExecProcess(request["seq"], request["name"], parent, scope)
        self._execs[pid] = started
        self._watch(parent.fd, lambda: self._hear_exec(started, pid))

    def _hear_exec(self, process: ExecProcess, pid: int) -> None:
        """The exec's last word, or the end of file that means execve."""
        try:
            message, _ = process.parent.hear()
        except OSError:
            message = None
        self._forget(process.parent.fd)
        process.parent.close()
        process.heard = True
        process.error = message["error"] if message else ""
        if process.status is not None:
            self._finish_exec(self._execs.pop(pid))

    def _kill_exec(self, name: str) -> dict[str, Any]:
        for process in self._execs.values():
            if process.name == name:
                process.kill()
        return {}

    def _abandon(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Forget a container; one that has not ended is killed, and the answer waits until it has."""
        process = self._container(request["id"])
        if process.ended:
            self._delete(process)
            return {}
        process.abandoned = request["seq"]
        process.kill_now()
        return None

    def _delete(self, process: ContainerProcess) -> None:
        for stream in process.streams:
            self._forget(stream.fd)
        process.close()
        del self._containers[process.id]

    def _end(self) -> dict[str, Any]:
        for process in self._containers.values():
            process.kill_now()
        if self._holder:
            os.kill(self._holder, signal.SIGKILL)
        self._ending = True
        return {}

    # ------------------------------------------------------------------ exits

    def _reap(self) -> None:
        os.read(_WAKE[0], 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, status)

    def _ended(self, pid: int, status: int) -> None:
        if pid == self._holder:
            self._holder = 0
            if not self._ending:
                self._tell({"event": "holder_exit"})
            return
        if pid in self._execs:
            process = self._execs[pid]
            process.status = status
            if process.heard:
                self._finish_exec(self._execs.pop(pid))
            return
        for container_process in self._containers.values():
            if container_process.pid == pid and not container_process.ended:
                self._container_ended(container_process, status)
                return

    def _container_ended(self, process: ContainerProcess, status: int) -> None:
        while process.parent_open:
            self._hear_init(process)  # all that it still said, before its exit is told
        for stream in process.streams:
            self._forget(stream.fd)
        exit_event = process.end(status, time.time_ns())
        if process.abandoned:
            self._delete(process)
            self._tell(protocol.answer(process.abandoned, {}))
            return
        process.keep_exit(self._directory)
        if not process.refused:
            self._tell({"event": "exit", "id": process.id, **exit_event})

    def _finish_exec(self, process: ExecProcess) -> None:
        if process.error:
            self._tell(protocol.refusal(process.seq, "start", process.error))
        else:
            assert process.status is not None
            self._tell(protocol.answer(process.seq, {"code": exit_code(process.status)}))
        process.scope_gone()


_WAKE: list[int] = []


def _wake_on_child() -> int:
    """A descriptor that becomes readable at SIGCHLD; the signal's handler, the spawner's, does nothing here."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _WAKE[:] = [read_end, write_end]
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _listen(directory: str) -> socket.socket:
    """The socket where a later daemon finds us; bound through the directory's descriptor: paths are limited to 108."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"/proc/self/fd/{fd}/{SOCKET_NAME}")
    listener.listen(4)
    os.close(fd)
    return listener


def _kind(error: Exception) -> str:
    if isinstance(error, Missing):
        return "missing"
    return "state" if isinstance(error, WrongState) else "failed"
