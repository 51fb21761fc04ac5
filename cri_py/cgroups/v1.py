"""cgroup v1: a tree per controller, or per few that are mounted together (admin-guide/cgroup-v1/)."""

from __future__ import annotations

import os
import time
from errno import ENOENT
from typing import TYPE_CHECKING, NamedTuple

from cri_py.cgroups import files, plans
from cri_py.cgroups.hierarchy import Cgroups, ExecScope, Made, checked, oom_count, send_kill, write_all
from cri_py.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cri_py.cgroups.writes import Write

_FREEZE_PAUSE_S = 0.0005
_FREEZE_FOR_KILL_S = 0.2


class Hierarchy(NamedTuple):
    """One mounted tree: ``/sys/fs/cgroup/cpu,cpuacct`` and ``("cpu", "cpuacct")``."""

    mount: str
    controllers: tuple[str, ...]


class V1(Cgroups):
    """The groups of a node whose controllers are in v1 hierarchies; any of them may be missing."""

    def __init__(self, hierarchies: Sequence[Hierarchy]) -> None:
        self.hierarchies = tuple(hierarchies)
        self.mounts = tuple(hierarchy.mount for hierarchy in self.hierarchies)
        self._mount_of = {name: hierarchy.mount for hierarchy in self.hierarchies for name in hierarchy.controllers}
        self._scopes = V1((self._hierarchy_for_scopes(),)) if len(self.hierarchies) > 1 else None

    def plan(self, path: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
        """As Cgroups.plan; a limit whose controller no hierarchy has is a KernelError, as in runc."""
        below = checked(path)
        planned = []
        for write in plans.v1_writes(resources):
            controller = write.file.partition(".")[0]
            if controller not in self._mount_of:
                if write.optional:  # a file that is nowhere, of which a note is made
                    planned.append(write._replace(file=f"{self.mounts[0]}{below}/{write.file}"))
                    continue
                raise KernelError(ENOENT, f"no controller {controller} on this node", "write", " ".join(write[:2]))
            planned.append(write._replace(file=f"{self._mount_of[controller]}{below}/{write.file}"))
        return tuple(planned)

    def create(self, path: str, resources: Mapping[str, Any], pod: bool = False) -> Made:
        """As Cgroups.create; what a v1 group needs before a process can enter, cpus and memory nodes, is copied."""
        planned = self.plan(path, resources)
        made: list[str] = []
        try:
            for directory in self.directories(path):
                made += files.make(directory)
            if "cpuset" in self._mount_of:
                _fill_cpuset(self._mount_of["cpuset"] + path, self._mount_of["cpuset"])
            notes = write_all(planned)
        except BaseException:
            self.undo(Made(path, tuple(made)))
            raise
        return Made(path, tuple(made), notes + tuple(f"{name} is not applied" for name in plans.ignored(resources)))

    def enter(self, path: str) -> None:
        """As Cgroups.enter."""
        for file in self.enter_plan(path):
            files.write(file, "0")

    def enter_plan(self, path: str) -> Sequence[str]:
        """One file per hierarchy.

        ``tasks`` and not ``cgroup.procs``: to move a whole process the kernel takes the lock that holds off every fork
        and exit (cgroup_threadgroup_rwsem), and after an idle time its writer first waits for an RCU grace period, 6 to
        8 ms a hierarchy. A thread that moves itself needs no lock (cgroup_procs_write_start in kernel/cgroup/cgroup.c),
        0.1 ms, and the only thread is the process.
        """
        return tuple(f"{directory}/tasks" for directory in self.directories(path))

    def directory_fd(self, path: str) -> int | None:
        """None: clone3 enters only v2."""
        return None

    def exec_scope(self, container_path: str, name: str) -> ExecScope:
        """As Cgroups.exec_scope; a group in one hierarchy is enough to find and kill by, and costs an eighth."""
        path = checked(f"{container_path}/{name}")
        alone = self._scopes or self
        directory = alone.mounts[0] + path
        others = tuple(f"{mount}{container_path}/tasks" for mount in self.mounts if mount != alone.mounts[0])
        return ExecScope(alone, path, directory, (*others, f"{directory}/tasks"))

    def _hierarchy_for_scopes(self) -> Hierarchy:
        for wanted in ("freezer", "pids"):
            for hierarchy in self.hierarchies:
                if wanted in hierarchy.controllers:
                    return hierarchy
        return self.hierarchies[0]

    # ------------------------------------------------------------------ out of memory

    def oom_kills(self, path: str) -> int:
        """As Cgroups.oom_kills. v1 counts each kill in the victim's group alone, so those below are added."""
        below = checked(path)
        groups = files.tree(self._mount_of["memory"] + below) if "memory" in self._mount_of else ()
        return sum(oom_count(files.read_if_there(f"{group}/memory.oom_control")) for group in groups)

    def open_oom(self, path: str) -> int | None:
        """As Cgroups.open_oom; of the group alone, without those below it (see ``oom_kills``)."""
        below = checked(path)
        if "memory" not in self._mount_of:
            return None
        return files.open_to_read(f"{self._mount_of['memory']}{below}/memory.oom_control")

    # --------------------------------------------------------------------------- ended

    def freeze(self, path: str, deadline_s: float = 5.0) -> None:
        """As Cgroups.freeze."""
        file = self._freezer_file(path)
        if not file:
            raise KernelError(ENOENT, "no controller freezer on this node", "freeze", path)
        if not self._freeze(file, time.monotonic() + deadline_s):
            files.write(file, "THAWED")
            pids = self.processes(path)
            raise self._left_over(path, pids, "freeze")

    def _freeze(self, file: str, until: float) -> bool:
        """Whether all stood still before ``until``. v1 tells of no change, so it is asked again and again."""
        files.write(file, "FROZEN")
        while files.read(file).strip() != b"FROZEN":
            if time.monotonic() >= until:
                return False
            time.sleep(_FREEZE_PAUSE_S)
            files.write(file, "FROZEN")  # what could not be frozen yet is tried again on each write
        return True

    def thaw(self, path: str) -> None:
        """As Cgroups.thaw."""
        file = self._freezer_file(path)
        if not file:
            raise KernelError(ENOENT, "no controller freezer on this node", "thaw", path)
        files.write(file, "THAWED")

    def _freezer_file(self, path: str) -> str:
        mount = self._mount_of.get("freezer")
        return f"{mount}{checked(path)}/freezer.state" if mount else ""

    def _kill_once(self, path: str, pids: list[int], tries: int, until: float) -> None:
        """First a plain kill, which nearly always is enough; then with all standing still, so that none forks away."""
        file = self._freezer_file(path)
        if not file or not os.path.exists(file):
            send_kill(pids)
            return
        if tries:
            self._freeze(file, min(until, time.monotonic() + _FREEZE_FOR_KILL_S))
            pids = self.processes(path)
        send_kill(pids)
        # A frozen process dies only when it is thawed, and a group below may have been frozen by itself.
        for group in files.tree(os.path.dirname(file)):
            files.write_if_there(f"{group}/freezer.state", "THAWED")


def _fill_cpuset(directory: str, root: str) -> None:
    """Give the group its parent's cpus and memory nodes where it has none, and the parent first if it must."""
    if directory == root:
        return
    for file in ("cpuset.cpus", "cpuset.mems"):
        if files.read(f"{directory}/{file}").strip():
            continue
        parent = os.path.dirname(directory)
        inherited = files.read(f"{parent}/{file}").strip()
        if not inherited:
            _fill_cpuset(parent, root)
            inherited = files.read(f"{parent}/{file}").strip()
        files.write(f"{directory}/{file}", inherited.decode())
