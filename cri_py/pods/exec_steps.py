"""A further process in a running container, as the list of system calls that it makes before its program. Pure.

The dangerous one: it comes from outside with all rights and walks into a place that may be hostile. So it is not
dumpable from its first step (nobody in the container may trace it or read its memory, CVE-2016-9962, but who has
CAP_SYS_PTRACE in the node's user namespace, see docs/adr/0008), holds no descriptor of the host when it enters
(CVE-2024-21626), and nothing that it executes on its way is within the container's reach (CVE-2019-5736): this program
lies in memory alone.

The order is the kernel's: the pid namespace is joined by a child, so the program forks; what needs /proc or the cgroup
filesystem of the node comes before the mount namespace is joined, limits and the bounding set before the rights go that
they need, supplementary groups before the gid, the gid before the uid, the filter as late as it can be loaded. And the
fork comes after the mount namespace: from its birth on the container sees the child, and one with CAP_SYS_PTRACE looks
through /proc/PID/root and /proc/PID/cwd, which must not be the node's.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from cri_py.cgroups import ExecScope
from cri_py.errors import CriError, FailedPrecondition, InvalidArgument, StartError
from cri_py.kernel import capabilities, labels, userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_INTO_CGROUP,
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    CLONE_PARENT,
    LABEL_FILE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    TIOCGPTPEER,
    TIOCSPTLCK,
)
from cri_py.kernel.steps import REPORT_FD, SCRATCH, Argument, Step, Then, Words, text, vector
from cri_py.pods import step_parts
from cri_py.pods.step_parts import Filter

# Descriptors at the start: 0 to 2 are the stdio, 3 takes reports, 4 is a pidfd of the container's init.
TARGET_FD: Final = 4
_FIRST_FREE: Final = 5
_ALL: Final = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
_ENDED: Final = "the container is ending"
_ENDING: Final = {errno.ESRCH: _ENDED, errno.ENOMEM: _ENDED}  # of a namespace whose first process is gone, or going
_GONE: Final = {errno.ENODEV: _ENDED}  # of a group that has been removed
_PTMX_IN_STATX: Final = 5 | 2 << 32  # stx_rdev_major and stx_rdev_minor
_STX_RDEV: Final = 0x80
_STX_TYPE: Final = 1
_TIOCSCTTY: Final = 0x540E
_F_GETFD: Final = 1
_JOIN_SESSION_KEYRING: Final = 1
_AT_EACCESS: Final = 0x200
# What it takes to become the user and to drop all else, and to give a terminal to its user.
_NEEDED_INSIDE: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_CHOWN")
# setns by a pidfd asks whether its process may be looked into, which is another user's, it may be (setns(2)).
_NEEDED_TO_JOIN: Final = ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
_SIG_SETMASK: Final = 2
# What the spawner ignores or glibc's posix_spawn leaves ignored would be ignored by the program too (signal(7)).
_CHANGED_SIGNALS: Final = tuple(
    int(number)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, 32, 33)
)


class Rights(NamedTuple):
    """What this runtime has to give: its permitted capabilities, the number of the last one that there is, and its hard
    limits by RLIMIT_ number."""

    held: int
    last_capability: int
    limits: Mapping[int, int]


class Identity(NamedTuple):
    """Who the process becomes."""

    uid: int
    gid: int
    groups: Sequence[int]
    home: str


class Template(NamedTuple):
    """What all execs in a container have in common; ``template`` makes it."""

    limited: tuple[Step, ...]  # done outside of the container
    settled: tuple[Step, ...]  # done inside, up to the filter
    environment: tuple[Argument, ...]  # envp
    path: str  # PATH of that
    own_users: bool = False  # whether the container has a user namespace
    owner: tuple[int, int] = (0, 0)  # (uid, gid) on the node
    uid: int = 0  # in the container
    labelled: tuple[Step, ...] = ()  # done outside of the container before anything is limited
    filtered: tuple[Step, ...] = ()  # the last before execve
    kept: int = 0  # capabilities that it has from its birth in the container on, 0 for all
    joining: int = 0  # those that it takes beside them to join a cgroup namespace afterwards


def template(
    process: Mapping[str, Any],
    identity: Identity,
    secure: Filter | None,
    rights: Rights,
    linux: Mapping[str, Any] = MappingProxyType({}),
) -> Template:
    """``process``: OCI's, of the container, but for its command; ``linux``: what has its user namespace's mappings and
    the ``task_files`` of its class of Intel's resource control.

    Raises InvalidArgument for a word that holds a NUL.
    """
    uids, gids = linux.get("uidMappings", []), linux.get("gidMappings", [])
    if uids:  # there a process has every capability, whatever it had outside
        rights = rights._replace(held=(1 << (rights.last_capability + 1)) - 1)
    environment = _environment(process["env"], identity.home)
    try:
        return Template(
            tuple(_limited(process, rights.limits)),
            (*_reduced(process, identity, secure, rights), *_settled(process)),
            vector([text(os.fsdecode(key + b"=" + value)) for key, value in environment.items()]),
            os.fsdecode(environment.get(b"PATH", b"")),
            bool(uids),
            (userns.outside(uids, identity.uid), userns.outside(gids, identity.gid)),
            identity.uid,
            tuple(_labelled(process, linux.get("task_files", ()))),
            (step_parts.filtered(secure),) if secure else (),
            0 if uids else _kept(process, secure, rights),
            capabilities.mask(_NEEDED_TO_JOIN) & rights.held,
        )
    except ValueError as error:
        raise InvalidArgument(f"nothing can be executed in the container: {error}", hint="leave NULs out") from error


def steps(common: Template, command: Sequence[str], scope: ExecScope, *, terminal: bool = False) -> list[Step]:
    """From the first instruction to execve. ``terminal`` asks for a pty of the container's, whose master is sent by the
    report's socket. ``scope`` is made by the process.

    Raises InvalidArgument for a word that holds a NUL.
    """
    try:
        tries = [*_tries(command, common)]
    except ValueError as error:
        raise InvalidArgument(f"the command can't be executed: {error}", hint="leave NULs out") from error
    outside = [*_begun(scope), *common.labelled, *_opened(scope), *common.limited, *_born_inside(scope, common)]
    looked_up = _looked_up(command[0], common) if common.filtered else ()
    inside = [*_at_home(common, terminal=terminal), *common.settled, *looked_up, *common.filtered]
    return [*outside, *inside, *tries]


def refusal(step: Step, number: int) -> CriError:
    """The error for a step that failed with this errno."""
    told = step.told(number)
    return FailedPrecondition(told) if told == _ENDED else StartError(told)


def _begun(scope: ExecScope) -> Iterator[Step]:
    yield Step("prctl", (PR_SET_DUMPABLE, 0))
    yield Step("prctl", (PR_SET_NAME, b"cri-exec\0"))
    yield step_parts.report_until_execve()
    yield step_parts.close_from(_FIRST_FREE)  # what opens has a number that is known
    yield Step("mkdirat", (AT_FDCWD, text(scope.directory), 0o755), words=Words(f"mkdir {scope.directory}"))


def _opened(scope: ExecScope) -> Iterator[Step]:
    """What the child enters its group by, from FIRST_FREE on; the node's cgroup filesystem can't be seen later.

    It is the child that enters v1's groups: they may be frozen, and its maker is waited for.
    """
    if scope.groups.born_into:
        opened = (AT_FDCWD, text(scope.directory), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        yield Step("open_tree", opened, words=Words(f"open_tree {scope.directory}"))
        return
    for file in scope.enter_files:
        yield step_parts.opened(text(file), os.O_WRONLY | os.O_CLOEXEC, file)


def _born_inside(scope: ExecScope, common: Template) -> Iterator[Step]:
    """The child that goes on is a sibling, so that the monitor is its parent; on v2 it is born into its group.

    That group's descriptor, which it has for a moment, is of a mount that nothing else belongs to: ``..`` ends there.
    And it has few capabilities: one with CAP_SYS_PTRACE can make it do what it could not do itself.
    """
    flags, group, later = CLONE_PARENT, 0, 0
    if scope.groups.born_into:
        later = CLONE_NEWCGROUP  # from inside of which nobody could be born into a group from outside
        flags, group = flags | CLONE_INTO_CGROUP, _FIRST_FREE
    yield Step("setns", (TARGET_FD, CLONE_NEWPID), words=Words("setns of the pid namespace", _ENDING))
    yield Step("setns", (TARGET_FD, _ALL & ~later), words=Words("setns", _ENDING))
    if common.kept:
        kept = common.kept | (common.joining if later else 0)
        yield step_parts.capability_sets(kept, kept, 0)
    clone_arguments = (flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, group)
    size = 8 * len(clone_arguments)
    yield Step("clone3", (clone_arguments, size), Then.FORK, Words("clone3", _ENDING))
    let_go = step_parts.close_from(_FIRST_FREE)
    if scope.groups.born_into:
        yield let_go
    yield Step("prctl", (PR_SET_PDEATHSIG, signal.SIGKILL))
    yield from step_parts.awaited()
    if not scope.groups.born_into:
        for number, file in enumerate(scope.enter_files, _FIRST_FREE):
            yield Step("write", (number, b"0", 1), words=Words(f"write 0 to {file}", _GONE))
        yield let_go
    if later:
        yield Step("setns", (TARGET_FD, later), words=Words("setns of the cgroup namespace", _ENDING))


def _written(file: str, value: bytes, then: Then = Then.MUST) -> Iterator[Step]:
    """One write(2); the file gets the lowest free descriptor."""
    yield step_parts.opened(text(file), os.O_WRONLY | os.O_CLOEXEC, file)
    yield Step("write", (_FIRST_FREE, value, len(value)), then, Words(f"write {value.decode()} to {file}"))
    yield Step("close", (_FIRST_FREE,))


def _labelled(process: Mapping[str, Any], files: Sequence[str]) -> Iterator[Step]:
    """What is written to files of the node, before a limit might forbid to open them.

    ``files`` take a process of the container's: of its class of Intel's resource control.
    """
    score = process.get("oomScoreAdj")
    if score is not None:
        yield from _written("/proc/self/oom_score_adj", b"%d" % score, Then.MAY)
    for file in files:
        yield from _written(file, b"0")
    if profile := process.get("apparmorProfile"):  # holds from execve on; a container's /proc may be anything
        yield from _written(LABEL_FILE, f"exec {profile}".encode())
    if label := process.get("selinuxLabel"):
        yield from _written(labels.EXEC_FILE, label.encode())
        yield from _written(labels.KEY_FILE, label.encode())
    # The inherited one is the daemon's; some kernels have none.
    yield Step("keyctl", (_JOIN_SESSION_KEYRING, 0), Then.MAY)


def _limited(process: Mapping[str, Any], ours: Mapping[int, int]) -> Iterator[Step]:
    """Root may lack CAP_SYS_RESOURCE: what it can't grant is left as it is, as at the container's own start."""
    for limit in process.get("rlimits", ()):
        kind = getattr(resource, limit["type"])
        for soft, hard in _limits_to_try(ours[kind], limit["soft"], limit["hard"]):
            yield Step("prlimit64", (0, kind, (soft, hard), 0), Then.MAY)


def _limits_to_try(ours: int, soft: int, hard: int) -> Iterator[tuple[int, int]]:
    """First as much as may be without the capability, then all."""
    if ours != resource.RLIM_INFINITY and hard > ours:
        yield min(soft, ours), ours
    yield soft, hard


def _at_home(common: Template, *, terminal: bool) -> Iterator[Step]:
    if common.own_users:
        yield Step("setns", (TARGET_FD, CLONE_NEWUSER), words=Words("setns of the user namespace", _ENDING))
    yield Step("close", (TARGET_FD,))
    if common.own_users:
        yield from step_parts.root_inside()
    yield Step("setsid")
    if terminal:
        yield from _terminal()
        if common.uid:
            yield Step("fchown", (0, common.uid, -1))  # the group is tty, which may write to it


def _terminal() -> Iterator[Step]:
    """A pty of the container's devpts: its slave becomes the stdio, its master is sent.

    The container may have put anything there, so what opens is looked at before it is used (CVE-2025-52565).
    """
    master, slave = TARGET_FD, _FIRST_FREE  # the lowest free descriptors
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    yield step_parts.opened(b"/dev/pts/ptmx\0", flags | os.O_NOFOLLOW | os.O_NONBLOCK, "/dev/pts/ptmx")
    yield Step("statx", (master, b"\0", AT_EMPTY_PATH, _STX_TYPE, SCRATCH))
    no_terminal = Words("/dev/pts/ptmx of the container is no terminal multiplexer", cause=False)
    yield Step("", (SCRATCH + _STX_RDEV, -1, _PTMX_IN_STATX, errno.EINVAL), Then.EXPECT, no_terminal)
    yield Step("ioctl", (master, TIOCSPTLCK, struct.pack("i", 0)), words=Words("unlock the pty"))
    yield Step("ioctl", (master, TIOCGPTPEER, flags), words=Words("open the pty's slave"))  # by the master, no name
    for number in (0, 1, 2):
        yield Step("dup3", (slave, number, 0))
    yield Step("close", (slave,))
    yield Step("ioctl", (0, _TIOCSCTTY, 0), words=Words("take the controlling terminal"))
    yield Step("sendmsg", (REPORT_FD, _message(b"ready\0000\0", master), 0))
    yield Step("close", (master,))
    yield Step("read", (REPORT_FD, SCRATCH, 1))  # until the terminal has its size: a program asks for it once


def _message(packet: bytes, fd: int) -> tuple[Argument, ...]:
    """struct msghdr with one descriptor beside the packet (cmsg(3), unix(7))."""
    control = struct.pack("=QiiiI", 20, socket.SOL_SOCKET, socket.SCM_RIGHTS, fd, 0)
    return (0, 0, (packet, len(packet)), 1, control, len(control), 0)


def _reduced(process: Mapping[str, Any], identity: Identity, secure: Filter | None, rights: Rights) -> Iterator[Step]:
    """Give up all that the document does not grant, but for what loads the filter, which comes last.

    Without no_new_privs that is CAP_SYS_ADMIN. execve takes it away: it is neither inheritable nor ambient, nor in the
    bounding set (capabilities(7)).
    """
    sets = process.get("capabilities", {})
    permitted, loading = _granted(process, secure, rights)
    yield Step("umask", (0o022,))
    if process.get("noNewPrivileges"):
        yield Step("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    bounding = capabilities.mask(sets.get("bounding", ())) & rights.held
    for number in range(rights.last_capability + 1):
        if not bounding >> number & 1:
            yield Step("prctl", (PR_CAPBSET_DROP, number))
    yield Step("prctl", (PR_SET_KEEPCAPS, 1))
    yield Step("setgroups", (len(identity.groups), struct.pack(f"={len(identity.groups)}I", *identity.groups)))
    yield Step("setresgid", (identity.gid,) * 3)
    yield Step("setresuid", (identity.uid,) * 3)
    # A change of ids makes the process dumpable again; others in its pid namespace could look into it until execve.
    yield Step("prctl", (PR_SET_DUMPABLE, 0))
    effective = capabilities.mask(sets.get("effective", ())) & permitted
    inheritable = capabilities.mask(sets.get("inheritable", ())) & permitted
    yield step_parts.capability_sets(effective | loading, permitted | loading, inheritable)
    yield Step("prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    for name in sets.get("ambient", ()):
        number = capabilities.NUMBERS[name]
        if inheritable >> number & 1:
            yield Step("prctl", (PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number, 0, 0))


def _kept(process: Mapping[str, Any], secure: Filter | None, rights: Rights) -> int:
    """All that it needs once the container sees it, and what the container may have."""
    permitted, loading = _granted(process, secure, rights)
    return permitted | loading | capabilities.mask(_NEEDED_INSIDE) & rights.held


def _granted(process: Mapping[str, Any], secure: Filter | None, rights: Rights) -> tuple[int, int]:
    """The permitted capabilities, and what else loads the filter."""
    permitted = capabilities.mask(process.get("capabilities", {}).get("permitted", ())) & rights.held
    admin = capabilities.mask(("CAP_SYS_ADMIN",)) & rights.held
    return permitted, admin if secure and not process.get("noNewPrivileges") else 0


def _settled(process: Mapping[str, Any]) -> Iterator[Step]:
    directory = process["cwd"]
    entered = Words(f"the working directory {directory!r} can't be entered")
    yield Step("chdir", (text(directory),), words=entered)  # as the user: what it may not enter it must not work in
    # getcwd(2) tells a directory that can't be reached from the root: one behind a descriptor of the host's
    # (CVE-2024-21626).
    outside = Words(f"the working directory {directory!r} lies outside of the container", cause=False)
    yield Step("getcwd", (SCRATCH, 4096), words=outside)
    yield Step("", (SCRATCH, 0xFF, ord("/"), errno.ENOENT), Then.EXPECT, outside)
    for number in _CHANGED_SIGNALS:
        yield Step("rt_sigaction", (number, bytes(32), 0, 8))
    yield Step("rt_sigprocmask", (_SIG_SETMASK, bytes(8), 0, 8))
    # Set anew: a change of the user clears it. A monitor's death takes its containers along.
    yield Step("prctl", (PR_SET_PDEATHSIG, signal.SIGKILL))


def _looked_up(name: str, common: Template) -> Iterator[Step]:
    """What execve would say of a program that is not there, said before a filter may forbid to say anything."""
    if "/" in name:
        yield Step("faccessat2", (AT_FDCWD, text(name), os.X_OK, _AT_EACCESS), words=Words(f'exec: "{name}"'))
        return
    for place in filter(None, common.path.split(":")):
        yield Step("openat", (AT_FDCWD, text(f"{place}/{name}"), os.O_PATH | os.O_CLOEXEC), Then.MAY)
    missing = {errno.EBADF: f'exec: "{name}": executable file not found in $PATH'}
    yield Step("fcntl", (TARGET_FD, _F_GETFD), words=Words(f'exec: "{name}"', missing))  # the first that was found


def _environment(pairs: Sequence[str], home: str) -> dict[bytes, bytes]:
    """The document's environment as bytes, which is what it is; HOME from passwd where it names none."""
    environment = dict(os.fsencode(pair).partition(b"=")[::2] for pair in pairs)
    environment.setdefault(b"HOME", os.fsencode(home))
    return environment


def _tries(command: Sequence[str], common: Template) -> Iterator[Step]:
    """execve, looked up in PATH where the name has no slash, as execvp(3) does."""
    name = command[0]
    candidates, missing = [name], {}
    if "/" not in name:
        candidates = [f"{place}/{name}" for place in common.path.split(":") if place]
        missing = {errno.ENOENT: f'exec: "{name}": executable file not found in $PATH'}
    argv = vector([text(word) for word in command])
    for candidate in candidates:
        yield Step("execve", (text(candidate), argv, common.environment), Then.TRY)
    yield Step("", (), Then.GIVE_UP, Words(f'exec: "{name}"', missing))
