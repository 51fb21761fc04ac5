"""The holder: the process that keeps a pod's namespaces alive.

Forked by the monitor, it enters or makes the pod's namespaces and executes the program of ``kernel.holder``, with
SIGCHLD ignored, so that the kernel reaps its children, also where it is pid 1 of a shared pid namespace.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from cri_py.cgroups import Cgroups
from cri_py.errors import InvalidArgument
from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUTS, PR_SET_PDEATHSIG
from cri_py.runtime.child import Parent, keep_only

Become = Callable[["Own", bytes, int, Cgroups, Parent], None]


class Own(NamedTuple):
    """Which namespaces the pod has of its own; an empty hostname keeps the host's UTS namespace."""

    hostname: str
    ipc: bool
    pid: bool


def spawn(own: Own, body: bytes, netns_fd: int, cgroups: Cgroups, become: Become | None = None) -> int:
    """Start the holder; returns its pid once it executes. Raises ChildError with the cause if it can't.

    ``body``: JSON {program (path), sysctls ({path below /proc/sys: value}), cgroup (path)}, which the child parses.
    ``netns_fd``: the pod's network, -1: the host's. ``become``: what the child does, for rehearsals.
    """
    flags = (CLONE_NEWIPC if own.ipc else 0) | (CLONE_NEWPID if own.pid else 0) | (CLONE_NEWUTS if own.hostname else 0)
    parent = Parent()
    child = syscalls.clone3(flags)
    if child == 0:
        parent.run_child(lambda: (become or _become)(own, body, netns_fd, cgroups, parent))
    parent.started()
    try:
        parent.expect_exec(timeout_s=10.0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return child


def _become(own: Own, body: bytes, netns_fd: int, cgroups: Cgroups, parent: Parent) -> None:
    request = json.loads(body)
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cgroups.enter(request["cgroup"])
    if netns_fd >= 0:
        syscalls.setns(netns_fd, CLONE_NEWNET)
    if own.hostname:
        syscalls.sethostname(own.hostname)
    for path, value in request["sysctls"].items():
        _set_sysctl(path, value)
    keep_only(parent.child_fd, null_stdio=True)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    os.execve(request["program"], ["cri-holder"], {})


def _set_sysctl(path: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{path}", "w") as file:
            file.write(value)
    except OSError as error:
        name = path.replace("/", ".")
        raise InvalidArgument(f"the sysctl {name} can't be set to {value[:64]!r}: {error.strerror}") from error
