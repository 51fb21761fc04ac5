"""The stream process: forked by the monitor for one client of an exec, attach or port-forward, it speaks its protocol.

It has the client's socket from the daemon's front, which has agreed with the client on what is spoken, and needs the
daemon no more. It ends with its client, with what it
works on, and with its monitor, and leaves no process, descriptor or terminal behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeAlias

from cri_py.kernel import procfs, syscalls
from cri_py.kernel.constants import PR_SET_PDEATHSIG
from cri_py.monitor.link import Link
from cri_py.monitor.stream_command import CommandPump
from cri_py.monitor.stream_forward import ForwardPump
from cri_py.monitor.stream_process import AttachedProcess, Executed, ExecutedProcess, ExecutedTold, Process
from cri_py.runtime.child import keep_only
from cri_py.wire.channels import Agreement, Streams, Transport
from cri_py.wire.session import port_forward, remote_command

# A client may take its time before it opens its streams, so what it works on is held by a pidfd: a pid alone might be
# that of a process outside of the container by then.


class Attached(NamedTuple):
    """The container's own process: the write end of its stdin, the read ends of its output, -1 for what it lacks."""

    pidfd: int
    stdin: int
    stdout: int
    stderr: int

    def fds(self) -> tuple[int, ...]:
        return tuple(fd for fd in self if fd >= 0)


class Forwarded(NamedTuple):
    """The network namespace of the pod whose holder ``pidfd`` holds."""

    pidfd: int

    def fds(self) -> tuple[int, ...]:
        return (self.pidfd,)


Target: TypeAlias = Executed | Attached | Forwarded
_ERROR_CHARACTERS = 500  # of at most 12 bytes each in JSON
_REPORT_BYTES = 8192
_EXEC_KILLED = b"k"  # said at once, before the report, which may wait for the client
_KINDS = {Executed: "exec", Attached: "attach", Forwarded: "portforward"}


class StreamProcess:
    """What the monitor knows of one. ``report``: JSON, once it has ended; ``fd``: of the pipe on which that comes, and
    which the owner closes."""

    def __init__(self, fd: int, target: Target) -> None:
        self.fd = fd
        self.target = target
        self.report = b""
        self.silent = False  # nothing more will come

    def hear(self) -> bool:
        """Take what it has said; whether its exec was killed, but not by it."""
        try:
            said = os.read(self.fd, _REPORT_BYTES)
        except BlockingIOError:
            return False
        self.silent = not said
        self.report += said.removeprefix(_EXEC_KILLED)
        return said.startswith(_EXEC_KILLED)


def start(body: bytes, client_fd: int, target: Target) -> tuple[int, StreamProcess]:
    """Fork one. Its pid, and what the monitor keeps of it; the descriptors stay the caller's."""
    fd, report_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    monitor = os.getpid()
    try:
        pid = syscalls.clone3(0)
        if pid == 0:
            serve(body, client_fd, report_fd, target, monitor)
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.close(report_fd)
    return pid, StreamProcess(fd, target)


def serve(body: bytes, client_fd: int, report_fd: int, target: Target, monitor: int) -> NoReturn:
    """In the child of the process ``monitor``: until the session is over. ``body``: JSON {transport, protocol, answer,
    rest, stdio {stdin, stdout, stderr, tty}, ports, idle_s, words, owner}, these two of an exec only."""
    try:
        begun, error, link = time.monotonic(), "", None
        try:
            syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != monitor:  # it died before that
                os._exit(1)
            keep_only(client_fd, report_fd, *target.fds(), null_stdio=True)
            procfs.set_own_name("cri-stream")
            link, error = _converse(body, socket.socket(fileno=client_fd), target, report_fd)
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
        _report(report_fd, target, time.monotonic() - begun, link, error)
    finally:
        os._exit(0)  # whatever it was, nothing of the child may go on as a second monitor


def _converse(body: bytes, client: socket.socket, target: Target, report_fd: int) -> tuple[Link, str]:
    """Agree to speak, then pump. Returns the link, and what went wrong by the client's or the pod's fault."""
    request = json.loads(body)
    answer, rest = request["answer"].encode("latin-1"), request["rest"].encode("latin-1")
    agreed = Agreement(Transport(request["transport"]), request["protocol"], answer)
    if isinstance(target, Forwarded):
        forward = port_forward(agreed, request["ports"])
        link = Link(client, forward, answer)
        return link, ForwardPump(link, forward, target.pidfd, request["idle_s"]).run(rest)
    streams = Streams(**request["stdio"])
    command = remote_command(agreed, streams)
    link = Link(client, command, answer)
    process = _process(request, target, streams, partial(os.write, report_fd, _EXEC_KILLED))
    return link, CommandPump(link, command, process, request["idle_s"]).run(rest)


def _process(
    request: dict[str, Any], target: Executed | Attached, streams: Streams, tell_killed: Callable[[], object]
) -> Process:
    if isinstance(target, Executed):
        told = ExecutedTold(request["words"], tuple(request["owner"]))
        return ExecutedProcess(target, told, streams, tell_killed)
    return AttachedProcess(target.pidfd, target.stdin, (target.stdout, target.stderr), streams)


def _report(fd: int, target: Target, seconds: float, link: Link | None, error: str) -> None:
    """For the daemon's metrics, by way of the monitor, which passes it on unread."""
    told = {
        "kind": _KINDS[type(target)],
        "seconds": round(seconds, 3),
        "received": link.received if link else 0,
        "sent": link.sent if link else 0,
        "error": error[:_ERROR_CHARACTERS],
    }
    os.write(fd, json.dumps(told).encode())


def report_of_killed(target: Target) -> bytes:
    """In the monitor, of one that was killed and has reported nothing."""
    said = b'{"kind":"%b","seconds":0,"received":0,"sent":0,"error":"the stream process was killed"}'
    return said % _KINDS[type(target)].encode()
