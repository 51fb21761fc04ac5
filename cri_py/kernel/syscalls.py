"""System calls that Python's ``os`` lacks in 3.11, one thin function each, named as in section 2 of the manual.

Every function raises KernelError with errno, the call's name and its object. Each prototype is declared once. Imports
are few on purpose: this module is loaded into the process from which every monitor is forked.

``failpoint`` is the one hook for fault sweeps: a test sets it to a function that may raise instead of the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import TYPE_CHECKING

from cri_py.errors import KernelError
from cri_py.kernel.constants import AT_FDCWD, MOVE_MOUNT_F_EMPTY_PATH

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
# The same library without dropping the interpreter's lock: for calls after which two processes run this code.
_libc_locked = ctypes.PyDLL(None, use_errno=True)

_c = ctypes.c_char_p
_i = ctypes.c_int
_u = ctypes.c_ulong

_libc.unshare.argtypes = [_i]
_libc.setns.argtypes = [_i, _i]
_libc.mount.argtypes = [_c, _c, _c, _u, _c]
_libc.umount2.argtypes = [_c, _i]
_libc.prctl.argtypes = [_i, _u, _u, _u, _u]
_libc.sethostname.argtypes = [_c, ctypes.c_size_t]
_libc.socketpair.argtypes = [_i, _i, _i, ctypes.c_void_p]
_libc.syscall.restype = ctypes.c_long
_libc_locked.syscall.restype = ctypes.c_long

_AF_UNIX = 1
_SOCK_SEQPACKET = 5
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_SOCK_CLOEXEC = _SFD_CLOEXEC = 0o2000000
_SFD_NONBLOCK = 0o4000
_PAIR = (_i * 2)()

_NR_CLONE3 = 435  # since 5.1 the numbers are the same on every architecture
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_PIDFD_OPEN = 434
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442
_NR_PIDFD_SEND_SIGNAL = 424
_X86 = platform.machine() == "x86_64"
_NR_PIVOT_ROOT = 155 if _X86 else 41
_NR_CAPSET = 126 if _X86 else 91
_NR_CAPGET = 125 if _X86 else 90
_NR_SIGNALFD4 = 289 if _X86 else 74
_NR_RT_SIGPROCMASK = 14 if _X86 else 135
_SIG_SETMASK = 2
_NR_SECCOMP = 317 if _X86 else 277
_NR_KEYCTL = 250 if _X86 else 219
_KEYCTL_JOIN_SESSION_KEYRING = 1
_NR_RT_SIGACTION = 13 if _X86 else 134

_LINUX_CAPABILITY_VERSION_3 = 0x20080522

failpoint: Callable[[str, str], None] | None = None


def _fail(syscall: str, subject: str = "") -> KernelError:
    number = ctypes.get_errno()
    return KernelError(number, os.strerror(number), syscall, subject)


def _begin(syscall: str, subject: object) -> None:
    if failpoint is not None:
        failpoint(syscall, str(subject))


def _text(path: str | bytes | os.PathLike[str]) -> bytes:
    return os.fsencode(path)


# ------------------------------------------------------------- namespaces


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2)); affects the calling thread alone."""
    _begin("unshare", flags)
    if _libc.unshare(flags) != 0:
        raise _fail("unshare", hex(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespace behind ``fd``, or with a pidfd all of ``flags`` of that process (setns(2), Linux 5.8)."""
    _begin("setns", flags)
    if _libc.setns(fd, flags) != 0:
        raise _fail("setns", hex(flags))


def sethostname(name: str) -> None:
    """Set the hostname of the UTS namespace that the caller is in."""
    _begin("sethostname", name)
    encoded = _text(name)
    if _libc.sethostname(encoded, len(encoded)) != 0:
        raise _fail("sethostname", name)


# -------------------------------------------------------------- processes


def clone3(flags: int, *, cgroup: int = 0, exit_signal: int = 17) -> int:
    """Fork with namespaces, and with CLONE_INTO_CGROUP straight into the cgroup v2 directory ``cgroup`` (clone3(2)).

    Returns 0 in the child. The caller must be single-threaded: nothing that ``os.fork`` repairs for threads and no
    at-fork function runs, which is what makes it cheap and what lets the child be pid 1 at once.
    """
    _begin("clone3", flags)
    arguments = struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup)
    pid = int(_libc_locked.syscall(_NR_CLONE3, arguments, ctypes.c_size_t(len(arguments))))
    if pid < 0:
        raise _fail("clone3", hex(flags))
    return pid


def pidfd_open(pid: int) -> int:
    """A descriptor that means this process for ever, whoever gets its pid later (pidfd_open(2))."""
    _begin("pidfd_open", pid)
    fd = int(_libc.syscall(_NR_PIDFD_OPEN, pid, 0))
    if fd < 0:
        raise _fail("pidfd_open", str(pid))
    return fd


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """kill(2) without the race of a reused pid."""
    _begin("pidfd_send_signal", signal)
    if _libc.syscall(_NR_PIDFD_SEND_SIGNAL, pidfd, signal, None, 0) != 0:
        raise _fail("pidfd_send_signal", str(signal))


def reset_signal(number: int) -> None:
    """Let the signal do what it does by default (rt_sigaction(2)), behind the back of glibc, which keeps two of them
    from its callers, and of Python, whose way through enums takes ten times as long."""
    _begin("rt_sigaction", number)
    action = bytes(32)  # SIG_DFL, no flags, no restorer, an empty mask
    if _libc.syscall(_NR_RT_SIGACTION, number, action, None, ctypes.c_size_t(8)) != 0:
        raise _fail("rt_sigaction", str(number))


def unblock_signals() -> None:
    """Block none (rt_sigprocmask(2))."""
    _begin("rt_sigprocmask", "")
    if _libc.syscall(_NR_RT_SIGPROCMASK, _SIG_SETMASK, bytes(8), None, ctypes.c_size_t(8)) != 0:
        raise _fail("rt_sigprocmask")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """Close every descriptor from ``first`` to ``last``; CLOSE_RANGE_CLOEXEC (4) only marks them."""
    _begin("close_range", first)
    if _libc.syscall(_NR_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(flags)) != 0:
        raise _fail("close_range", str(first))


def prctl(option: int, value: int = 0, third: int = 0, fourth: int = 0, fifth: int = 0) -> int:
    """prctl(2) with number arguments; returns its result."""
    _begin("prctl", option)
    result = int(_libc.prctl(option, value, third, fourth, fifth))
    if result < 0:
        raise _fail("prctl", str(option))
    return result


def join_new_session_keyring() -> bool:
    """Leave the session keyring that this process has inherited for an empty one (keyctl(2)); False if the kernel has
    no keys."""
    _begin("keyctl", "")
    if _libc.syscall(_NR_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, 0) >= 0:
        return True
    if ctypes.get_errno() != errno.ENOSYS:
        raise _fail("keyctl")
    return False


def signalfd(number: int) -> int:
    """A descriptor that becomes readable when the signal, which must be blocked, is pending (signalfd(2)).

    Close-on-exec and non-blocking; a read takes the signal.
    """
    _begin("signalfd", number)
    mask = struct.pack("=Q", 1 << (number - 1))
    fd = int(_libc.syscall(_NR_SIGNALFD4, -1, mask, ctypes.c_size_t(len(mask)), _SFD_CLOEXEC | _SFD_NONBLOCK))
    if fd < 0:
        raise _fail("signalfd", str(number))
    return fd


def seqpacket_pair() -> tuple[int, int]:
    """Two connected SOCK_SEQPACKET sockets, close-on-exec (socketpair(2)), as plain descriptors.

    ``socket.socketpair`` dresses them in objects and their constants in enums: 300 kB that a forked process would no
    longer share with its siblings.
    """
    _begin("socketpair", "")
    if _libc.socketpair(_AF_UNIX, _SOCK_SEQPACKET | _SOCK_CLOEXEC, 0, _PAIR) != 0:
        raise _fail("socketpair")
    return _PAIR[0], _PAIR[1]


def seccomp(operation: int, flags: int, argument: object, subject: str) -> None:
    """seccomp(2); ``argument``: what ``ctypes.byref`` gives of a struct sock_fprog."""
    _begin("seccomp", subject)
    if _libc.syscall(_NR_SECCOMP, operation, ctypes.c_uint(flags), argument) != 0:
        raise _fail("seccomp", subject)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's capability sets, each a mask with one bit per capability (capset(2))."""
    _begin("capset", permitted)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    payload = struct.pack("=6I", *(s & 0xFFFFFFFF for s in sets), *(s >> 32 for s in sets))
    if _libc.syscall(_NR_CAPSET, header, payload) != 0:
        raise _fail("capset", hex(permitted))


def capget() -> tuple[int, int, int]:
    """This thread's effective, permitted and inheritable sets as masks (capget(2))."""
    _begin("capget", "")
    header = ctypes.create_string_buffer(struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0), 8)
    payload = ctypes.create_string_buffer(24)
    if _libc.syscall(_NR_CAPGET, header, payload) != 0:
        raise _fail("capget")
    words = struct.unpack("=6I", payload.raw)
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


# ----------------------------------------------------------------- mounts


def mount(
    source: str | bytes, target: str | bytes, fstype: str = "", flags: int = 0, options: str | bytes = ""
) -> None:
    """mount(2)."""
    subject = f"{os.fsdecode(source) or fstype} on {os.fsdecode(target)}"
    _begin("mount", subject)
    if _libc.mount(_text(source), _text(target), _text(fstype), flags, _text(options)) != 0:
        raise _fail("mount", subject)


def umount2(target: str | bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _begin("umount2", os.fsdecode(target))
    if _libc.umount2(_text(target), flags) != 0:
        raise _fail("umount2", os.fsdecode(target))


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root of the mount namespace (pivot_root(2))."""
    _begin("pivot_root", new_root)
    if _libc.syscall(_NR_PIVOT_ROOT, _text(new_root), _text(put_old)) != 0:
        raise _fail("pivot_root", new_root)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2): with OPEN_TREE_CLONE a detached copy of a mount."""
    _begin("open_tree", path)
    fd = int(_libc.syscall(_NR_OPEN_TREE, dirfd, _text(path), ctypes.c_uint(flags)))
    if fd < 0:
        raise _fail("open_tree", path)
    return fd


def move_mount(fd: int, target: str, *, target_dirfd: int = AT_FDCWD, flags: int = MOVE_MOUNT_F_EMPTY_PATH) -> None:
    """Attach the detached mount ``fd`` at ``target`` (move_mount(2))."""
    _begin("move_mount", target)
    if _libc.syscall(_NR_MOVE_MOUNT, fd, b"", target_dirfd, _text(target), ctypes.c_uint(flags)) != 0:
        raise _fail("move_mount", target)


def mount_setattr(dirfd: int, path: str, flags: int, *, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0,
                  userns_fd: int = 0) -> None:  # fmt: skip
    """Change a mount's attributes, with AT_RECURSIVE those of all below it too (mount_setattr(2))."""
    _begin("mount_setattr", path)
    attributes = struct.pack("=4Q", attr_set, attr_clr, propagation, userns_fd)
    size = ctypes.c_size_t(len(attributes))
    if _libc.syscall(_NR_MOUNT_SETATTR, dirfd, _text(path), ctypes.c_uint(flags), attributes, size) != 0:
        raise _fail("mount_setattr", path)


def fsopen(fstype: str) -> int:
    """A context in which a filesystem is configured before it is mounted (fsopen(2)); close-on-exec."""
    _begin("fsopen", fstype)
    fd = int(_libc.syscall(_NR_FSOPEN, _text(fstype), ctypes.c_uint(1)))
    if fd < 0:
        raise _fail("fsopen", fstype)
    return fd


def fsconfig(fd: int, command: int, key: str = "", value: str = "", aux: int = 0) -> None:
    """Set a parameter of a filesystem context, or create it (fsconfig(2))."""
    _begin("fsconfig", key)
    encoded_key = _text(key) if key else None
    encoded_value = _text(value) if value else None
    if _libc.syscall(_NR_FSCONFIG, fd, ctypes.c_uint(command), encoded_key, encoded_value, aux) != 0:
        raise _fail("fsconfig", f"{key}={value}")


def fsmount(fd: int, attributes: int = 0) -> int:
    """The detached mount of a configured filesystem (fsmount(2)); close-on-exec."""
    _begin("fsmount", "")
    result = int(_libc.syscall(_NR_FSMOUNT, fd, ctypes.c_uint(1), ctypes.c_uint(attributes)))
    if result < 0:
        raise _fail("fsmount")
    return result


# ------------------------------------------------------------------ files


def openat2(
    dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0, *, missing_ok: bool = False
) -> int:
    """Open below ``dirfd`` with the kernel's own rules on links and ``..`` (openat2(2)); always close-on-exec.

    With ``missing_ok`` -1 for what isn't there, which costs less than an exception.
    """
    _begin("openat2", os.fsdecode(path))
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, mode, resolve)
    fd = int(_libc.syscall(_NR_OPENAT2, dirfd, _text(path), how, ctypes.c_size_t(len(how))))
    if fd < 0:
        if missing_ok and ctypes.get_errno() in _MISSING:
            return -1
        raise _fail("openat2", os.fsdecode(path))
    return fd


def syncfs(fd: int) -> None:
    """Write the filesystem that holds ``fd`` to its disk (syncfs(2)): one call for any number of files."""
    _begin("syncfs", "")
    if _libc.syncfs(fd) != 0:
        raise _fail("syncfs")
