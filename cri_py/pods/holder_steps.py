"""The holder: the process that keeps a pod's namespaces alive, as the list of system calls that it makes before its
program (``kernel.holder``). Pure.

It is born into the namespaces that are the pod's own and joins the network that was made before it. SIGCHLD it ignores,
so that the kernel reaps its children, also where it is pid 1 of a shared pid namespace.

With a user namespace it is born into that too, and all the others are made inside: whose namespaces they are decides
who may mount their /proc and /sys and set their addresses (user_namespaces(7)).

With a shared pid namespace the pod's containers see it, and one with CAP_SYS_PTRACE may look and walk through it as if
it were its own: into its root, into its program, into calls that no filter of a container allows. So that one has an
empty root, a program on a mount that nobody can write to, no capability, and a filter for the one call that it makes.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cri_py.errors import CriError, Internal, InvalidArgument
from cri_py.kernel import userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    CLONE_PARENT,
    FSCONFIG_CMD_CREATE,
    FSCONFIG_SET_FLAG,
    FSCONFIG_SET_STRING,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_PRIVATE,
    MS_REC,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR_CAPBSET_DROP,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
)
from cri_py.kernel.holder import pause_filter
from cri_py.kernel.steps import Argument, Step, Then, Words, text, vector
from cri_py.model import SandboxConfig
from cri_py.pods import spec, spec_limits, spec_userns, step_parts

# Descriptors at the start: 0 to 2 are /dev/null, 3 takes reports, 4 is the pod's network or of no use.
_NETWORK_FD: Final = 4
_PROGRAM_FD: Final = 5
_FIRST_FREE: Final = 6
_CLOSE_ON_EXEC: Final = 1  # FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
_SYSCTL: Final = "the sysctl "
_IGNORED: Final = struct.pack("=4Q", 1, 0, 0, 0)  # SIG_IGN, in the kernel's struct sigaction


class Own(NamedTuple):
    """What the pod has of its own.

    ``hostname``: "" keeps the node's UTS namespace; ``ipc`` and ``pid``: namespaces; ``network``: one that was made
    before, and is given along; ``users``: a user namespace, in which ``new_network``, if wanted, is made. ``sysctls``:
    by their path below /proc/sys; in a user namespace they are the monitor's to set.
    """

    hostname: str
    ipc: bool
    pid: bool
    network: bool
    users: bool = False
    new_network: bool = False
    sysctls: Mapping[str, str] = {}

    def flags(self) -> int:
        """Of the namespaces that it is born into."""
        return (
            (CLONE_NEWIPC if self.ipc else 0)
            | (CLONE_NEWPID | CLONE_NEWNS if self.pid else 0)
            | (CLONE_NEWUTS if self.hostname else 0)
            | (CLONE_NEWNET if self.new_network else 0)
            | (CLONE_NEWUSER if self.users else 0)
        )


def own(config: SandboxConfig, hostname: str) -> Own:
    """What a sandbox has of its own. ``hostname``: the pod's."""
    namespaces = spec.sandbox_namespaces(config)
    users, network = spec_userns.has_own(config.namespaces), "network" in namespaces
    return Own(
        hostname=hostname if "uts" in namespaces else "",
        ipc="ipc" in namespaces,
        pid="pid" in namespaces,
        network=network and not users,
        users=users,
        new_network=network and users,
        sysctls=spec_limits.sandbox_sysctls(config),
    )


def users(own: Own, config: SandboxConfig) -> dict[str, Any]:
    """The fields of the request to ``hold`` beside the program: what only the monitor can do for a user namespace."""
    mappings = spec_userns.mappings(config.namespaces)
    maps = {name: userns.text_of(mappings.get(f"{name}Mappings", [])) for name in ("uid", "gid")}
    fields: dict[str, Any] = {f"{name}_map": text for name, text in maps.items()}
    joined = own.flags() & (CLONE_NEWIPC | CLONE_NEWNET)
    if own.users and own.sysctls and joined:
        fields |= {"sysctls": dict(own.sysctls), "joined": joined}
    return fields


def steps(own: Own, program: str, group_files: Sequence[str], last_capability: int) -> list[Step]:
    """From the first instruction to execve. ``program``: its path; ``group_files``: what a process writes itself into.

    The first process opens what it will need; the second is born into the namespaces and goes on. Raises
    InvalidArgument for a word that holds a NUL.
    """
    try:
        return [
            *_prepared(own, program, group_files),
            *_born(own),
            *_entered(group_files),
            *_settled(own),
            *(_alone(last_capability) if own.pid else ()),
            _execute(own, program),
        ]
    except ValueError as error:
        raise InvalidArgument(f"the pod's holder can't be started: {error}", hint="leave NULs out") from error


def refusal(step: Step, number: int) -> CriError:
    """The error for a step that failed with this errno."""
    told = step.told(number)
    return InvalidArgument(told) if told.startswith(_SYSCTL) else Internal(f"the pod's holder can't be started: {told}")


