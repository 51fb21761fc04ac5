"""What a monitor knows of the processes that it has forked: containers and execs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

from cri_py.cgroups import Cgroups, ExecScope
from cri_py.errors import KernelError
from cri_py.kernel import procfs, syscalls
from cri_py.kernel.constants import PR_SET_PDEATHSIG
from cri_py.kernel.null import open_null
from cri_py.kernel.steps import Report
from cri_py.monitor.output import PIPE_BYTES, LogFile, OutputStream
from cri_py.monitor.protocol import Request
from cri_py.runtime import container
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import Parent, keep_only

EXITS = "exits"
KILLED = 128 + signal.SIGKILL  # as an exit code
_F_SETPIPE_SZ = 1031
_KILL_S = 5.0
_PAUSE_S = 0.001


class Missing(Exception):
    """The request names a container that this monitor does not have."""


class WrongState(Exception):
    """The container's state does not allow the request."""


Create = Callable[[container.Birth, bytes, container.Stdio, Cgroups], tuple[int, Parent]]


class ContainerProcess:
    """One container from create to delete."""

    def __init__(self, request: Request, cgroups: Cgroups, create: Create) -> None:
        self.id, cgroup, log, line_bytes, stdin, stdin_once, tty, own_pids, new, joined, holder, later = request.words
        self.cgroup = cgroup.decode("utf-8", "surrogateescape")
        self.abandoned = 0  # seq of the request that its end answers
        self.asked = 0  # seq of the request that init's next word answers
        self.started_at = 0
        self.ended = b""  # the ``exit`` event's body
        self.refused = False  # init failed, and the answer to a request has said so
        self.error = ""  # what init failed with
        self.fell_silent = False  # init ended, or is about to, without a word
        self.streams: list[OutputStream] = []
        self._cgroups = cgroups
        self._create = create
        self._own_pids = own_pids == b"1"
        self._later_hooks = later
        self._line_bytes = int(line_bytes)
        self._ticks = 0
        self._ready = b""  # JSON {user, notes}, as init said it
        self._log = LogFile(log) if log else None
        self._stdin = -1
        self._stdin_once = stdin_once == b"1"
        self._parent: Parent | None = None
        if self._log is not None:
            self._open_log(self._log)
        birth = container.Birth(self.cgroup, int(new), int(joined), int(holder), tty == b"1")
        self.bearing = birth.crosses  # the pid is that of the process that bears init
        self._doomed = False
        self._outlived = 0  # OOM kills that were an exec's end
        self.pid = self._fork(birth, request.body, stdin=stdin == b"1")

    @staticmethod
    def _open_log(log: LogFile) -> None:
        try:
            log.open()
        except OSError:
            return  # tried again with the first line, which is counted as dropped if that fails too

    def _fork(self, birth: container.Birth, body: bytes, *, stdin: bool) -> int:
        self._tty = birth.tty
        if birth.tty:
            pid, self._parent = self._create(birth, body, container.Stdio(-1, -1, -1), self._cgroups)
            return pid
        read_end, self._stdin = self._stdin_pair(wanted=stdin)
        out, stdout = os.pipe2(os.O_CLOEXEC)
        err, stderr = os.pipe2(os.O_CLOEXEC)
        widen_pipe(out)
        self.streams = [
            OutputStream(out, "stdout", self._log, self._line_bytes),
            OutputStream(err, "stderr", self._log, self._line_bytes),
        ]
        try:
            stdio = container.Stdio(read_end, stdout, stderr)
            pid, self._parent = self._create(birth, body, stdio, self._cgroups)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (read_end, stdout, stderr):
                os.close(fd)
        return pid

    @staticmethod
    def _stdin_pair(*, wanted: bool) -> tuple[int, int]:
        if wanted:
            return os.pipe2(os.O_CLOEXEC)
        return open_null(os.O_RDONLY), -1

    # -- init's words

    @property
    def parent_open(self) -> bool:
        return self._parent is not None

    @property
    def parent_fd(self) -> int:
        assert self._parent is not None
        return self._parent.fd

    def hear(self) -> tuple[list[bytes], int]:
        """As Parent.hear_with_descriptor; a descriptor comes only with a tty."""
        assert self._parent is not None
        return self._parent.hear_with_descriptor() if self._tty else (self._parent.hear(), -1)

    def close_parent(self) -> None:
        if self._parent is not None:
            self._parent.close()
            self._parent = None

    def born(self, pid: int) -> None:
        """Init is ``pid``; the process that was forked for it goes, or has gone."""
        self.pid = pid
        self.bearing = False
        if self._doomed:
            self.kill_now()

    def became_ready(self, ticks: int, ready: bytes, terminal: int) -> OutputStream | None:
        """Init waits for ``go``; with a tty its master has come along, which is stdin and output in one."""
        self._ticks = ticks
        self._ready = ready
        if terminal < 0:
            return None
        stream = OutputStream(terminal, "stdout", self._log, self._line_bytes)
        self.streams.append(stream)
        return stream

    def go(self, now: int) -> None:
        if self.ended or self._parent is None or self.started_at:
            raise WrongState(f"the container {self.id.decode()} is not waiting to be started")
        self.started_at = now
        self._parent.go()

    def has_hooks(self, stage: bytes) -> bool:
        """Whether its document has any of ``poststart`` or ``poststop``."""
        return stage in self._later_hooks.split(b" ")

    @property
    def running(self) -> bool:
        return bool(self.started_at) and not self.ended and self._parent is None

    def became_running(self) -> bytes:
        """What ``start`` answers."""
        return b'{"pid":%d,"ticks":%d,"started_at":%d}' % (self.pid, self._ticks, self.started_at)

    def failed(self, text: str) -> None:
        self.error = text
        self.refused = bool(self.asked)
        self.started_at = 0

    # -- requests

    def kill(self, number: int, *, everything: bool) -> None:
        """Signal the first process, or SIGKILL all. One that has ended is fine."""
        if not self.ended:
            if everything:
                self.kill_now()
            else:
                with contextlib.suppress(PermissionError):  # its AppArmor profile lets none in: the grace period passes
                    os.kill(self.pid, number)

    def kill_now(self) -> None:
        """SIGKILL: the end of pid 1 is the end of its namespace; without one of its own the cgroup is emptied."""
        alone = self._own_pids
        if not self.ended:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except PermissionError:
                alone = False  # its AppArmor profile lets no signal in; cgroup.kill asks no profile
            self._doomed = self.bearing
        if not alone:
            self._cgroups.kill(self.cgroup, _KILL_S)

    def tap(self) -> tuple[int, int]:
        """The read ends of new pipes that get what the container says on stdout and stderr, -1 for a stream that has
        ended or that a tty does not have. The caller owns them."""
        ends = {"stdout": -1, "stderr": -1}
        for stream in self.streams:
            ends[stream.name], write_end = os.pipe2(os.O_CLOEXEC)
            widen_pipe(write_end)
            stream.take_tap(write_end)
        return ends["stdout"], ends["stderr"]

    def take_stdin(self) -> int:
        """A descriptor that writes to the container's stdin, -1 if there is none. With stdin_once it is the only one:
        when its owner closes it, the container reads the end."""
        if self._tty:
            return os.dup(self.streams[0].fd) if self.streams else -1
        if self._stdin < 0 or not self._stdin_once:
            return os.dup(self._stdin) if self._stdin >= 0 else -1
        taken, self._stdin = self._stdin, -1
        return taken

    def reopen_log(self) -> None:
        if self.ended or not self.started_at:
            raise WrongState(f"the container {self.id.decode()} is not running")
        if self._log is not None:
            self._log.open()

    # -- the end

    def end_stream(self, stream: OutputStream) -> None:
        if stream in self.streams:
            self.streams.remove(stream)
            stream.close()

    def end(self, status: int, now: int) -> None:
        """The process was reaped: take the last output, see whether memory was short, end what it left behind."""
        if not self._own_pids:
            self._end_rest()
        for stream in self.streams:
            stream.drain()
            stream.close()
        self.streams = []
        self._oom = self._oom_kills() > self._outlived
        self.ended = (b'{"id":"%b","code":%d,"started_at":%d,"finished_at":%d,"oom":%b,"dropped":%d,"error":%b}') % (
            self.id,
            exit_code(status),
            self.started_at,
            now,
            b"true" if self._oom else b"false",
            self._log.dropped if self._log else 0,
            json.dumps(self.error).encode() if self.error else b'""',
        )

    def why_silent(self, status: int) -> tuple[str, str]:
        """The kind and the text of a refusal, for an init that ended before it was ready and without a word."""
        self.refused = bool(self.asked)
        if self._oom:
            return "state", "init was killed for want of memory before it was ready: the container's limit is too low"
        return "failed", f"init ended before it was ready, with code {exit_code(status)}"

    def outlive_exec(self, scope: ExecScope) -> None:
        """An exec was killed, perhaps for want of memory. If it was this container's, which lives on, that will not be
        why the container ends.

        An init that is killed takes execs along, and memory.oom.group takes all, so it may be an exec that is reaped
        first. The kernel counts a kill before it sends the signal; so this counts before it looks who was to die.
        """
        if not self.ended and scope.path.startswith(f"{self.cgroup}/"):
            kills = self._oom_kills()
            if not procfs.is_ending(self.pid):
                self._outlived = kills

    def _end_rest(self) -> None:
        try:
            self._cgroups.kill(self.cgroup, _KILL_S)
        except KernelError:
            return  # unkillable for now (uninterruptible sleep): RemoveContainer meets it again and says so

    def _oom_kills(self) -> int:
        try:
            return self._cgroups.oom_kills(self.cgroup)
        except OSError:
            return 0  # the group is gone, or there is no memory controller

    def keep_exit(self, directory: str) -> None:
        """Write the exit to a file as well: it is known even if this process is killed next."""
        path = f"{directory}/{EXITS}/{self.id.decode()}"
        try:
            fd = _create(f"{path}.new")
            try:
                os.write(fd, self.ended)
            finally:
                os.close(fd)
            os.rename(f"{path}.new", path)
        except OSError:
            return  # the state directory is full; the daemon still has it from us

    def state(self) -> dict[str, Any]:
        """What a new daemon has to know. What was told to start counts as running: nobody will be asked again."""
        word = "exited" if self.ended else "running" if self.started_at else "created"
        user = json.loads(self._ready)["user"] if self._ready else None
        ended = json.loads(self.ended) if self.ended else {}
        return {"state": word, **json.loads(self.became_running()), "user": user, **ended}

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.streams = []
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1
        self.close_parent()
        if self._log is not None:
            self._log.close()


