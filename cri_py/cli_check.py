"""``cri-py check``: what this machine has of what cri_py needs, by trying it, each lack with its remedy."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import Final

from cri_py.cgroups import detect
from cri_py.config import Config
from cri_py.errors import CriError, KernelError
from cri_py.kernel import capabilities, constants, procfs, seccomp, steps, syscalls
from cri_py.pods import cgroup_drivers
from cri_py.rpc import listen


class Verdict(Enum):
    OK = "ok"
    WORSE = "worse without"  # runs, but something is left out
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str  # "overlayfs"
    verdict: Verdict
    found: str  # what there is
    remedy: str = ""  # what to do about it, "" if nothing is


_NAMESPACES: Final = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "user")
_FILESYSTEMS: Final = ("overlay", "tmpfs", "proc", "sysfs", "devpts", "mqueue")
_CONTROLLERS: Final = ("memory", "cpu", "cpuset", "pids", "devices", "freezer")
_OPTIONAL_CONTROLLERS: Final = ("hugetlb", "blkio")
_IN_V2: Final = frozenset({"devices", "freezer"})  # not controllers there: a BPF program, and cgroup.freeze
_BUILT_BY: Final = MappingProxyType(
    {
        "memory": "CONFIG_MEMCG",
        "cpu": "CONFIG_CGROUP_SCHED",
        "cpuset": "CONFIG_CPUSETS",
        "pids": "CONFIG_CGROUP_PIDS",
        "devices": "CONFIG_CGROUP_DEVICE",
        "freezer": "CONFIG_CGROUP_FREEZER",
    }
)
_NEEDED_CAPABILITIES: Final = capabilities.mask(
    (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_ADMIN", "NET_RAW", "SETFCAP", "SETGID"),
        *("SETPCAP", "SETUID", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"),
    )
)
# What overlayfs refuses as the place of its upper directory (fs/overlayfs/super.c: remote, or lacking d_type, xattrs).
_UNFIT_FILESYSTEMS: Final = frozenset({"overlay", "nfs", "nfs4", "9p", "virtiofs", "cifs", "smb3", "vfat", "exfat"})
_CLONE_FS: Final = 0x200


def findings(config: Config) -> list[Finding]:
    """Everything that was looked at, in the order in which it is printed."""
    return [
        *_user(),
        *_namespaces(),
        *_system_calls(),
        _programs_in_memory(),
        *_filesystems(),
        *_seccomp(config),
        *_cgroups(),
        *_cgroup_driver(config),
        *_programs(config),
        *_directories(config),
        *_socket(config),
    ]


def as_text(found: Sequence[Finding]) -> str:
    """For people: a line each, remedies below, a summary as the last line."""
    lines = []
    for finding in found:
        lines.append(f"{finding.verdict.value:>13}  {finding.subject}: {finding.found}")
        if finding.remedy:
            lines.append(f"{'':>13}  → {finding.remedy}")
    missing = sum(finding.verdict is Verdict.MISSING for finding in found)
    worse = sum(finding.verdict is Verdict.WORSE for finding in found)
    lines.append(f"{len(found)} checked, {missing} missing, {worse} worse without")
    return "\n".join(lines) + "\n"


def as_json(found: Sequence[Finding]) -> str:
    """For programs: an array of objects with subject, verdict, found, remedy."""
    rows = [{**asdict(finding), "verdict": finding.verdict.value} for finding in found]
    return json.dumps(rows, indent=1) + "\n"


# --------------------------------------------------------------- the kernel


def _user() -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding("user", Verdict.MISSING, f"uid {os.geteuid()}", "run as root")
    status = procfs.status(os.getpid()) or {}
    held = int(status.get("CapBnd", "0"), 16) & int(status.get("CapPrm", "0"), 16)
    last = procfs.last_capability()
    lacking = (1 << (last + 1)) - 1 & ~held
    needed, others = lacking & _NEEDED_CAPABILITIES, lacking & ~_NEEDED_CAPABILITIES
    if needed:
        words = ", ".join(capabilities.names(needed))
        yield Finding("capabilities", Verdict.MISSING, f"without {words}", "start cri_py with all capabilities")
    elif others:
        words = ", ".join(capabilities.names(others))
        yield Finding(
            "capabilities", Verdict.WORSE, f"without {words}", "containers that ask for one of them run without it"
        )
    else:
        yield Finding("capabilities", Verdict.OK, "all")


def _namespaces() -> Iterator[Finding]:
    lacking = [name for name in _NAMESPACES if not os.path.exists(f"/proc/self/ns/{name}")]
    if lacking:
        yield Finding(
            "namespaces",
            Verdict.MISSING,
            f"without {', '.join(lacking)}",
            f"use a kernel with {' '.join(f'CONFIG_{name.upper()}_NS' for name in lacking)}",
        )
    else:
        yield Finding("namespaces", Verdict.OK, ", ".join(_NAMESPACES))


def _system_calls() -> Iterator[Finding]:
    """Each call is made in a way that changes nothing; only ENOSYS means that the kernel lacks it."""
    probes: dict[str, Callable[[], object]] = {
        "clone3": lambda: syscalls.clone3(constants.CLONE_NEWNS | _CLONE_FS),  # the two exclude each other: EINVAL
        "pidfd_open": lambda: os.close(syscalls.pidfd_open(os.getpid())),
        "openat2": lambda: os.close(syscalls.openat2(constants.AT_FDCWD, "/", os.O_PATH)),
        "close_range": lambda: syscalls.close_range(0xFFFFFFF0),
        "open_tree": lambda: os.close(syscalls.open_tree(constants.AT_FDCWD, "/", constants.OPEN_TREE_CLOEXEC)),
        "mount_setattr": lambda: syscalls.mount_setattr(-1, "", constants.AT_EMPTY_PATH),
    }
    lacking = [name for name, probe in probes.items() if not _answers(probe, errno.ENOSYS)]
    release = os.uname().release
    if lacking:
        yield Finding(
            "system calls", Verdict.MISSING, f"{release} lacks {', '.join(lacking)}", "use Linux 5.12 or newer"
        )
    else:
        yield Finding("system calls", Verdict.OK, f"Linux {release}: {', '.join(probes)}")


def _programs_in_memory() -> Finding:
    """Holders and execs are such programs (docs/adr/0008)."""
    try:
        os.close(steps.in_memory(b""))
    except OSError as error:
        return Finding(
            "programs in memory",
            Verdict.MISSING,
            f"refused: {error.strerror}; no pod can be run and nothing executed in one",
            "sysctl vm.memfd_noexec=1, and see that no file of /etc/sysctl.d sets 2",
        )
    return Finding("programs in memory", Verdict.OK, "can be executed")


def _answers(probe: Callable[[], object], lacking: int) -> bool:
    try:
        probe()
    except KernelError as error:
        return error.errno != lacking
    return True


def _filesystems() -> Iterator[Finding]:
    """fsopen loads the module if there is one, which /proc/filesystems doesn't."""
    lacking = [name for name in _FILESYSTEMS if not _answers(partial(_open_filesystem, name), errno.ENODEV)]
    if lacking:
        yield Finding(
            "filesystems",
            Verdict.MISSING,
            f"without {', '.join(lacking)}",
            f"modprobe {lacking[0]}, or use a kernel that has it",
        )
    else:
        yield Finding("filesystems", Verdict.OK, ", ".join(_FILESYSTEMS))


