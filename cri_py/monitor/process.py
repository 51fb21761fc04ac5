"""The monitor: one per pod, it owns the pod's processes and outlives the daemon.

A single-threaded selectors loop. It forks the holder, each container's init and each exec, reaps them (and, as child
subreaper, what they leave behind), pumps output into log files, and keeps every exit until the daemon has it. It
listens on ``monitor.sock`` in the pod's directory, where a restarted daemon finds it again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn

from cri_py.cgroups import Cgroups, ExecScope
from cri_py.errors import CriError, FailedPrecondition, KernelError
from cri_py.kernel import procfs, syscalls
from cri_py.kernel.constants import PR_SET_CHILD_SUBREAPER
from cri_py.monitor import hooked, protocol, transport
from cri_py.monitor.output import OutputStream
from cri_py.monitor.stream import Attached, Forwarded, StreamProcess, Target, report_of_killed, start
from cri_py.monitor.stream_process import Executed
from cri_py.monitor.tracked import (
    ContainerProcess,
    Create,
    ExecProcess,
    Missing,
    WrongState,
    dropped,
    end_all,
    exit_code,
)
from cri_py.runtime import container, holder
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import BORN, READY, ChildError, Parent, said_text

_KILL_S = 5.0
_LOOKED_AT = 16  # groups that are left over, at the end of each exec
_SIGNAL_BYTES = 128  # struct signalfd_siginfo


def main(directory: str, fds: list[int], cgroups: Cgroups) -> None:
    """Entry, right after the spawner's fork, whose signal dispositions it keeps. ``fds``: the daemon's connection and
    the socket on which a later daemon will call."""
    connection_fd, listener_fd = fds
    os.setsid()
    procfs.set_own_name("cri-monitor")
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
    Monitor(directory, connection_fd, listener_fd, cgroups).run()


class Executor(NamedTuple):
    """Who runs what the daemon asks for: our own runtime, or a rehearsal of it."""

    hold: Callable[[int, int, holder.Users], int]
    create: Create
    exec: Callable[[int, int, container.Stdio], tuple[int, Parent]]


OURS = Executor(holder.spawn, container.create, runtime_exec.start)


class Monitor:
    """The pod's state, all of it in this process.

    Sockets are ``SocketType``, the plain ones of C: Python's own wrap their constants in enums, which costs memory.
    """

    def __init__(
        self, directory: str, connection_fd: int, listener_fd: int, cgroups: Cgroups, executor: Executor = OURS
    ) -> None:
        self._directory = directory
        self._cgroups = cgroups
        self._executor = executor
        self._epoll = select.epoll()
        self._acts: dict[int, Callable[[], None]] = {}  # by descriptor
        self._holder = 0
        self._held = False  # there was a pod to keep
        self._containers: dict[bytes, ContainerProcess] = {}
        self._execs: dict[int, ExecProcess] = {}  # by pid
        self._streams: dict[int, StreamProcess] = {}  # by pid
        self._hooked: dict[int, tuple[hooked.Runner, Callable[[bytes], None]]] = {}  # by pid
        self._enders: dict[int, int] = {}  # pid of a child that ends scopes: seq of the request that this answers, or 0
        self._left: list[ExecScope] = []  # groups of execs that have ended, kept by processes which they started
        self._ending = False
        self._listener_fd = listener_fd
        self._connection: socket.SocketType | None = None
        self._watch(listener_fd, self._accept)
        self._child_fd = syscalls.signalfd(signal.SIGCHLD)  # the spawner has blocked it
        self._watch(self._child_fd, self._reap)
        self._adopt(connection_fd)

    # ------------------------------------------------------------------ loop

    def run(self) -> None:
        """Until the daemon says ``end``."""
        self.greet()
        while not self._ending:
            self.turn()

    def greet(self) -> None:
        """Tell the daemon that made us that we are there."""
        self._tell(protocol.event(b"up", b'{"pid":%d}' % os.getpid()))

    def turn(self) -> None:
        """Wait until something happens, and act on it."""
        for fd, _ in self._epoll.poll():
            act = self._acts.get(fd)
            if act is not None:  # None: an act before it in this round has ended it
                act()

    def close(self) -> None:
        """Let go of all descriptors."""
        for process in self._containers.values():
            process.close()
        if self._connection is not None:
            self._connection.close()
        self._epoll.close()
        os.close(self._child_fd)
        os.close(self._listener_fd)

    def _watch(self, fd: int, act: Callable[[], None]) -> None:
        self._acts[fd] = act
        self._epoll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        """Once more is fine: it may have ended by itself before."""
        if self._acts.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _accept(self) -> None:
        listener = socket.socket(fileno=os.dup(self._listener_fd))
        connection, _ = listener.accept()
        listener.close()
        self._drop_connection()
        self._adopt(connection.detach())

    def _adopt(self, connection_fd: int) -> None:
        """The newest daemon is the one that counts."""
        connection = socket.SocketType(fileno=connection_fd)
        connection.settimeout(_KILL_S)  # a daemon that hangs must not hang the pod
        self._connection = connection
        self._watch(connection.fileno(), self._listen_to_daemon)

    def _drop_connection(self) -> None:
        if self._connection is None:
            return
        self._forget(self._connection.fileno())
        self._connection.close()
        self._connection = None
        self._kill_execs(list(self._execs.values()))  # nobody is left to read what they say
        for started in self._containers.values():
            started.asked = 0  # the next daemon hears of it by ``hello`` or by its exit
        if not self._held:
            self._ending = True  # the daemon died before there was a pod; no other will look for this one

    def _tell(self, frame: bytes) -> None:
        if self._connection is None:
            return  # the next daemon asks for the state
        try:
            transport.send(self._connection, frame)
        except OSError:
            self._drop_connection()

    def _listen_to_daemon(self) -> None:
        assert self._connection is not None
        try:
            frame, fds = transport.receive(self._connection)
        except OSError:
            frame, fds = b"", []
        if not frame:
            self._drop_connection()
            return
        request = protocol.parse_request(frame)
        try:
            answer = self._serve(request, fds)
        except runtime_exec.StepFailed as error:
            self._tell(protocol.step_refusal(request.seq, *error.report))
        except (CriError, OSError, ChildError, Missing, WrongState) as error:
            self._tell(protocol.refusal(request.seq, _kind(error), str(error)))
        else:
            if answer is not None:
                self._tell(protocol.answer(request.seq, answer))
        finally:
            for fd in fds:
                os.close(fd)

    def _serve(self, request: protocol.Request, fds: list[int]) -> bytes | None:
        """The answer to one request, or None where it comes later."""
        words = request.words
        match request.op:
            case "create" | "start" | "exec" | "kill_exec" | "hello" | "abandon":
                self._begin(request, fds)
                return None
            case "stream":
                self._stream(request, fds)
            case "hold":
                return self._hold(request, fds)
            case "kill":
                self._container(words[0]).kill(int(words[1]), everything=words[2] == b"1")
            case "reopen":
                self._container(words[0]).reopen_log()
            case "end":
                return self._end()
        return b""

    def _begin(self, request: protocol.Request, fds: list[int]) -> None:
        """Requests whose answer a child gives, or waits for."""
        match request.op:
            case "create":
                self._create(request)
            case "start":
                self._start(request)
            case "exec":
                self._exec(request, fds)
            case "kill_exec":
                name = request.words[0]
                self._kill_execs([each for each in self._execs.values() if each.name == name], request.seq)
            case "hello":
                self._tell_state(request.seq)
            case "abandon":
                self._abandon(request)

    def _container(self, container_id: bytes) -> ContainerProcess:
        try:
            return self._containers[container_id]
        except KeyError:
            raise Missing(f"the monitor has no container {container_id.decode()}") from None

    # --------------------------------------------------------------- requests

    def _tell_state(self, seq: int) -> None:
        """By a child, as to write the document costs memory; awaited, so that no event overtakes it."""
        pid = os.getpid()
        child = syscalls.clone3(0)
        if child == 0:
            self._say_state(seq, pid)
        if os.waitpid(child, 0)[1] != 0:
            raise ChildError("the monitor's state could not be told")

    def _say_state(self, seq: int, pid: int) -> NoReturn:
        """In the child."""
        try:
            state = {
                "version": protocol.VERSION,
                "pid": pid,
                "holder": self._holder,
                "containers": {key.decode(): value.state() for key, value in self._containers.items()},
            }
            self._tell(protocol.answer(seq, json.dumps(state).encode()))
            os._exit(0)
        finally:
            os._exit(1)

    def _hold(self, request: protocol.Request, fds: list[int]) -> bytes:
        program, *network = fds
        uid_map, gid_map = request.words
        users = holder.Users(uid_map, gid_map, request.body)
        self._holder = self._executor.hold(program, network[0] if network else program, users)
        self._held = True
        return b'{"holder":%d}' % self._holder

    def _create(self, request: protocol.Request) -> None:
        """Fork init; the answer follows when it says that it is ready."""
        container_id = request.words[0]
        if container_id in self._containers:
            raise WrongState(f"the container {container_id.decode()} exists already")
        process = ContainerProcess(request, self._cgroups, self._executor.create)
        self._containers[container_id] = process
        process.asked = request.seq
        self._watch(process.parent_fd, partial(self._hear_init, process))
        for stream in process.streams:
            self._watch_stream(process, stream)

    def _watch_stream(self, process: ContainerProcess, stream: OutputStream) -> None:
        self._watch(stream.fd, partial(self._read_stream, process, stream))

    def _read_stream(self, process: ContainerProcess, stream: OutputStream) -> None:
        if not stream.read_once():
            self._forget(stream.fd)
            process.end_stream(stream)

    def _hear_init(self, process: ContainerProcess) -> None:
        """Init says ready, or what is wrong, or falls silent, which after ``start`` means execve."""
        try:
            said, terminal = process.hear()
        except OSError:
            said, terminal = [], -1
        if said and said[0] == BORN:
            process.born(int(said[1]))
            return
        if said and said[0] == READY:
            stream = process.became_ready(int(said[1]), said[2], terminal)
            if stream is not None:
                self._watch_stream(process, stream)
            self._answer(process, said[2])
            return
        self._forget(process.parent_fd)
        process.close_parent()
        if said:
            kind = "start" if process.started_at else said[1].decode()
            process.failed(said_text(said))
            self._refuse(process, kind, process.error)
        elif process.started_at:
            self._runs(process)
        else:
            process.fell_silent = True  # its exit tells why

    def _runs(self, process: ContainerProcess) -> None:
        """Init has executed its program; who has asked for that hears of it once the hooks are through."""
        if not process.has_hooks(b"poststart"):
            self._answer(process, process.became_running())
            return

        def tell(said: bytes) -> None:
            if said:
                process.error = said.decode("utf-8", "replace")
                process.kill_now()
                self._refuse(process, "start", process.error)
            else:
                self._answer(process, process.became_running())

        self._run_hooks(process, "poststart", tell)

    def _run_hooks(self, process: ContainerProcess, stage: str, then: Callable[[bytes], None]) -> None:
        """``then`` is called with what they have said when they have ended."""
        runner = hooked.start(self._bundle(process), stage, process.pid)
        self._hooked[runner.pid] = runner, then

    def _bundle(self, process: ContainerProcess) -> str:
        return f"{self._directory}/containers/{process.id.decode()}"

    def _answer(self, process: ContainerProcess, body: bytes) -> None:
        seq, process.asked = process.asked, 0
        if seq:
            self._tell(protocol.answer(seq, body))

    def _refuse(self, process: ContainerProcess, kind: str, text: str) -> None:
        seq, process.asked = process.asked, 0
        if seq:
            self._tell(protocol.refusal(seq, kind, text))

    def _start(self, request: protocol.Request) -> None:
        """Let init go on. Asked again, by whoever missed the answer, this tells again that it runs."""
        process = self._container(request.words[0])
        if process.running:
            self._tell(protocol.answer(request.seq, process.became_running()))
            return
        process.go(time.time_ns())
        process.asked = request.seq

    def _exec(self, request: protocol.Request, fds: list[int]) -> None:
        container_id, name = request.words
        process = self._container(container_id)
        if process.pid == 0 or process.ended or not process.started_at:
            raise WrongState(f"the container {container_id.decode()} is not running")
        scope = self._cgroups.exec_scope(process.cgroup, name.decode())
        target = _held(process.pid)
        try:
            *stdio, program = fds
            pid, parent = self._executor.exec(program, target, container.Stdio(*stdio))
        except ChildError:
            self._end_scopes([scope])  # its second process may be on its way, and nobody knows its pid
            raise
        except BaseException:
            self._let_go(scope)
            raise
        finally:
            os.close(target)
        started = ExecProcess(request.seq, name, pid, parent, scope)
        self._execs[pid] = started
        self._watch(parent.fd, partial(self._hear_exec, started))

    def _hear_exec(self, process: ExecProcess) -> None:
        """It has said its last word, or executed."""
        self._forget(process.parent.fd)
        process.hear()

    def _stream(self, request: protocol.Request, fds: list[int]) -> None:
        """Fork a process that speaks with one client; it lives by itself, and with us."""
        kind, container_id, name, stdin = request.words
        target = self._target(kind, container_id, name, fds, wants_stdin=stdin == b"1")
        try:
            pid, process = start(request.body, fds[0], target)
        finally:
            for fd in target.fds():
                os.close(fd)
        self._streams[pid] = process
        self._watch(process.fd, partial(self._hear_stream, process))

    def _hear_stream(self, process: StreamProcess) -> None:
        """Its exec was killed, or it has reported, which waits until it is reaped."""
        if process.hear() and isinstance(process.target, Executed):
            self._outlive(process.target.scope)
        if process.silent:
            self._forget(process.fd)

    def _target(self, kind: bytes, container_id: bytes, name: bytes, fds: list[int], *, wants_stdin: bool) -> Target:
        """What a stream process works on."""
        if kind == b"portforward":
            if not self._holder:
                raise WrongState("the pod is ending: its holder is gone")
            return Forwarded(syscalls.pidfd_open(self._holder))
        process = self._container(container_id)
        if not process.running:
            raise WrongState(f"the container {container_id.decode()} is not running")
        if kind == b"exec":
            scope = self._cgroups.exec_scope(process.cgroup, name.decode())
            return Executed(_held(process.pid), scope, os.dup(fds[1]))
        pidfd = _held(process.pid)
        try:
            return Attached(pidfd, process.take_stdin() if wants_stdin else -1, *process.tap())
        except BaseException:
            os.close(pidfd)
            raise

    def _stream_ended(self, process: StreamProcess) -> None:
        """Pass on what the process has said of its session; one that was killed has said nothing, and left its exec."""
        self._hear_stream(process)
        self._forget(process.fd)
        os.close(process.fd)
        target = process.target
        if isinstance(target, Executed):
            if process.report:
                self._let_go(target.scope)
            else:
                self._end_scopes([target.scope])
        elif isinstance(target, Attached):
            for stream in (each for process in self._containers.values() for each in process.streams):
                stream.drop_unread_taps()
        self._tell(protocol.event(b"stream_end", process.report or report_of_killed(target)))

    def _kill_execs(self, execs: list[ExecProcess], seq: int = 0) -> None:
        """SIGKILL them and all that they have started; then, if that was asked for, answer."""
        for process in execs:
            process.kill()
        if execs:
            self._end_scopes([process.scope for process in execs], seq)
        elif seq:
            self._tell(protocol.answer(seq))

    def _end_scopes(self, scopes: list[ExecScope], seq: int = 0) -> None:
        """By a child: what is frozen, or sleeps uninterruptibly, or forks without end, takes its time to die."""
        monitor = os.getpid()
        child = syscalls.clone3(0)
        if child == 0:
            end_all(scopes, monitor)
        self._enders[child] = seq

    def _let_go(self, scope: ExecScope) -> None:
        """Remove an exec's group, and some that could not be removed when theirs ended: nothing tells when they can."""
        again, self._left = self._left[:_LOOKED_AT], self._left[_LOOKED_AT:]
        self._left += [each for each in (*again, scope) if not dropped(each)]

    def _abandon(self, request: protocol.Request) -> None:
        """Forget a container; one that has not ended is killed, and the answer waits until it has."""
        process = self._container(request.words[0])
        process.abandoned = request.seq
        if process.ended:
            self._delete(process)
        else:
            process.kill_now()

    def _delete(self, process: ContainerProcess) -> None:
        """Forget it, and answer who has asked for that."""
        for stream in process.streams:
            self._forget(stream.fd)
        process.close()
        del self._containers[process.id]
        seq = process.abandoned
        if process.has_hooks(b"poststop"):
            self._run_hooks(process, "poststop", lambda notes: self._tell(protocol.answer(seq, notes)))
        else:
            self._tell(protocol.answer(seq))

    def _end(self) -> bytes:
        """What is still here is not removed one by one any more, so its last hooks run now; returns one's notes."""
        for process in self._containers.values():
            process.kill_now()
        if self._holder:
            os.kill(self._holder, signal.SIGKILL)
        self._ending = True
        hooks = [process for process in self._containers.values() if process.has_hooks(b"poststop")]
        runners = [hooked.start(self._bundle(process), "poststop", process.pid) for process in hooks]
        for runner in runners:
            os.waitpid(runner.pid, 0)
        return next(filter(None, [runner.said() for runner in runners]), b"")

    # ------------------------------------------------------------------ exits

    def _reap(self) -> None:
        os.read(self._child_fd, _SIGNAL_BYTES)
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
                self._tell(protocol.event(b"holder_exit"))
            return
        if pid in self._streams:
            self._stream_ended(self._streams.pop(pid))
            return
        if pid in self._hooked:
            runner, then = self._hooked.pop(pid)
            then(runner.said())
            return
        if pid in self._enders:
            if seq := self._enders.pop(pid):
                self._tell(protocol.answer(seq))
            return
        if pid in self._execs:
            process = self._execs.pop(pid)
            process.status = status
            if not process.heard:  # all that it said is there; the end of file may not be, if somebody holds its end
                self._forget(process.parent.fd)
                process.hear()
            self._finish_exec(process)
            return
        for container_process in self._containers.values():
            if container_process.pid == pid and not container_process.ended:
                if container_process.bearing and container_process.parent_open:
                    self._hear_init(container_process)  # its last word may be that another is init now
                if container_process.pid == pid:
                    self._container_ended(container_process, status)
                return

    def _container_ended(self, process: ContainerProcess, status: int) -> None:
        while process.parent_open:
            self._hear_init(process)  # all that it still said, before its exit is told
        for stream in process.streams:
            self._forget(stream.fd)
        for walking in self._execs.values():  # the container's group is emptied now, and entered by nobody after that
            if not walking.heard and walking.scope.path.startswith(f"{process.cgroup}/"):
                walking.kill()
        process.end(status, time.time_ns())
        if process.fell_silent:
            self._refuse(process, *process.why_silent(status))
        if process.abandoned:
            self._delete(process)
            return
        process.keep_exit(self._directory)
        if not process.refused:
            self._tell(protocol.event(b"exit", process.ended))

    def _finish_exec(self, process: ExecProcess) -> None:
        if process.failure is not None:
            self._tell(protocol.step_refusal(process.seq, *process.failure))
        else:
            assert process.status is not None
            if process.was_killed():
                self._outlive(process.scope)
            self._tell(protocol.answer(process.seq, b'{"code":%d}' % exit_code(process.status)))
        self._let_go(process.scope)

    def _outlive(self, scope: ExecScope) -> None:
        """An exec was killed: its container may live on."""
        for process in self._containers.values():
            process.outlive_exec(scope)


def _held(pid: int) -> int:
    """A pidfd of a container's init that has not been reaped."""
    try:
        return syscalls.pidfd_open(pid)
    except KernelError as error:
        raise WrongState("the container is ending") from error


def _kind(error: Exception) -> str:
    if isinstance(error, ChildError):
        return error.kind
    if isinstance(error, Missing):
        return "missing"
    return "state" if isinstance(error, WrongState | FailedPrecondition) else "failed"
