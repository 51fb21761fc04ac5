"""The pods' cgroups as systemd makes them: a slice for a pod, a scope for each of its containers and for its holder.

What ``Groups`` does with directories is done by units here; ``cri_py.cgroups.systemd`` tells where everything lies and
why a scope has a process that only waits. Groups that this driver did not make, of pods from before it was chosen, are
treated as ``Groups`` treats them.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from cri_py.cgroups import Cgroups, Write, changes, files, presence, systemd
from cri_py.errors import CriError, Internal
from cri_py.kernel import steps
from cri_py.kernel.faults import trace
from cri_py.kernel.steps import Step, in_memory, text, vector
from cri_py.pods import step_parts
from cri_py.pods.group_parents import GroupParents
from cri_py.pods.groups import KILL_S, Groups
from cri_py.pods.systemd_bus import SystemdBus

log = structlog.get_logger()
_NULL: Final = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]


class UnitGroups(Groups):
    """As Groups, with systemd as the one who makes groups. Raises Unavailable too, where systemd does not answer."""

    driver = "systemd"

    def __init__(self, cgroups: Cgroups, parent: str, note: Path, bus: SystemdBus, waiter: str) -> None:
        """``parent``: of the config; ``note``: as for GroupParents; ``waiter``: the program that keeps a scope."""
        self._own_slice = systemd.own_slice(parent)
        super().__init__(cgroups, systemd.slice_path(self._own_slice), GroupParents(note, self._drop_parent))
        self._bus = bus
        self._waiter = waiter
        self._waiting: dict[str, int] = {}  # by scope, of those that are this daemon's children

    # ----------------------------------------------------------------- names

    def check_parent(self, cgroup_parent: str) -> None:
        if cgroup_parent:
            systemd.check_slice(cgroup_parent)

    def of_pod(self, cgroup_parent: str, sandbox_id: str) -> str:
        return systemd.slice_path(cgroup_parent or systemd.child_slice(self._own_slice, f"pod{sandbox_id}"))

    def of_holder(self, pod: str, sandbox_id: str) -> str:
        return f"{pod}/{systemd.holder_scope(sandbox_id)}" if _is_slice(pod) else super().of_holder(pod, sandbox_id)

    def of_container(self, pod: str, container_id: str) -> str:
        if not _is_slice(pod):
            return super().of_container(pod, container_id)
        return f"{pod}/{systemd.container_scope(container_id)}/{systemd.OWN}"

    def container_of(self, group: str) -> str:
        return systemd.container_of(os.path.basename(group)) or super().container_of(group)

    # ------------------------------------------------------------------ made

    def _make_pod(self, pod: str, holder: str) -> tuple[str, ...]:
        own = self.cgroups.directories(pod)
        with self._parents.below(map(os.path.dirname, own)):
            made = () if all(map(os.path.isdir, own)) else own
            self._made.update(made)
            if made:
                self._bus.start_slice(os.path.basename(pod), "cri_py pod")
            self._check_there(pod)
            self.cgroups.create(pod, {}, pod=True)  # hands down what systemd does not know: hugetlb, rdma
        self._start_scope(holder, f"cri_py holder {holder}", {})
        return made

    def _make(self, group: str, resources: Mapping[str, Any]) -> None:
        scope = systemd.scope_of(group)
        if scope:
            presence.check(resources)  # before a scope is started for nothing
            self._start_scope(scope, f"cri_py container {systemd.container_of(os.path.basename(scope))}", resources)
        try:
            if scope:
                self._keep(scope)
            super()._make(group, resources)
        except BaseException:
            if scope:
                self._end_scope(scope)
            raise

    def _start_scope(self, scope: str, description: str, resources: Mapping[str, Any]) -> None:
        limits = systemd.properties((Write("pids.max", "max"), *systemd.scope_writes(resources)))
        with _waiting_process(self._waiter) as (pid, gate):
            trace("scope: its process waits")
            name, slice_name = os.path.basename(scope), os.path.basename(os.path.dirname(scope))
            self._bus.start_scope(name, slice_name, pid, description, limits)
            self._check_there(scope)
            trace("scope: started")
            gate.send(b"g")
        self._waiting[scope] = pid

    def _keep(self, scope: str) -> None:
        """Out of the scope's own group, which is to hand its controllers down."""
        keep = f"{scope}/{systemd.KEEP}"
        for directory in self.cgroups.directories(keep):
            files.make_one(directory)
        for file in self.cgroups.enter_plan(keep):
            files.write(file, str(self._waiting[scope]))

    def _check_there(self, group: str) -> None:
        for directory in self.cgroups.directories(group):
            if not os.path.isdir(directory):
                raise Internal(
                    f"systemd has started {os.path.basename(group)}, but not at {directory}",
                    hint='in a container with cgroups of its own, set cgroups.driver = "cgroupfs"',
                )

    async def held(self, pod: str, sandbox_id: str) -> None:
        await self._run(self._release, self.of_holder(pod, sandbox_id))

    def _release(self, scope: str) -> None:
        if pid := self._waiting.pop(scope, 0):
            _end(pid)

    # --------------------------------------------------------------- changed

    def _change(self, group: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
        undo = super()._change(group, resources)
        scope = systemd.scope_of(group)
        if not scope:
            return undo
        try:
            asked = systemd.scope_writes(resources)
            before = self._current(scope, asked)
            self._bus.change(os.path.basename(scope), systemd.properties(asked))
        except BaseException:
            changes.take_back(undo)
            raise
        return (*before, *undo)

    def _current(self, scope: str, asked: Iterable[Write]) -> tuple[Write, ...]:
        """What the files of the scope say now, as writes."""
        (directory,) = self.cgroups.directories(scope)
        places = [f"{directory}/{write.file}" for write in asked]
        return tuple(Write(file, files.read(file).decode().strip()) for file in places if os.path.exists(file))

    def _take_back(self, undo: tuple[Write, ...]) -> None:
        units: dict[str, list[Write]] = {}
        for write in undo:
            directory, file = os.path.split(write.file)
            if directory.endswith(".scope"):
                units.setdefault(os.path.basename(directory), []).append(write._replace(file=file))
        changes.take_back([write for write in undo if not os.path.dirname(write.file).endswith(".scope")])
        for name, writes in units.items():
            self._bus.change(name, systemd.properties(writes))

    # --------------------------------------------------------------- removed

    def _remove(self, group: str) -> None:
        super()._remove(group)
        if scope := systemd.scope_of(group):
            self._end_scope(scope)

    def _end_scope(self, scope: str) -> None:
        """A missing one is fine. Its last process ends first, so that systemd has nobody to wait for."""
        self.cgroups.kill(scope, KILL_S)
        self._release(scope)
        trace("scope: emptied")
        self._bus.stop(os.path.basename(scope))
        self.cgroups.remove(scope)

    def _remove_pod(self, pod: str, holder: str) -> bool:
        if not _is_slice(pod):
            return super()._remove_pod(pod, holder)
        self._end_scope(holder)
        own = self.cgroups.directories(pod)
        if not (self._made.intersection(own) or pod.startswith(f"{self._default_parent}/")):
            return True
        if self.cgroups.children(pod):
            return False
        self._bus.stop(os.path.basename(pod))
        self._made.difference_update(own)
        return True

    def _drop_parent(self, directory: str) -> bool:
        """A slice above pods that is ours and empty; what is none is removed as a directory."""
        if not _is_slice(directory):
            return files.drop(directory)
        if files.below(directory):
            return False
        try:
            self._bus.stop(os.path.basename(directory))
        except CriError as error:
            log.warning("a slice above pods can't be stopped", slice=os.path.basename(directory), cause=str(error))
            return False
        return True


@contextmanager
def _waiting_process(program: str) -> Iterator[tuple[int, socket.socket]]:
    """A child for a new scope, and the socket that takes a byte once it is there; ended if it never is.

    Without the byte it ends by itself, which is the daemon's death between its birth and the scope's: what nobody knows
    of must not stay. Then it becomes the program that waits.
    """
    execute = Step("execve", (text(program), vector([b"cri-scope\0"]), vector([])))
    image = in_memory(steps.program([*step_parts.awaited(), step_parts.report_until_execve(), execute]))
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        try:
            actions = (*_NULL, (os.POSIX_SPAWN_DUP2, its.fileno(), steps.REPORT_FD))
            pid = os.posix_spawn(f"/proc/self/fd/{image}", [b"cri-scope"], {}, file_actions=actions, setsid=True)
        finally:
            os.close(image)
        its.close()
        try:
            yield pid, ours
        except BaseException:
            _end(pid)  # an empty scope goes by itself, also one that comes to be only now
            raise


def _end(pid: int) -> None:
    """Of a child, which may have ended."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _is_slice(path: str) -> bool:
    return path.endswith(".slice")
