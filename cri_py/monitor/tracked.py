"""What a monitor knows of the processes that it has forked: containers and execs."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from typing import Any

from cri_py.cgroups import Cgroups, ExecScope
from cri_py.errors import KernelError
from cri_py.kernel import procfs
from cri_py.monitor.output import PIPE_BYTES, LogFile, OutputStream
from cri_py.runtime import container
from cri_py.runtime.child import Parent

EXITS = "exits"
_F_SETPIPE_SZ = 1031
_KILL_S = 5.0


class Missing(Exception):
    """The request names a container that this monitor does not have."""


class WrongState(Exception):
    """The container's state does not allow the request."""


class ContainerProcess:
    """One container from create to delete."""

    def __init__(self, request: dict[str, Any], cgroups: Cgroups) -> None:
        self.id: str = request["id"]
        self.cgroup: str = request["cgroup"]
        self.abandoned = 0  # seq of the request that its end answers
        self.asked = 0  # seq of the request that init's next word answers
        self.started_at = 0
        self.ended: dict[str, Any] = {}
        self.refused = False  # init failed, and the answer to a request has said so
        self.error = ""  # what init failed with
        self.streams: list[OutputStream] = []
        self._cgroups = cgroups
        self._own_pids: bool = request["own_pids"]
        self._line_bytes: int = request["line_bytes"]
        self._ticks = 0
        self._user: dict[str, Any] | None = None
        self._log = LogFile(request["log"]) if request["log"] else None
        self._stdin = -1
        self._parent: Parent | None = None
        if self._log is not None:
            self._open_log(self._log)
        self.pid = self._fork(request)

    @staticmethod
    def _open_log(log: LogFile) -> None:
        try:
            log.open()
        except OSError:
            return  # tried again with the first line, which is counted as dropped if that fails too

    def _fork(self, request: dict[str, Any]) -> int:
        if request["tty"]:
            pid, self._parent = container.create(request, container.Stdio(-1, -1, -1), self._cgroups)
            return pid
        stdin, self._stdin = self._stdin_pair(wanted=request["stdin"])
        out, stdout = os.pipe2(os.O_CLOEXEC)
        err, stderr = os.pipe2(os.O_CLOEXEC)
        widen_pipe(out)
        self.streams = [
            OutputStream(out, "stdout", self._log, self._line_bytes),
            OutputStream(err, "stderr", self._log, self._line_bytes),
        ]
        try:
            pid, self._parent = container.create(request, container.Stdio(stdin, stdout, stderr), self._cgroups)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
        return pid

    @staticmethod
    def _stdin_pair(*, wanted: bool) -> tuple[int, int]:
        if wanted:
            return os.pipe2(os.O_CLOEXEC)
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1

    # -- init's words

    @property
    def parent_open(self) -> bool:
        return self._parent is not None

    @property
    def parent_fd(self) -> int:
        assert self._parent is not None
        return self._parent.fd

    def hear(self) -> tuple[dict[str, Any] | None, list[int]]:
        assert self._parent is not None
        return self._parent.hear()

    def close_parent(self) -> None:
        if self._parent is not None:
            self._parent.close()
            self._parent = None

    def became_ready(self, ready: dict[str, Any], fds: list[int]) -> OutputStream | None:
        """Init waits for ``go``; with a tty its master has come along, which is stdin and output in one."""
        self._user = ready["user"]
        if not fds:
            return None
        stream = OutputStream(fds[0], "stdout", self._log, self._line_bytes)
        self.streams.append(stream)
        return stream

    def go(self, now: int) -> None:
        if self.ended or self._parent is None or self.started_at:
            raise WrongState(f"the container {self.id} is not waiting to be started")
        self.started_at = now
        self._parent.go()

    @property
    def running(self) -> bool:
        return bool(self.started_at) and not self.ended and self._parent is None

    def became_running(self) -> dict[str, Any]:
        self._ticks = procfs.start_ticks(self.pid) or 0
        return {"pid": self.pid, "ticks": self._ticks, "started_at": self.started_at}

    def failed(self, text: str) -> None:
        self.error = text
        self.refused = bool(self.asked)
        self.started_at = 0

    # -- requests

    def kill(self, number: int, *, everything: bool) -> dict[str, Any]:
        """Signal the first process, or SIGKILL all. One that has ended is fine."""
        if not self.ended:
            if everything:
                self.kill_now()
            else:
                os.kill(self.pid, number)
        return {}

    def kill_now(self) -> None:
        """SIGKILL: the end of pid 1 is the end of its namespace; without one of its own the cgroup is emptied."""
        if not self.ended:
            os.kill(self.pid, signal.SIGKILL)
        if not self._own_pids:
            self._cgroups.kill(self.cgroup, _KILL_S)

    def reopen_log(self) -> dict[str, Any]:
        if self.ended or not self.started_at:
            raise WrongState(f"the container {self.id} is not running")
        if self._log is not None:
            self._log.open()
        return {}

    # -- the end

    def end_stream(self, stream: OutputStream) -> None:
        if stream in self.streams:
            self.streams.remove(stream)
            stream.close()

    def end(self, status: int, now: int) -> dict[str, Any]:
        """The process was reaped: take the last output, see whether memory was short, end what it left behind."""
        if not self._own_pids:
            self._end_rest()
        for stream in self.streams:
            stream.drain()
            stream.close()
        self.streams = []
        self.ended = {
            "code": exit_code(status),
            "started_at": self.started_at,
            "finished_at": now,
            "oom": self._oom_kills() > 0,
            "error": self.error,
            "dropped": self._log.dropped if self._log else 0,
        }
        return self.ended

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
        path = f"{directory}/{EXITS}/{self.id}"
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            with open(f"{path}.new", "w") as file:
                json.dump(self.ended, file)
            os.rename(f"{path}.new", path)
        except OSError:
            return  # the state directory is full; the daemon still has it from us

    def state(self) -> dict[str, Any]:
        """What a new daemon has to know. What was told to start counts as running: nobody will be asked again."""
        word = "exited" if self.ended else "running" if self.started_at else "created"
        return {"state": word, **self.became_running(), "user": self._user, **self.ended}

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


class ExecProcess:
    """One exec, from the fork until both its exit and its last word are known."""

    def __init__(self, seq: int, name: str, parent: Parent, scope: ExecScope) -> None:
        self.seq = seq
        self.name = name
        self.parent = parent
        self.scope = scope
        self.status: int | None = None
        self.heard = False
        self.error = ""

    def kill(self) -> None:
        """SIGKILL it and everything that it has started."""
        try:
            self.scope.kill(_KILL_S)
        except KernelError:
            return  # in uninterruptible sleep: it ends when the kernel lets it

    def scope_gone(self) -> None:
        """Remove the scope's group. Processes that the exec left behind keep it, until the container's own end."""
        try:
            if not self.scope.processes():
                self.scope.remove()
        except KernelError:
            return  # still busy; it goes with its container's group
