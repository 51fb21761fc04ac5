"""A further process in a running container.

The dangerous one: it comes from outside with all rights and walks into a place that may be hostile. So it is not
dumpable from its birth (nobody in the container may trace it or read its memory, CVE-2016-9962), holds no descriptor
of the host (CVE-2024-21626), and executes nothing of ours that the container could reach through /proc
(CVE-2019-5736). It is born into the pid namespace rather than joining it by a second fork: see docs/adr/0004.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import struct
import termios
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
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    PR_SET_PDEATHSIG,
    TIOCGPTPEER,
    TIOCSPTLCK,
)
from cri_py.runtime import container, security
from cri_py.runtime.child import Parent, arrange, keep_only
from cri_py.runtime.crossing import become_root

_PTMX = os.makedev(5, 2)
_SYNC_FD = 3
_TARGET_FD = 4
_ALL = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP


WalkIn = Callable[[bytes, int, container.Stdio, ExecScope, Parent], None]


def start(
    body: bytes, pid: int, stdio: container.Stdio, scope: ExecScope, walk_in: WalkIn | None = None
) -> tuple[int, Parent]:
    """Fork the process that becomes the program; returns its pid and the pair.

    The pair brings an error, or the end of file that means execve; with a tty, which is meant by ``stdio`` of -1, first
    the tty's master. ``body``: JSON {process (OCI), user {uid, gid, groups, home}, seccomp, owner}, parsed by the
    child; ``owner``: [uid, gid] of the node that the user is in the pod's user namespace, null without one;
    ``pid`` is the container's init. The caller must not be dumpable. ``scope`` is made here, by the child where it can
    be (v1), and is the caller's to drop. ``walk_in``: what the child does, for rehearsals.
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
    tty = stdio.stdout < 0
    pairs = () if tty else tuple((fd, number) for number, fd in enumerate(stdio))
    arrange((parent.child_fd, _SYNC_FD), (target, _TARGET_FD), *pairs)
    parent.child_fd = _SYNC_FD
    keep_only(_SYNC_FD, _TARGET_FD, null_stdio=tty)
    process = request["process"]
    security.set_oom_score(process.get("oomScoreAdj"))
    security.set_limits(process.get("rlimits", []))
    user, owner = request["user"], request["owner"]
    if owner or user["uid"]:
        container.give_stdio(*(owner or (user["uid"], user["gid"])))
    try:
        syscalls.setns(_TARGET_FD, _ALL | (CLONE_NEWUSER if owner else 0))
    except KernelError as error:
        raise _ending(error) from error
    os.close(_TARGET_FD)
    if owner:
        become_root()
    os.setsid()
    if tty:
        master = _open_terminal()
        container.give_stdio(user["uid"], user["gid"])
        parent.say_ready(0, b"", master)
        os.close(master)
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    identity = security.Identity(user["uid"], user["gid"], user["groups"])
    launch = container.prepare(process, identity, user["home"], secure)
    container.execute(launch)


def _open_terminal() -> int:
    """A pty of the container's devpts: its slave becomes the stdio, its master is returned.

    The container may have put anything there, so what opens is looked at before it is used (CVE-2025-52565).
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
    master = os.open("/dev/pts/ptmx", flags | os.O_NONBLOCK)
    if os.fstat(master).st_rdev != _PTMX:
        raise FailedPrecondition("/dev/pts/ptmx of the container is no terminal multiplexer")
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, flags & ~os.O_NOFOLLOW)  # by the master, not by a name
    for number in (0, 1, 2):
        os.dup2(slave, number)
    os.close(slave)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    return master


def _ending(error: KernelError) -> KernelError | FailedPrecondition:
    """What the kernel says of a namespace whose first process is gone, or going, in words."""
    if error.errno in (errno.ESRCH, errno.ENOMEM):
        return FailedPrecondition("the container is ending")
    return error
