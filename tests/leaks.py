"""What a test may leave behind, as a value: nothing. Compared before and after each test that touches the kernel."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from cri_py.kernel import procfs

SETTLE_S = 20.0  # a namespace or a killed process goes some time after its last user went
# The event loops and gRPC's poller open these when they are first used and keep them.
KEPT = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/pts/", "/dev/null")


@dataclass(frozen=True, slots=True)
class Holdings:
    """What this process and, if it is alone, the machine has. Keys identify, values describe."""

    descriptors: Mapping[str, str]
    children: Mapping[str, str]
    mounts: Mapping[str, str]  # a pinned network namespace is one of type nsfs
    cgroups: Mapping[str, str]
    interfaces: Mapping[str, str]
    processes: Mapping[str, str]


def take(alone: bool, temporary: Path) -> Holdings:
    """``alone``: nobody else uses the machine, so all that appears is the test's; else only what is surely its own."""
    found = procfs.mountinfo()
    mounts = {f"{m.id} {m.path}": f"{m.fstype} on {m.path}" for m in found}
    if not alone:
        mounts = {number: text for number, text in mounts.items() if str(temporary) in text}
    return Holdings(
        descriptors=_descriptors(),
        children=_children(),
        mounts=mounts,
        cgroups=_cgroups([m.path for m in found if m.fstype in {"cgroup", "cgroup2"}]) if alone else {},
        interfaces={name: name for name in os.listdir("/sys/class/net")} if alone else {},
        processes=_processes() if alone else {},
    )


def left_over(before: Holdings, look: Callable[[], Holdings], settle_s: float = SETTLE_S) -> list[str]:
    """What is there now and wasn't, once it had time to go; a line each."""
    deadline = time.monotonic() + settle_s
    while lines := _more(before, look()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
        gc.collect()  # what only a cycle keeps open is no leak
    return lines


def _more(before: Holdings, now: Holdings) -> list[str]:
    return [
        f"{part.name}: {text}"
        for part in fields(Holdings)
        for name, text in getattr(now, part.name).items()
        if name not in getattr(before, part.name)
    ]


def open_descriptors() -> list[str]:
    """Their numbers, once what earlier tests have left in cycles is closed: else it would go at any moment."""
    gc.collect()
    return os.listdir("/proc/self/fd")


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the one that listed the directory
            continue
        if not target.startswith(KEPT):
            found[f"{fd} {target}"] = f"{fd} → {target}"
    return found


def _children() -> dict[str, str]:
    found = {}
    for task in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{task}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # a thread that ended
            continue
        found.update({pid: f"{pid} {_command(pid)}" for pid in pids})
    return found


def _cgroups(roots: list[str]) -> dict[str, str]:
    return {directory: directory for root in roots for directory in _tree(root)}


def _tree(directory: str) -> Iterator[str]:
    """A group and all below. Most have none, which their links tell: to list each group's files takes ten times longer,
    and this is done twice a test."""
    try:
        links = os.stat(directory).st_nlink
        below = [each.path for each in os.scandir(directory) if each.is_dir(follow_symlinks=False)] if links > 2 else []
    except FileNotFoundError:  # gone meanwhile
        return
    yield directory
    for each in below:
        yield from _tree(each)


def _processes() -> dict[str, str]:
    """Kernel threads have no command line; neither have zombies, which are their parent's affair."""
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    commands = {pid: _command(pid) for pid in pids}
    return {pid: f"{pid} {command}" for pid, command in commands.items() if command}


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