def _open_filesystem(fstype: str) -> None:
    os.close(syscalls.fsopen(fstype))


def _seccomp(config: Config) -> Iterator[Finding]:
    wanted = Verdict.MISSING if config.runtime.seccomp else Verdict.WORSE
    without = "or set runtime.seccomp = false and have no container ask for a profile"
    if "Seccomp" not in (procfs.status(os.getpid()) or {}):
        yield Finding("seccomp", wanted, "not in this kernel", f"use a kernel with CONFIG_SECCOMP_FILTER, {without}")
    try:
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW"})
    except CriError as error:
        yield Finding("seccomp", wanted, error.message, error.hint)
    else:
        yield Finding("seccomp", Verdict.OK, "the kernel filters, libseccomp compiles")


def _cgroups() -> Iterator[Finding]:
    version1, version2 = _controllers()
    have = version1 or version2
    if not have:
        yield Finding("cgroups", Verdict.MISSING, "no hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
        return
    lacking = [name for name in _CONTROLLERS if name not in have and (version1 or name not in _IN_V2)]
    names = "version 1" if version1 else "version 2"
    if lacking:
        yield Finding(
            "cgroups",
            Verdict.MISSING,
            f"{names} without {', '.join(lacking)}",
            controllers_remedy(lacking, _known_controllers(), version1=bool(version1), partial_view=_sees_a_part()),
        )
    else:
        yield Finding("cgroups", Verdict.OK, f"{names}: {', '.join(sorted(have))}")
    absent = [name for name in _OPTIONAL_CONTROLLERS if name not in have | ({"blkio"} if "io" in have else set())]
    if absent:
        yield Finding("cgroup limits", Verdict.WORSE, f"no {', '.join(absent)}", "limits of this kind are not applied")


def _cgroup_driver(config: Config) -> Iterator[Finding]:
    try:
        driver = cgroup_drivers.choose(config.cgroups.driver, detect())
    except CriError as error:
        yield Finding("cgroup driver", Verdict.MISSING, error.message, error.hint)
    else:
        yield Finding("cgroup driver", Verdict.OK, driver)


def controllers_remedy(
    lacking: Sequence[str], known: Mapping[str, tuple[int, bool]], *, version1: bool, partial_view: bool
) -> str:
    """What gets a node the controllers that it lacks, each by its cause.

    ``known``: /proc/cgroups, by name the hierarchy that a controller is in (0: version 2's, or none) and whether it is
    enabled. A kernel without version 1 of a controller may leave it out there. ``partial_view``: the version 2
    hierarchy is seen from a group below its root, which has only what the group above hands down.
    """
    causes: dict[str, list[str]] = {}
    for name in lacking:
        hierarchy, enabled = known.get(name, (0, True))
        if not enabled:
            cause = "boot with cgroup_enable={}"
        elif version1 and name in known:
            cause = "mount -t cgroup -o {0} cgroup /sys/fs/cgroup/{0}"
        elif hierarchy:
            cause = "unmount the version 1 hierarchy that holds {}"
        elif partial_view:
            cause = "echo +{} > cgroup.subtree_control in the group above, as systemd does for Delegate=yes"
        else:
            cause = f"use a kernel with {_BUILT_BY[name]}"
        causes.setdefault(cause, []).append(name)
    return "; ".join(cause.format(name) for cause, names in causes.items() for name in names)


def _known_controllers() -> dict[str, tuple[int, bool]]:
    rows = [line.split() for line in procfs.read("/proc/cgroups").decode().splitlines() if not line.startswith("#")]
    return {name: (int(hierarchy), enabled == "1") for name, hierarchy, _, enabled in rows}


def _sees_a_part() -> bool:
    """The root of a hierarchy alone has no cgroup.type (cgroup-v2.rst)."""
    return any(os.path.exists(f"{m.path}/cgroup.type") for m in procfs.mountinfo() if m.fstype == "cgroup2")


def _controllers() -> tuple[set[str], set[str]]:
    """The controllers of the version 1 hierarchies, and those of the version 2 hierarchy."""
    version1: set[str] = set()
    version2: set[str] = set()
    for mounted in procfs.mountinfo():
        if mounted.fstype == "cgroup":
            version1 |= {*_CONTROLLERS, *_OPTIONAL_CONTROLLERS} & set(mounted.super_options)
        elif mounted.fstype == "cgroup2":
            version2 |= set(procfs.read(f"{mounted.path}/cgroup.controllers").decode().split())
    return version1, version2


# ---------------------------------------------------------------- programs


def _programs(config: Config) -> Iterator[Finding]:
    nft = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if nft:
        yield Finding("nftables", Verdict.OK, nft)
    elif config.network.masquerade:
        yield Finding("nftables", Verdict.MISSING, "no program nft", "apt install nftables")
    else:
        yield Finding("nftables", Verdict.WORSE, "no program nft, so no host ports", "apt install nftables")


# ------------------------------------------------------------- directories


def _directories(config: Config) -> Iterator[Finding]:
    for name, directory in (("root", config.server.root), ("state", config.server.state)):
        yield _directory(f"server.{name}", directory)
    mounted = _mount_of(config.server.root)
    if mounted.fstype in _UNFIT_FILESYSTEMS:
        yield Finding(
            "snapshots",
            Verdict.MISSING,
            f"{config.server.root} is on {mounted.fstype}, on which overlayfs can't write",
            "set server.root to a directory on ext4, xfs, btrfs or tmpfs",
        )
    else:
        yield Finding("snapshots", Verdict.OK, f"overlay on {mounted.fstype} ({mounted.path})")


def _directory(subject: str, directory: str) -> Finding:
    there = _existing(directory)
    if not os.path.isdir(there):
        return Finding(subject, Verdict.MISSING, f"{there} is no directory", f"move it away, or set {subject}")
    if not os.access(there, os.W_OK | os.X_OK):  # EROFS too
        return Finding(subject, Verdict.MISSING, f"{there} can't be written", f"mount it writable, or set {subject}")
    return Finding(subject, Verdict.OK, directory if there == directory else f"{directory}, to be made in {there}")


def _existing(path: str) -> str:
    """``path``, or the nearest that exists above it."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _mount_of(path: str) -> procfs.MountPoint:
    """The mount that ``path`` is or would be on: the last of those with the longest path above it."""
    real = os.path.realpath(_existing(path))
    above = [m for m in procfs.mountinfo() if m.path == "/" or f"{real}/".startswith(f"{m.path}/")]
    longest = max(len(m.path) for m in above)
    return [m for m in above if len(m.path) == longest][-1]


def _socket(config: Config) -> Iterator[Finding]:
    try:
        address = listen.parse_address(config.listen, "server.listen")
        listen.group_id(config.server.socket_group)
    except CriError as error:
        yield Finding("CRI socket", Verdict.MISSING, error.message, error.hint)
    else:
        yield Finding("CRI socket", Verdict.OK, str(address))
