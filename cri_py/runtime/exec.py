"""A further process in a running container.

The dangerous one: it comes from outside with all rights and walks into a place that may be hostile. So it is not
dumpable from its birth (nobody in the container may trace it or read its memory, CVE-2016-9962), holds no descriptor
of the host (CVE-2024-21626), and executes nothing of ours that the container could reach through /proc
(CVE-2019-5736). It is born into the pid namespace rather than joining it by a second fork: see docs/adr/0004.
"""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable

from cri_py.cgroups import ExecScope
from cri_py.errors import FailedPrecondition, KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.constants import (
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    PR_SET_PDEATHSIG,
)
from cri_py.runtime import container, security
from cri_py.runtime.child import Parent, arrange, keep_only

_SYNC_FD = 3
_TARGET_FD = 4
_ALL = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP


WalkIn = Callable[[bytes, int, container.Stdio, ExecScope, Parent], None]


def start(
    body: bytes, pid: int, stdio: container.Stdio, scope: ExecScope, walk_in: WalkIn | None = None
) -> tuple[int, Parent]:
    """Fork the process that becomes the program; returns its pid and the pair.

    The pair brings an error, or the end of file that means execve. ``body``: JSON {process (OCI), user {uid, gid,
    groups, home}, seccomp}, parsed by the child; ``pid`` is the container's init. The caller must not be dumpable.
    ``scope`` is made here, by the child where it can be (v1), and is the caller's to drop. ``walk_in``: what the child
    does, for rehearsals.
    """
    parent = Parent()
    cgroup_fd = target = None
    try:
        target = syscalls.pidfd_open(pid)
        if scope.groups.born_into:
            scope.make()
            cgroup_fd = scope.directory_fd()
        flags = CLONE_INTO_CGROUP if cgroup_fd is not None else 0
        child = container.fork_beside(target, flags, cgroup_fd or 0)
        if child == 0:
            parent.run_child(lambda: (walk_in or _walk_in)(body, target, stdio, scope, parent))
    except KernelError as error:
        parent.started()
        parent.close()
        raise _ending(error) from error
    finally:
        for fd in (cgroup_fd, target):
            if fd is not None:
                os.close(fd)
    parent.started()
    return child, parent


def _walk_in(body: bytes, target: int, stdio: container.Stdio, scope: ExecScope, parent: Parent) -> None:
    request = json.loads(body)
    secure = security.read_filter(request["seccomp"])
    if not scope.groups.born_into:
        scope.make()
        scope.enter()
    arrange((parent.child_fd, _SYNC_FD), (target, _TARGET_FD), *((fd, number) for number, fd in enumerate(stdio)))
    parent.child_fd = _SYNC_FD
    keep_only(_SYNC_FD, _TARGET_FD)
    process = request["process"]
    security.set_oom_score(process.get("oomScoreAdj"))
    security.set_limits(process.get("rlimits", []))
    try:
        syscalls.setns(_TARGET_FD, _ALL)
    except KernelError as error:
        raise _ending(error) from error
    os.close(_TARGET_FD)
    os.setsid()
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    user = request["user"]
    identity = security.Identity(user["uid"], user["gid"], user["groups"])
    launch = container.prepare(process, identity, user["home"], secure)
    container.execute(launch)


def _ending(error: KernelError) -> KernelError | FailedPrecondition:
    """What the kernel says of a namespace whose first process is gone, or going, in words."""
    if error.errno in (errno.ESRCH, errno.ENOMEM):
        return FailedPrecondition("the container is ending")
    return error
