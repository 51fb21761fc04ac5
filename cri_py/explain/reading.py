"""Reads from the kernel what an explanation is made of: /proc of the container's first process and its cgroups.

Nothing is asked of the container and nothing in it is executed. Its /dev is looked at with every link resolved inside
its root. Pids and namespaces are compared as the caller sees them, who therefore has to be where the daemon is.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from cri_py.cgroups import limits
from cri_py.errors import FailedPrecondition, KernelError, PermissionDenied
from cri_py.explain.facts import Device, Member, Party, Seen, Subject
from cri_py.kernel import isolation, procfs, syscalls
from cri_py.kernel.constants import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS

Read = TypeVar("Read")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_NODES: Final = frozenset({"pts", "shm", "mqueue"})  # file systems of their own, with terminals and what not


class Gone(Exception):
    """The container's first process ended while it was looked at."""


def look(subject: Subject, members: Sequence[Member]) -> Seen:
    """Everything that the kernel shows of ``subject``, which runs. Raises Gone, PermissionDenied, FailedPrecondition.

    A pidfd is held meanwhile: if it shows no end afterwards, all that was read is of one and the same process.
    """
    try:
        pidfd = os.pidfd_open(subject.pid)
    except ProcessLookupError:
        raise Gone from None
    try:
        seen = _read_all(subject, members)
        if select.select([pidfd], [], [], 0)[0]:
            raise Gone
    except KernelError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        raise PermissionDenied(
            f"the kernel does not let us look at process {subject.pid}: {error}", hint="run it as root, on the node"
        ) from error
    finally:
        os.close(pidfd)
    return seen


def _read_all(subject: Subject, members: Sequence[Member]) -> Seen:
    pid = subject.pid
    memberships = _there(procfs.cgroup(pid))
    if not any(member.path == subject.cgroup for member in memberships):
        raise FailedPrecondition(
            f"process {pid} is not that of container {subject.id} here",
            hint="run it where the daemon runs: in its pid namespace, which has the same numbers",
        )
    unified = subject.resources.get("unified", {})
    return Seen(
        pid=pid,
        namespaces=_there(isolation.namespaces(pid)),
        parties=tuple(_parties(subject, members)),
        status=_there(procfs.status(pid)),
        node_filters=int((procfs.status(_node_pid(subject)) or {}).get("Seccomp_filters", "0")),
        uid_map=_there(isolation.id_map(pid, "uid_map")),
        gid_map=_there(isolation.id_map(pid, "gid_map")),
        limits=_there(isolation.limits(pid)),
        mounts=_mounts(pid),
        cgroups=limits.readings(memberships, procfs.mountinfo(), unified),
        devices=tuple(sorted(_devices(pid), key=lambda device: device.path)),
        oom_score_adj=_there(isolation.oom_score_adj(pid)),
        label=_there(isolation.security_label(pid)),
    )


def _there(read: Read | None) -> Read:
    if read is None:
        raise Gone
    return read


def _node_pid(subject: Subject) -> int:
    """A process that is in all of the node's namespaces: the pod's monitor, or this one where that is gone."""
    return subject.monitor_pid or os.getpid()


def _parties(subject: Subject, members: Sequence[Member]) -> Iterator[Party]:
    """The node first. Who has ended is left out: nothing is shared with it any more."""
    asked = [("node", _node_pid(subject), "", ""), ("holder", subject.holder_pid, "", "")]
    asked += [("container", member.pid, member.id, member.name) for member in members if member.id != subject.id]
    for kind, pid, container_id, name in asked:
        found = isolation.namespaces(pid) if pid else None
        if found is not None:
            yield Party(kind, pid, found, container_id, name)


def _mounts(pid: int) -> tuple[procfs.MountPoint, ...]:
    try:
        return procfs.mountinfo(pid)
    except KernelError as error:
        if error.errno in (*procfs.GONE, errno.EINVAL):  # EINVAL: a process that ends has no mount namespace
            raise Gone from error
        raise


def _devices(pid: int) -> list[Device]:
    """The device nodes of the container's /dev; none where it has no such directory."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise Gone from None
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = syscalls.openat2(root, "dev", flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise
    finally:
        os.close(root)
    return list(_nodes(fd, "/dev"))


def _nodes(fd: int, path: str) -> Iterator[Device]:
    """The nodes in the directory behind ``fd``, which is closed, and below it."""
    try:
        for name in os.listdir(fd):
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                below = os.open(name, _DIRECTORY, dir_fd=fd) if _may_hold_nodes(name, found) else -1
            except (FileNotFoundError, NotADirectoryError):
                continue  # the container works there meanwhile
            if below >= 0:
                yield from _nodes(below, f"{path}/{name}")
            elif stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
                kind = "c" if stat.S_ISCHR(found.st_mode) else "b"
                major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
                mode = stat.S_IMODE(found.st_mode)
                yield Device(f"{path}/{name}", kind, major, minor, mode, found.st_uid, found.st_gid)
    finally:
        os.close(fd)


def _may_hold_nodes(name: str, found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) and name not in _NOT_NODES