def _create(path: str) -> int:
    """A new file, its directory made where it is the first."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.mkdir(os.path.dirname(path), 0o700)
        return os.open(path, flags, 0o600)


def exit_code(status: int) -> int:
    """A wait status in the shell's words: 128 and the number for an end by a signal."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def widen_pipe(fd: int) -> None:
    """Ask for a pipe of 1 MiB, so that a busy writer and the log alternate less often; a refusal changes nothing."""
    try:
        fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return


def end_scope(scope: ExecScope) -> None:
    """End what an exec has left behind, and its group.

    Again until the group is gone: a process on its way in comes too late then, on v1 by an open that fails.
    """
    until = time.monotonic() + _KILL_S
    try:
        while not dropped(scope) and time.monotonic() < until:
            scope.kill(_KILL_S)
            time.sleep(_PAUSE_S)
    except KernelError:
        return  # in uninterruptible sleep, frozen, or gone: it goes with its container's group


def end_all(scopes: list[ExecScope], monitor: int) -> NoReturn:
    """In a child of the process ``monitor``."""
    try:
        syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == monitor:  # else it died before that
            keep_only(null_stdio=True)  # the end of the monitor's sockets and pipes must not wait for this process
            for scope in scopes:
                end_scope(scope)
    finally:
        os._exit(0)


