"""Network namespaces without a fork: a thread of its own leaves for a new one, pins it with a bind mount, and ends.

A pin is a file that the namespace's nsfs file is mounted on, as ``ip netns`` has them: the namespace lives for as long
as the pin, a socket or a process holds it. See namespaces(7), ip-netns(8).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from cri_py.errors import KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWNET, MNT_DETACH, MS_BIND

T = TypeVar("T")

# What every pod may do in its own namespace: listen on port 80 and ping, as any user (containerd's defaults too).
SYSCTLS: Final = (
    ("net/ipv4/ip_unprivileged_port_start", b"0"),
    ("net/ipv4/ping_group_range", b"0 2147483647"),
)


async def on_own_thread(work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Run ``work`` on a thread that ends with it, so that it may change its namespaces.

    ``work`` is a few milliseconds of system calls. When cancelled this waits for it, undoes what it made, and then
    raises: nothing is left behind that nobody knows of.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def body() -> None:
        try:
            made = work()
        except BaseException as error:
            loop.call_soon_threadsafe(outcome.set_exception, error)
        else:
            loop.call_soon_threadsafe(outcome.set_result, made)

    threading.Thread(target=body, name="netns").start()
    try:
        return await asyncio.shield(outcome)
    except asyncio.CancelledError:
        while not outcome.done():
            with contextlib.suppress(asyncio.CancelledError):  # raised again below
                await asyncio.wait({outcome})
        if outcome.exception() is None:
            undo(outcome.result())
        raise


def enter_new(path: str) -> None:
    """Move the calling thread into a new network namespace, pinned at ``path``; its lo is still down.

    Only on a thread that ends soon: everything that it opens from now on belongs to that namespace. Raises
    KernelError, with EEXIST if something is pinned at ``path`` already; then nothing was made.
    """
    _pin(path, lambda: syscalls.unshare(CLONE_NEWNET))


def enter_that_of(pid: int, path: str) -> None:
    """The same with the network namespace of a process, which was made in the user namespace that it belongs to."""

    def join() -> None:
        fd = syscalls.pidfd_open(pid)
        try:
            syscalls.setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)

    _pin(path, join)


def _pin(path: str, enter: Callable[[], None]) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO), "open", path) from error
    try:
        enter()
        for name, setting in SYSCTLS:
            write_sysctl(name, setting)
        syscalls.mount("/proc/thread-self/ns/net", path, "", MS_BIND)
    except BaseException:
        unpin(path)
        raise


def write_sysctl(name: str, setting: bytes) -> None:
    """Write a ``net/…`` sysctl of the namespace that the calling thread is in. Raises KernelError."""
    path = f"/proc/sys/{name}"
    if syscalls.failpoint is not None:
        syscalls.failpoint("write", path)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, setting)
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO), "write", path) from error


def unpin(path: str) -> bool:
    """Let go of the namespace at ``path``, which ends with its last process, and its veth with it.

    Deleting the veth by netlink would wait 29 ms for what the kernel does by itself later. Returns whether anything
    was there. Raises KernelError.
    """
    try:
        syscalls.umount2(path, MNT_DETACH)
    except KernelError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT}:  # EINVAL: a file that nothing is mounted on
            raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO), "unlink", path) from error
    return True


def is_pinned(path: str) -> bool:
    """Whether a namespace is mounted at ``path``: a reboot, or a crash halfway, leaves at most an empty file."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return False


def pins(directory: str) -> list[str]:
    """The names of all pins in a directory, also of those that nothing is mounted on; [] if it does not exist."""
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
