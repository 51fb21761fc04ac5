"""The holder: the process that keeps a pod's namespaces alive.

Forked by the monitor, it enters or makes the pod's namespaces and executes the program of ``kernel.holder``, with
SIGCHLD ignored, so that the kernel reaps its children, also where it is pid 1 of a shared pid namespace.

With a user namespace it is born into it, and makes all the others inside: whose namespaces they are decides who may
mount their /proc and /sys and set their addresses (user_namespaces(7)).
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
from cri_py.kernel import seccomp, syscalls, userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR_SET_PDEATHSIG,
)
from cri_py.kernel.holder import pause_filter
from cri_py.runtime import security
from cri_py.runtime.child import ChildError, Parent, keep_only
from cri_py.runtime.crossing import become_root

Become = Callable[["Own", bytes, int, Cgroups, Parent], None]


class Own(NamedTuple):
    """Which namespaces the pod has of its own; an empty hostname keeps the host's UTS namespace.

    ``uid_map`` and ``gid_map`` (``kernel.userns``), if not empty, are those of its user namespace; ``net``: the
    network is to be made inside it.
    """

    hostname: str
    ipc: bool
    pid: bool
    net: bool = False
    uid_map: bytes = b""
    gid_map: bytes = b""

    def flags(self) -> int:
        """For clone3."""
        return (
            (CLONE_NEWIPC if self.ipc else 0)
            | (CLONE_NEWPID | CLONE_NEWNS if self.pid else 0)
            | (CLONE_NEWUTS if self.hostname else 0)
            | (CLONE_NEWNET if self.net else 0)
            | (CLONE_NEWUSER if self.uid_map else 0)
        )


def spawn(own: Own, body: bytes, netns_fd: int, cgroups: Cgroups, become: Become | None = None) -> int:
    """Start the holder; returns its pid once it executes. Raises ChildError with the cause if it can't.

    ``body``: JSON {program (path), sysctls ({path below /proc/sys: value}), cgroup (path)}, which the child parses.
    ``netns_fd``: the pod's network, -1: the host's. ``become``: what the child does, for rehearsals.
    """
    parent = Parent()
    child = syscalls.clone3(own.flags())
    if child == 0:
        parent.run_child(lambda: (become or _become)(own, body, netns_fd, cgroups, parent))
    parent.started()
    try:
        if own.uid_map:
            _give_ids(own, child, body, parent)
        parent.expect_exec(timeout_s=10.0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    return child


def _become(own: Own, body: bytes, netns_fd: int, cgroups: Cgroups, parent: Parent) -> None:
    request = json.loads(body)
    cgroups.enter(request["cgroup"])
    program = _open(own, request["program"])
    if own.uid_map:
        if not parent.await_go():
            os._exit(0)
        become_root()
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if netns_fd >= 0:
        syscalls.setns(netns_fd, CLONE_NEWNET)
    if own.hostname:
        syscalls.sethostname(own.hostname)
    if not own.uid_map:
        _set_sysctls(request["sysctls"])
    keep_only(parent.child_fd, program, null_stdio=True)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    if own.pid:
        _leave_everything()
    if own.pid or own.uid_map:
        syscalls.execveat(program, ["cri-holder"], [])
    os.execve(request["program"], ["cri-holder"], {})


def _open(own: Own, program: str) -> int:
    """The program, opened before the rights to walk there go; where others can see the holder, on a mount of its own
    that is read-only."""
    if not own.pid:
        return os.open(program, os.O_PATH | os.O_CLOEXEC)
    image = syscalls.open_tree(AT_FDCWD, program, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    syscalls.mount_setattr(image, "", AT_EMPTY_PATH, attr_set=MOUNT_ATTR_RDONLY)
    return image


def _leave_everything() -> None:
    """Nothing around it and no rights. The program's file may not be read by its owner: so the kernel makes the process
    one that can't be traced or looked into without CAP_SYS_PTRACE (execve(2), prctl(2))."""
    syscalls.mount("", "/", "", MS_REC | MS_PRIVATE)
    context = syscalls.fsopen("tmpfs")
    for name, value in (("size", "0k"), ("nr_inodes", "1"), ("mode", "555")):
        syscalls.fsconfig(context, FSCONFIG_SET_STRING, name, value)
    syscalls.fsconfig(context, FSCONFIG_SET_FLAG, "ro")
    syscalls.fsconfig(context, FSCONFIG_CMD_CREATE)
    none = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    empty = syscalls.fsmount(context, none)
    os.close(context)
    syscalls.move_mount(empty, "/")  # which is there, whoever may walk where
    os.fchdir(empty)
    os.close(empty)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", MNT_DETACH)
    os.chdir("/")
    security.give_up_everything()
    seccomp.load_filter(pause_filter())


def _give_ids(own: Own, child: int, body: bytes, parent: Parent) -> None:
    """What the node's root alone can do for a holder in a user namespace: map its ids, and set its sysctls, of which
    not every kernel lets a namespace's own root change all."""
    userns.write_mappings(child, own.uid_map, own.gid_map)
    setter = Parent()
    if syscalls.clone3(0) == 0:
        setter.run_child(lambda: _set_sysctls_of(own, child, body))
    setter.started()
    said = setter.hear()
    setter.close()
    if said:
        raise ChildError(said[2].decode("utf-8", "surrogateescape"), said[1].decode())
    parent.go()


def _set_sysctls_of(own: Own, holder: int, body: bytes) -> None:
    sysctls = json.loads(body)["sysctls"]
    if joined := own.flags() & (CLONE_NEWIPC | CLONE_NEWNET):
        syscalls.setns(syscalls.pidfd_open(holder), joined)
        _set_sysctls(sysctls, int(own.uid_map.split()[1]))
    os._exit(0)


def _set_sysctls(sysctls: dict[str, str], owner: int = 0) -> None:
    """``owner``: the root of the namespaces' user namespace."""
    for path, value in sysctls.items():
        try:
            _write_sysctl(path, value, owner)
        except OSError as error:
            name = path.replace("/", ".")
            raise InvalidArgument(f"the sysctl {name} can't be set to {value[:64]!r}: {error.strerror}") from error


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
