"""The holder: the process that keeps a pod's namespaces alive.

Forked by the monitor, it enters or makes the pod's namespaces and executes the program of ``kernel.holder``, with
SIGCHLD ignored, so that the kernel reaps its children, also where it is pid 1 of a shared pid namespace.

There the pod's containers see it, and one with CAP_SYS_PTRACE may look and walk through it as if it were its own: into
its root, into its program, into calls that no filter of a container allows. So that one has an empty root, a program
on a mount that nobody can write to, no capability, and a filter for the one call that it makes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from cri_py.cgroups import Cgroups
from cri_py.errors import InvalidArgument
from cri_py.kernel import seccomp, syscalls
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR_SET_PDEATHSIG,
)
from cri_py.kernel.holder import pause_filter
from cri_py.runtime import security
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
    flags = (CLONE_NEWIPC if own.ipc else 0) | (CLONE_NEWUTS if own.hostname else 0)
    flags |= CLONE_NEWPID | CLONE_NEWNS if own.pid else 0
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
    if own.pid:
        _execute_alone(request["program"])
    os.execve(request["program"], ["cri-holder"], {})


def _execute_alone(program: str) -> None:
    """Execute it with nothing around it and no rights. The program's file may not be read by its owner: so the kernel
    makes the process one that can't be traced or looked into without CAP_SYS_PTRACE (execve(2), prctl(2))."""
    image = syscalls.open_tree(AT_FDCWD, program, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    syscalls.mount_setattr(image, "", AT_EMPTY_PATH, attr_set=MOUNT_ATTR_RDONLY)
    syscalls.mount("", "/", "", MS_REC | MS_PRIVATE)
    empty = os.path.dirname(program)
    syscalls.mount(
        "tmpfs", empty, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=0k,nr_inodes=1,mode=555"
    )
    os.chdir(empty)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", MNT_DETACH)
    os.chdir("/")
    security.give_up_everything()
    seccomp.load_filter(pause_filter())
    syscalls.execveat(image, ["cri-holder"], [])


def _set_sysctl(path: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{path}", "w") as file:
            file.write(value)
    except OSError as error:
        name = path.replace("/", ".")
        raise InvalidArgument(f"the sysctl {name} can't be set to {value[:64]!r}: {error.strerror}") from error