def _prepared(own: Own, program: str, group_files: Sequence[str]) -> Iterator[Step]:
    yield Step("prctl", (PR_SET_NAME, b"cri-holder\0"))
    yield step_parts.report_until_execve()
    yield step_parts.close_from(_PROGRAM_FD)  # what opens has a number that is known
    if own.pid:  # where others can see the holder, its program is on a mount of its own that is read-only
        tree = (AT_FDCWD, text(program), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        yield Step("open_tree", tree, words=Words(f"open_tree {program}"))
        attributes = struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr
        yield Step("mount_setattr", (_PROGRAM_FD, b"\0", AT_EMPTY_PATH, attributes, len(attributes)))
    else:
        yield step_parts.opened(text(program), os.O_PATH | os.O_CLOEXEC, program)
    for file in group_files:
        yield step_parts.opened(text(file), os.O_WRONLY | os.O_CLOEXEC, file)


def _born(own: Own) -> Iterator[Step]:
    """The child that goes on is a sibling, so that the monitor is its parent."""
    arguments = (own.flags() | CLONE_PARENT, *[0] * 10)
    yield Step("clone3", (arguments, 8 * len(arguments)), Then.FORK)
    yield Step("prctl", (PR_SET_PDEATHSIG, signal.SIGKILL))
    yield from step_parts.awaited()


def _entered(group_files: Sequence[str]) -> Iterator[Step]:
    """By the child, as its maker is waited for and the group may be frozen."""
    for number, file in enumerate(group_files, _FIRST_FREE):
        yield Step("write", (number, b"0", 1), words=Words(f"write 0 to {file}"))
    yield step_parts.close_from(_FIRST_FREE)


def _settled(own: Own) -> Iterator[Step]:
    if own.users:
        yield from step_parts.root_inside()
        yield Step("prctl", (PR_SET_PDEATHSIG, signal.SIGKILL))  # set anew: a change of ids clears it
    if own.network:
        yield Step("setns", (_NETWORK_FD, CLONE_NEWNET), words=Words("setns of the network"))
    yield Step("close", (_NETWORK_FD,))
    if own.hostname:
        name = os.fsencode(own.hostname)
        yield Step("sethostname", (name, len(name)), words=Words(f"set the hostname {own.hostname!r}"))
    if not own.users:
        for path, value in own.sysctls.items():
            yield from _sysctl(path, value)
    yield Step("setsid")
    yield Step("rt_sigaction", (int(signal.SIGCHLD), _IGNORED, 0, 8))
    yield Step("chdir", (b"/\0",))


def _sysctl(path: str, value: str) -> Iterator[Step]:
    words = Words(f"{_SYSCTL}{path.replace('/', '.')} can't be set to {value[:64]!r}")
    content = os.fsencode(value)
    yield Step("openat", (AT_FDCWD, text(f"/proc/sys/{path}"), os.O_WRONLY | os.O_CLOEXEC), words=words)
    yield Step("write", (_NETWORK_FD, content, len(content)), words=words)  # the lowest free descriptor
    yield Step("close", (_NETWORK_FD,))


def _alone(last_capability: int) -> Iterator[Step]:
    """Nothing around it and no rights. The program's file may not be read by its owner: so the kernel makes the process
    one that can't be traced or looked into without CAP_SYS_PTRACE (execve(2), prctl(2))."""
    yield from _in_an_empty_root()
    yield Step("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for number in range(last_capability + 1):
        yield Step("prctl", (PR_CAPBSET_DROP, number))
    yield Step("setgroups", (0, 0))
    yield step_parts.capability_sets(0, 0, 0)
    yield step_parts.filtered(step_parts.Filter(pause_filter(), 0))


def _in_an_empty_root() -> Iterator[Step]:
    context, empty = _NETWORK_FD, _FIRST_FREE  # the lowest free descriptors
    yield Step("mount", (0, b"/\0", 0, MS_REC | MS_PRIVATE, 0), words=Words("make all mounts private"))
    yield Step("fsopen", (b"tmpfs\0", _CLOSE_ON_EXEC))
    for name, value in ((b"size\0", b"0k\0"), (b"nr_inodes\0", b"1\0"), (b"mode\0", b"555\0")):
        yield Step("fsconfig", (context, FSCONFIG_SET_STRING, name, value, 0))
    yield Step("fsconfig", (context, FSCONFIG_SET_FLAG, b"ro\0", 0, 0))
    yield Step("fsconfig", (context, FSCONFIG_CMD_CREATE, 0, 0, 0))
    none = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    yield Step("fsmount", (context, _CLOSE_ON_EXEC, none))
    yield Step("close", (context,))
    over_all: tuple[Argument, ...] = (empty, b"\0", AT_FDCWD, b"/\0", MOVE_MOUNT_F_EMPTY_PATH)
    yield Step("move_mount", over_all)  # "/" is there, whoever may walk where
    yield Step("fchdir", (empty,))
    yield Step("close", (empty,))
    yield Step("pivot_root", (b".\0", b".\0"))
    yield Step("umount2", (b".\0", MNT_DETACH))
    yield Step("chdir", (b"/\0",))


def _execute(own: Own, program: str) -> Step:
    """By its descriptor where its path leads nowhere, or where one may not walk it any more."""
    arguments, environment = vector([b"cri-holder\0"]), vector([])
    words = Words(f"execute {program}")
    if own.pid or own.users:
        return Step("execveat", (_PROGRAM_FD, b"\0", arguments, environment, AT_EMPTY_PATH), words=words)
    return Step("execve", (text(program), arguments, environment), words=words)
