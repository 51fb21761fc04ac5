"""The holder: the process that keeps a pod's namespaces alive.

Forked by the monitor, it enters or makes the pod's namespaces and executes the program of ``kernel.holder``, with
SIGCHLD ignored, so that the kernel reaps its children, also where it is pid 1 of a shared pid namespace.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from cri_py.cgroups import Cgroups
from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUTS, PR_SET_PDEATHSIG
from cri_py.runtime.child import Parent, keep_only


def spawn(request: dict[str, Any], netns_fd: int, cgroups: Cgroups) -> int:
    """Start the holder; returns its pid once it executes. Raises ChildError with the cause if it can't.

    ``request``: program (path), hostname ("" keeps the host's UTS namespace), ipc and pid (bool: own namespace),
    sysctls ({path below /proc/sys: value}), cgroup (path). ``netns_fd``: the pod's network, -1: the host's.
    """
    flags = (CLONE_NEWIPC if request["ipc"] else 0) | (CLONE_NEWPID if request["pid"] else 0)
    flags |= CLONE_NEWUTS if request["hostname"] else 0
    parent = Parent()
    pid = syscalls.clone3(flags)
    if pid == 0:
        parent.run_child(lambda: _become(request, netns_fd, cgroups, parent))
    parent.started()
    try:
        parent.expect_exec(timeout_s=10.0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    return pid


def _become(request: dict[str, Any], netns_fd: int, cgroups: Cgroups, parent: Parent) -> None:
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cgroups.enter(request["cgroup"])
    if netns_fd >= 0:
        syscalls.setns(netns_fd, CLONE_NEWNET)
    if request["hostname"]:
        syscalls.sethostname(request["hostname"])
    for path, value in request["sysctls"].items():
        _set_sysctl(path, value)
    keep_only(parent.child_fd, null_stdio=True)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    os.execve(request["program"], ["cri-holder"], {})


def _set_sysctl(path: str, value: str) -> None:
    with open(f"/proc/sys/{path}", "w") as file:
        file.write(value)
