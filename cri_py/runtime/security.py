"""The last steps before execve: who the process is, what it may, and what is cut off from it.

The order is the kernel's: limits and the bounding set need the rights that the next steps give away; supplementary
groups before the gid, the gid before the uid; the filter as late as it can be loaded.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import Any, NamedTuple

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.kernel import capabilities, labels, procfs, seccomp, syscalls
from cri_py.kernel.constants import (
    LABEL_FILE,
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP,
    PR_SET_DUMPABLE,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
)

_LAST_CAPABILITY = procfs.last_capability()
# Python ignores two, the spawner three; 32 and 33 are left ignored by glibc's posix_spawn, which starts the spawner.
_CHANGED_SIGNALS = tuple(
    int(number)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, 32, 33)
)


class Identity(NamedTuple):
    """Who the process becomes."""

    uid: int
    gid: int
    groups: list[int]


class Filter(NamedTuple):
    """A compiled seccomp profile."""

    bpf: bytes
    flags: int


def read_filter(request: dict[str, Any] | None) -> Filter | None:
    """``request``: {"path": file of compiled BPF, "flags": seccomp(2) flags}; read while the host's files are seen."""
    if not request:
        return None
    return Filter(procfs.read(request["path"]), request["flags"])


def set_label(process: dict[str, Any], apparmor_file: str = LABEL_FILE, selinux_file: str = labels.EXEC_FILE) -> None:
    """Have the kernel put this process under its AppArmor profile (apparmor(7)) or its SELinux label (selinux(8)) at
    its next execve.

    To be called while /proc is the node's own: a container's may be anything (CVE-2019-16884). Raises
    FailedPrecondition if the profile is not loaded, InvalidArgument if the policy knows no such label.
    """
    if profile := process.get("apparmorProfile"):
        try:
            _write(apparmor_file, f"exec {profile}")
        except FileNotFoundError as error:
            raise FailedPrecondition(
                f"the AppArmor profile {profile!r} is not loaded on this node", hint="load it with apparmor_parser"
            ) from error
    if label := process.get("selinuxLabel"):
        try:
            _write(selinux_file, label)
        except OSError as error:
            raise InvalidArgument(
                f"the SELinux label {label!r} is refused: {error.strerror}",
                hint="ask for a user, role, type and level that the node's policy has and the daemon may give",
            ) from error


def leave_keys(process: dict[str, Any], file: str = labels.KEY_FILE) -> None:
    """Have a session keyring of one's own (session-keyring(7)): one that is inherited is the daemon's and, through it,
    every other container's. Under SELinux it gets the label of the process that is to use it."""
    if label := process.get("selinuxLabel"):
        _write(file, label)
    syscalls.join_new_session_keyring()


def _write(path: str, word: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, word.encode())
    finally:
        os.close(fd)


def set_oom_score(score: int | None) -> str:
    """Write oom_score_adj; returns a note instead of failing where root lacks CAP_SYS_RESOURCE to lower it."""
    if score is None:
        return ""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"%d" % score)
    except PermissionError:
        return f"oom_score_adj {score} is below our own and root lacks CAP_SYS_RESOURCE: left as it is"
    finally:
        os.close(fd)
    return ""


def set_limits(rlimits: list[dict[str, Any]]) -> list[str]:
    """Set resource limits (OCI process.rlimits); returns notes on those that need CAP_SYS_RESOURCE, which we lack."""
    notes = []
    for limit in rlimits:
        kind = getattr(resource, limit["type"])
        now = resource.getrlimit(kind)
        ours = now[1]
        soft, hard = limit["soft"], limit["hard"]
        if ours != resource.RLIM_INFINITY and hard > ours and not _may_raise():
            notes.append(f"{limit['type']} {hard} is above our own {ours} and root lacks CAP_SYS_RESOURCE")
            soft, hard = min(soft, ours), ours
        if (soft, hard) != now:
            resource.setrlimit(kind, (soft, hard))
    return notes


def _may_raise() -> bool:
    return bool(syscalls.capget()[0] >> capabilities.NUMBERS["CAP_SYS_RESOURCE"] & 1)


def become(identity: Identity, process: dict[str, Any], *, filtered: bool) -> None:
    """Give up all that the document does not grant, but for what loads a filter, which comes last.

    ``process`` is the OCI document's: capabilities, noNewPrivileges. ``filtered``: whether ``load`` will be called:
    without no_new_privs that needs CAP_SYS_ADMIN, which then stays until execve. That gives a program only what is
    inheritable, ambient, or its file's and in the bounding set (capabilities(7)), none of which it is. So a profile
    need not allow a single call of those made here. Raises KernelError.
    """
    sets = process.get("capabilities", {})
    held = syscalls.capget()[1]  # what we have to give: root in a sandboxed node may lack some
    permitted = capabilities.mask(sets.get("permitted", ())) & held
    loading = 0
    if process.get("noNewPrivileges"):
        syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)
    elif filtered:
        loading = capabilities.mask(("CAP_SYS_ADMIN",)) & held
    _drop_bounding(capabilities.mask(sets.get("bounding", ())) & held)
    syscalls.prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    # A change of ids makes the process dumpable again; others in its pid namespace could look into it until execve.
    syscalls.prctl(PR_SET_DUMPABLE, 0)
    effective = capabilities.mask(sets.get("effective", ())) & permitted
    inheritable = capabilities.mask(sets.get("inheritable", ())) & permitted
    syscalls.capset(effective | loading, permitted | loading, inheritable)
    _raise_ambient(sets.get("ambient", ()), inheritable)


def load(secure: Filter) -> None:
    """Filter this process from now on."""
    seccomp.load_filter(secure.bpf, secure.flags)


def _drop_bounding(kept: int) -> None:
    for number in range(_LAST_CAPABILITY + 1):
        if not kept >> number & 1:
            syscalls.prctl(PR_CAPBSET_DROP, number)


def _raise_ambient(names: list[str] | tuple[()], inheritable: int) -> None:
    """Those that we have to give; the document names only what the daemon has, unless it was written by hand."""
    syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for name in names:
        if inheritable >> capabilities.NUMBERS[name] & 1:
            syscalls.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capabilities.NUMBERS[name])


def restore_signals() -> None:
    """Undo what Python changed: ignored signals stay ignored over execve (signal(7)), and a program expects none."""
    for number in _CHANGED_SIGNALS:
        syscalls.reset_signal(number)
    syscalls.unblock_signals()
