"""A further process in a running container.

The dangerous one: it comes from outside with all rights and walks into a place that may be hostile. So it is not
dumpable from its birth (nobody in the container may trace it or read its memory, CVE-2016-9962), holds no descriptor
of the host (CVE-2024-21626), enters the pid namespace last, by a second fork, when everything else is behind it,
and executes nothing of ours that the container could reach through /proc (CVE-2019-5736).
"""

from __future__ import annotations

import os
import signal
from typing import Any

from cri_py.cgroups import ExecScope
from cri_py.kernel import syscalls
from cri_py.kernel.constants import (
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    CLONE_PARENT,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
)
from cri_py.runtime import container, security, users
from cri_py.runtime.child import Parent, keep_only

_SYNC_FD = 3
_ALL = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP


def start(request: dict[str, Any], pid: int, stdio: container.Stdio, scope: ExecScope) -> tuple[int, Parent]:
    """Fork the first of two processes; returns its pid and the pair.

    The pair brings {"pid": of the second}, which becomes the program and is a child of the monitor, then an error or
    the end of file that means execve. ``request``: process (OCI), user, seccomp; ``pid`` is the container's init.
    """
    parent = Parent()
    cgroup_fd = scope.directory_fd()
    try:
        flags = CLONE_INTO_CGROUP if cgroup_fd is not None else 0
        child = syscalls.clone3(flags, cgroup=cgroup_fd or 0)
        if child == 0:
            parent.run_child(lambda: _walk_in(request, pid, stdio, scope if cgroup_fd is None else None, parent))
    finally:
        if cgroup_fd is not None:
            os.close(cgroup_fd)
    parent.started()
    return child, parent


def _walk_in(
    request: dict[str, Any], pid: int, stdio: container.Stdio, scope: ExecScope | None, parent: Parent
) -> None:
    syscalls.prctl(PR_SET_DUMPABLE, 0)
    target = syscalls.pidfd_open(pid)
    secure = security.read_filter(request["seccomp"])
    if scope is not None:
        scope.enter()
    os.dup2(stdio.stdin, 0)
    os.dup2(stdio.stdout, 1)
    os.dup2(stdio.stderr, 2)
    target = _move(target, _SYNC_FD + 1)
    parent.move_child_end(_SYNC_FD)
    keep_only(_SYNC_FD, _SYNC_FD + 1)
    process = request["process"]
    security.set_oom_score(process.get("oomScoreAdj"))
    security.set_limits(process.get("rlimits", []))
    syscalls.setns(target, _ALL)
    uid, gid, groups, home = users.resolve(
        request["user"], container.read_image_file("/etc/passwd"), container.read_image_file("/etc/group")
    )
    syscalls.setns(target, CLONE_NEWPID)
    os.close(target)
    # CLONE_PARENT: the second one is the monitor's child, which reaps it and learns its exit code.
    second = syscalls.clone3(CLONE_PARENT, exit_signal=0)
    if second:
        parent.say({"pid": second})
        os._exit(0)
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    container.launch(process, security.Identity(uid, gid, groups), home, secure)


def _move(fd: int, place: int) -> int:
    if fd != place:
        os.dup2(fd, place, inheritable=False)
        os.close(fd)
    return place
