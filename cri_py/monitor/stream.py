"""The stream process: forked by the monitor for one client of an exec, attach or port-forward, it speaks its protocol.

It has the client's socket from the daemon's front, and needs neither any more. It ends with its client, with what it
works on, and with its monitor, and leaves no process, descriptor or terminal behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import Any, NamedTuple, NoReturn, TypeAlias

from cri_py.cgroups import ExecScope
from cri_py.kernel import procfs, syscalls
from cri_py.kernel.constants import PR_SET_PDEATHSIG
from cri_py.monitor.link import Link
from cri_py.monitor.stream_command import AttachedProcess, CommandPump, ExecutedProcess, Process
from cri_py.monitor.stream_forward import ForwardPump
from cri_py.runtime.child import keep_only
from cri_py.wire.channels import Streams
from cri_py.wire.negotiation import Refusal, negotiate
from cri_py.wire.session import port_forward, remote_command


class Executed(NamedTuple):
    """A new process in the container whose init is ``pid``."""

    pid: int
    scope: ExecScope
    program: int  # a descriptor

    def fds(self) -> tuple[int, ...]:
        return (self.program,)


class Attached(NamedTuple):
    """The container's own process: the write end of its stdin, the read ends of its output, -1 for what it lacks."""

    pid: int
    stdin: int
    stdout: int
    stderr: int

    def fds(self) -> tuple[int, ...]:
        return tuple(fd for fd in self[1:] if fd >= 0)


class Forwarded(NamedTuple):
    """The network namespace of the pod whose holder is ``pid``."""

    pid: int

    def fds(self) -> tuple[int, ...]:
        return ()


Target: TypeAlias = Executed | Attached | Forwarded
_KINDS = {Executed: "exec", Attached: "attach", Forwarded: "portforward"}


def serve(body: bytes, client_fd: int, report_fd: int, target: Target) -> NoReturn:
    """In the child: until the session is over. ``body``: JSON {head {method, target, headers, rest}, stdio {stdin,
    stdout, stderr, tty}, ports, idle_s, words}, the words by ``kernel.steps.words`` of an exec's program."""
    begun, error, link = time.monotonic(), "", None
    try:
        syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        keep_only(client_fd, report_fd, *target.fds(), null_stdio=True)
        procfs.set_own_name("cri-stream")
        link, error = _converse(body, socket.socket(fileno=client_fd), target)
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    finally:
        _report(report_fd, target, time.monotonic() - begun, link, error)
        os._exit(0)


def _converse(body: bytes, client: socket.socket, target: Target) -> tuple[Link | None, str]:
    """Answer the head, then pump. Returns the link, and what went wrong by the client's or the pod's fault."""
    request = json.loads(body)
    head, ports = request["head"], request["ports"]
    agreed = negotiate(head["method"], head["headers"], forward=isinstance(target, Forwarded), ports=ports)
    if isinstance(agreed, Refusal):
        client.sendall(agreed.answer)
        client.close()
        return None, agreed.text
    rest = head["rest"].encode("latin-1")
    if isinstance(target, Forwarded):
        forward = port_forward(agreed, ports)
        link = Link(client, forward, agreed.answer)
        return link, ForwardPump(link, forward, target.pid, request["idle_s"]).run(rest)
    stdio = request["stdio"]
    streams = Streams(stdio["stdin"], stdio["stdout"], stdio["stderr"], stdio["tty"])
    command = remote_command(agreed, streams)
    link = Link(client, command, agreed.answer)
    return link, CommandPump(link, command, _process(request, target, streams), request["idle_s"]).run(rest)


def _process(request: dict[str, Any], target: Executed | Attached, streams: Streams) -> Process:
    if isinstance(target, Executed):
        return ExecutedProcess(target.program, request["words"], target.pid, target.scope, streams)
    return AttachedProcess(target.pid, target.stdin, (target.stdout, target.stderr), streams)


def _report(fd: int, target: Target, seconds: float, link: Link | None, error: str) -> None:
    """For the daemon's metrics, by way of the monitor, which passes it on unread."""
    told = {
        "kind": _KINDS[type(target)],
        "seconds": round(seconds, 3),
        "received": link.received if link else 0,
        "sent": link.sent if link else 0,
        "error": error[:1000],
    }
    os.write(fd, json.dumps(told).encode())
