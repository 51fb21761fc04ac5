"""A pod's holder: a program that the daemon has written for it, executed by the monitor.

What it does, and why it is safe, is in ``pods.holder_steps``; how a list of system calls becomes a program, in
``kernel.steps``. Here is what it takes beside: who is mapped to whom in a user namespace, and the sysctls there.
"""

from __future__ import annotations

import json
import os
import select
import signal
from typing import NamedTuple

from cri_py.errors import InvalidArgument
from cri_py.kernel import syscalls, userns
from cri_py.kernel.null import open_null
from cri_py.kernel.steps import read_report
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import ChildError, Parent
from cri_py.runtime.container import Stdio

_EXECVE_S = 10.0


class Users(NamedTuple):
    """A user namespace: its mappings (``kernel.userns``), empty where the pod has none of its own; and, for the child
    that sets them, JSON {sysctls ({path below /proc/sys: value}), joined (flags of the namespaces that have them)}."""

    uid_map: bytes
    gid_map: bytes
    body: bytes


def spawn(program_fd: int, network_fd: int, users: Users) -> int:
    """Start the holder; returns its pid once it executes. ``network_fd``: the pod's network, if the program joins one.

    Raises StepFailed, and ChildError for what the program can't do itself.
    """
    null = open_null(os.O_RDWR)  # which containers may get at, if they see the holder
    try:
        child, parent = runtime_exec.bear(program_fd, network_fd, Stdio(null, null, null))
    finally:
        os.close(null)
    try:
        if users.uid_map:
            userns.write_mappings(child, users.uid_map, users.gid_map)
            if users.body:
                _set_sysctls(child, users)
        runtime_exec.let_go_on(parent)
        _await_execve(parent)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        parent.close()
    return child


def _await_execve(parent: Parent) -> None:
    poll = select.poll()
    poll.register(parent.fd, select.POLLIN)
    if not poll.poll(_EXECVE_S * 1000):
        raise ChildError(f"the holder did not execute its program within {_EXECVE_S:.0f} s")
    if said := parent.read():
        raise runtime_exec.StepFailed(read_report(said))


def _set_sysctls(holder: int, users: Users) -> None:
    """What the node's root alone can do: not every kernel lets a namespace's own root change all."""
    setter = Parent()
    if syscalls.clone3(0) == 0:
        setter.run_child(lambda: _set_sysctls_of(holder, users))
    setter.started()
    said = setter.hear()
    setter.close()
    if said:
        raise ChildError(said[2].decode("utf-8", "surrogateescape"), said[1].decode())


def _set_sysctls_of(holder: int, users: Users) -> None:
    """In a child, which joins the holder's namespaces."""
    request = json.loads(users.body)
    owner = int(users.uid_map.split()[1])  # the root of the namespaces' user namespace
    syscalls.setns(syscalls.pidfd_open(holder), request["joined"])
    for path, value in request["sysctls"].items():
        try:
            _write_sysctl(path, value, owner)
        except OSError as error:
            name = path.replace("/", ".")
            raise InvalidArgument(f"the sysctl {name} can't be set to {value[:64]!r}: {error.strerror}") from error
    os._exit(0)


def _write_sysctl(path: str, value: str, owner: int) -> None:
    """As the node's root or, which is who may set those of IPC since Linux 6.11, as the namespace's."""
    try:
        _write(f"/proc/sys/{path}", value)
    except PermissionError:
        os.seteuid(owner)
        try:
            _write(f"/proc/sys/{path}", value)
        finally:
            os.seteuid(0)


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)
