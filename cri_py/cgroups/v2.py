"""cgroup v2: one tree, in which a parent hands its controllers down (admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from cri_py.cgroups import devices, files, plans
from cri_py.cgroups.hierarchy import Cgroups, ExecScope, Made, checked, oom_count, send_kill, write_all
from cri_py.errors import KernelError
from cri_py.kernel import bpf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cri_py.cgroups.writes import Write

# For limits and for statistics; perf_event, dmem and the like stay as they are.
_ROUND_S = 0.05  # after which a wait looks again whether the group is there
_WANTED = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma")


class V2(Cgroups):
    """The groups of a node with the unified hierarchy alone."""

    born_into = True
    leaves_only = True

    def __init__(self, mount: str) -> None:
        self.mount = mount
        self.mounts = (mount,)

    def plan(self, path: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
        """As Cgroups.plan. Device rules are no file here: they are the program of ``devices.v2_program``."""
        below = checked(path)
        return tuple(write._replace(file=f"{self.mount}{below}/{write.file}") for write in plans.v2_writes(resources))

    def create(self, path: str, resources: Mapping[str, Any], pod: bool = False) -> Made:
        """As Cgroups.create."""
        planned = self.plan(path, resources)
        program = devices.v2_program(resources.get("devices") or ())
        directory = self.mount + path
        made: list[str] = []
        try:
            made += files.make(directory)
            notes = self._hand_down(directory if pod else os.path.dirname(directory))
            notes += write_all(planned)
            if program:
                _attach(directory, program)
        except BaseException:
            self.undo(Made(path, tuple(made)))
            raise
        return Made(path, tuple(made), notes + tuple(f"{name} is not applied" for name in plans.ignored(resources)))

    def _hand_down(self, directory: str) -> tuple[str, ...]:
        """Enable the controllers in every group from the root to ``directory``; notes tell who refused.

        A refusal (processes in the group, a threaded group) isn't an error by itself: the write of a limit that lacks
        its controller is.
        """
        notes: list[str] = []
        group = self.mount
        for part in ("", *directory[len(self.mount) :].strip("/").split("/")):
            group = f"{group}/{part}" if part else group
            there = files.read(f"{group}/cgroup.controllers").decode().split()
            enabled = files.read(f"{group}/cgroup.subtree_control").decode().split()
            missing = [f"+{name}" for name in _WANTED if name in there and name not in enabled]
            if missing:
                notes += _enable(f"{group}/cgroup.subtree_control", missing)
        return tuple(notes)

    def enter(self, path: str) -> None:
        """As Cgroups.enter; it waits for the lock that clone3 with ``directory_fd`` does not need."""
        files.write(f"{self.mount}{checked(path)}/cgroup.procs", "0")

    def enter_plan(self, path: str) -> Sequence[str]:
        """The one file."""
        return (f"{self.mount}{checked(path)}/cgroup.procs",)

    def directory_fd(self, path: str) -> int | None:
        """As Cgroups.directory_fd."""
        return files.open_to_read(self.mount + checked(path), os.O_DIRECTORY)

    def exec_scope(self, container_path: str, name: str) -> ExecScope:
        """As Cgroups.exec_scope; the container's group hands no controller down, so that it may hold processes too."""
        path = checked(f"{container_path}/{name}")
        return ExecScope(self, path, self.mount + path, tuple(self.enter_plan(path)))

    def oom_kills(self, path: str) -> int:
        """As Cgroups.oom_kills."""
        return oom_count(files.read_if_there(f"{self.mount}{checked(path)}/memory.events"))

    def open_oom(self, path: str) -> int | None:
        """As Cgroups.open_oom; with those below it."""
        file = f"{self.mount}{checked(path)}/memory.events"
        return files.open_to_read(file) if os.path.exists(file) else None

    def freeze(self, path: str, deadline_s: float = 5.0) -> None:
        """As Cgroups.freeze."""
        directory = self.mount + checked(path)
        files.write(f"{directory}/cgroup.freeze", "1")
        if not _wait_for_event(directory, b"frozen 1", time.monotonic() + deadline_s):
            files.write(f"{directory}/cgroup.freeze", "0")
            raise self._left_over(path, self.processes(path), "freeze")

    def thaw(self, path: str) -> None:
        """As Cgroups.thaw."""
        files.write(f"{self.mount}{checked(path)}/cgroup.freeze", "0")

    def kill(self, path: str, deadline_s: float) -> None:
        """As Cgroups.kill; cgroup.kill (Linux 5.14) leaves no fork behind, and frozen processes die too."""
        directory = self.mount + checked(path)
        if not os.path.exists(f"{directory}/cgroup.kill"):
            super().kill(path, deadline_s)
            return
        until = time.monotonic() + deadline_s
        files.write_if_there(f"{directory}/cgroup.kill", "1")
        if not _wait_for_event(directory, b"populated 0", until):
            raise self._left_over(path, self.processes(path), "kill")

    def _kill_once(self, path: str, pids: list[int], tries: int, until: float) -> None:
        """For a kernel without cgroup.kill: from the second round on all stand still, so that none forks away."""
        directory = self.mount + path
        if tries:
            files.write_if_there(f"{directory}/cgroup.freeze", "1")
            _wait_for_event(directory, b"frozen 1", min(until, time.monotonic() + 0.2))
            pids = self.processes(path)
        send_kill(pids)  # unlike v1's, this freezer lets them die
        if tries:
            files.write_if_there(f"{directory}/cgroup.freeze", "0")


def _enable(file: str, controllers: list[str]) -> list[str]:
    """Enable all at once, or each that can be; returns what was refused, in words."""
    try:
        files.write(file, " ".join(controllers))
    except KernelError:
        refused = []
        for controller in controllers:
            try:
                files.write(file, controller)
            except KernelError as error:
                refused.append(str(error))
        return refused
    return []


def _attach(directory: str, program: bytes) -> None:
    loaded = bpf.load_device_program(program)
    try:
        group = files.open_to_read(directory, os.O_DIRECTORY)
        try:
            bpf.attach_device_program(group, loaded)
        finally:
            os.close(group)
    finally:
        os.close(loaded)


def _wait_for_event(directory: str, line: bytes, until: float) -> bool:
    """Whether ``line`` stands in cgroup.events before ``until``; a group that is gone has nothing left to wait for."""
    try:
        fd = files.open_to_read(f"{directory}/cgroup.events")
    except KernelError:
        if not os.path.exists(directory):
            return True
        raise
    try:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        while (lines := files.read_again(fd, directory).splitlines()) and line not in lines:
            remaining = until - time.monotonic()
            if remaining <= 0:
                return False
            poller.poll(min(remaining, _ROUND_S) * 1000)  # one that somebody else removes wakes nobody
    finally:
        os.close(fd)
    return True