def dropped(scope: ExecScope) -> bool:
    """Remove the scope's group; False where processes that the exec has left behind keep it."""
    try:
        return scope.drop()
    except KernelError:
        return True  # it goes with its container's group


class ExecProcess:
    """One exec, from the fork until both its exit and its last word are known."""

    def __init__(self, seq: int, name: bytes, pid: int, parent: Parent, scope: ExecScope) -> None:
        self.seq = seq
        self.name = name
        self.pid = pid
        self.parent = parent
        self.scope = scope
        self.status: int | None = None
        self.was_told_to_end = False
        self.heard = False
        self.failure: Report | None = None

    def hear(self) -> None:
        """Its last word, or the end of file that means execve."""
        try:
            self.failure = runtime_exec.hear(self.parent)
        except OSError:
            self.failure = None
        self.parent.close()
        self.heard = True

    def kill(self) -> None:
        """SIGKILL it, wherever it is on its way into its scope; what it has started is there."""
        if self.status is None:  # else its number may be another's by now
            self.was_told_to_end = True
            os.kill(self.pid, signal.SIGKILL)

    def was_killed(self) -> bool:
        """By somebody else than us, which is the OOM killer more often than not; or it passed a child's such end on."""
        return self.status is not None and exit_code(self.status) == KILLED and not self.was_told_to_end
