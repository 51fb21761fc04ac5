"""The pods' cgroups, made and removed on threads: a group of v1 is a directory in each of eight hierarchies."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import structlog

from cri_py import telemetry
from cri_py.cgroups import Cgroups, Write, changes, limits, presence
from cri_py.errors import FailedPrecondition, Internal, InvalidArgument, KernelError
from cri_py.images.flights import on_thread
from cri_py.pods import spec_limits
from cri_py.pods.group_parents import GroupParents

log = structlog.get_logger()
KILL_S: Final = 10.0
_EMPTY_S: Final = 2.0
_ID_DIGITS: Final = 64
_LINGER_S: Final = 2.0  # after a pod's removal, until its group's empty parents go
_REFUSED: Final = frozenset((errno.ENOENT, errno.EINVAL, errno.ERANGE, errno.EDOM, errno.EOVERFLOW, errno.ENODEV))


class Groups:
    """One bounded pool for all; whatever it raises is Internal and names the group."""

    driver = "cgroupfs"

    def __init__(self, cgroups: Cgroups, default_parent: str, parents: GroupParents) -> None:
        self.cgroups = cgroups
        self._default_parent = default_parent
        self._parents = parents
        self._sweep: asyncio.TimerHandle | None = None
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="cgroups")
        self._made: set[str] = set()

    def check_parent(self, cgroup_parent: str) -> None:
        """Whether a pod may name it. Raises InvalidArgument that names the form which is right for this driver."""
        spec_limits.check_cgroup_parent(cgroup_parent)

    def of_pod(self, cgroup_parent: str, sandbox_id: str) -> str:
        """The pod's group: what the kubelet names, else one of our own."""
        return cgroup_parent.rstrip("/") or f"{self._default_parent}/pod-{sandbox_id}"

    def of_holder(self, pod: str, sandbox_id: str) -> str:
        """v1 lets processes sit in the pod's own group, which saves making another; v2 wants them in a leaf.

        The leaf is the sandbox's: all attempts of a pod share the group that the kubelet names.
        """
        return f"{pod}/holder-{sandbox_id}" if self.cgroups.leaves_only else pod

    def of_container(self, pod: str, container_id: str) -> str:
        return f"{pod}/{container_id}"

    def container_of(self, group: str) -> str:
        """The id of the container that a group below a pod's belongs to; "" for what is none's."""
        name = os.path.basename(group)
        return name if len(name) == _ID_DIGITS and not set(name) - set("0123456789abcdef") else ""

    def told(self, group: str) -> dict[str, object]:
        """For the verbose ``info`` of a status: the group's directories, and what its files say of limits and use."""
        directories = self.cgroups.directories(group)
        return {"cgroupPaths": directories, "cgroupValues": limits.values(directories)}

    async def make_pod(self, pod: str, sandbox_id: str) -> tuple[str, ...]:
        """Make the pod's group where the kubelet has not; returns those of its directories that are ours to remove."""
        made: tuple[str, ...] = await self._run(self._make_pod, pod, self.of_holder(pod, sandbox_id))
        return made

    def _make_pod(self, pod: str, holder: str) -> tuple[str, ...]:
        own = self.cgroups.directories(pod)
        with self._parents.below(map(os.path.dirname, own)):
            made = tuple(set(own).intersection(self.cgroups.create(pod, {}, pod=True).directories))
        self._made.update(made)
        if holder != pod:
            self.cgroups.create(holder, {})
        return made

    async def held(self, pod: str, sandbox_id: str) -> None:
        """The holder is in its group."""

    @telemetry.stage("container cgroup")
    async def make(self, group: str, resources: Mapping[str, Any]) -> None:
        await self._run(self._make, group, resources)

    def _make(self, group: str, resources: Mapping[str, Any]) -> None:
        presence.check(resources)
        self.cgroups.create(group, resources)

    async def change(self, group: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
        """New limits for a group in use; returns what takes them back. Raises as ``make``, and FailedPrecondition."""
        try:
            undo: tuple[Write, ...] = await self._run(self._change, group, resources)
        except Internal as error:
            if isinstance(error.__cause__, KernelError) and error.__cause__.errno == errno.EBUSY:
                raise FailedPrecondition(
                    f"memory_limit_in_bytes is below what the cgroup {group} uses: {error.__cause__}",
                    hint="ask for more, or wait until the container has let go of memory",
                ) from error
            raise
        return undo

    def _change(self, group: str, resources: Mapping[str, Any]) -> tuple[Write, ...]:
        presence.check(resources)
        return changes.change(self.cgroups, group, resources)

    async def take_back(self, undo: tuple[Write, ...]) -> None:
        """Undo a ``change``."""
        await self._run(self._take_back, undo)

    def _take_back(self, undo: tuple[Write, ...]) -> None:
        changes.take_back(undo)

    async def rescore(self, group: str, before: int, after: int) -> None:
        """Give another oom_score_adj to those of the group's processes that have ``before``: others have their own."""
        await self._run(self._rescore, group, before, after)

    def _rescore(self, group: str, before: int, after: int) -> None:
        for pid in self.cgroups.processes(group):
            rescore(pid, before, after)

    async def remove(self, group: str) -> None:
        await self._run(self._remove, group)

    def _remove(self, group: str) -> None:
        self.cgroups.remove(group)

    async def kill(self, group: str) -> None:
        await self._run(self.cgroups.kill, group, KILL_S)

    async def kill_lost(self, group: str) -> None:
        """As ``kill``, of a container whose monitor has died. Its program has most likely died with it, but not all of
        its children, and not one under an AppArmor profile: an execve into that clears the parent's death signal, as
        one of a set-user-ID file does (PR_SET_PDEATHSIG(2const)). What can't be killed is met again, and told, by who
        removes the container."""
        try:
            await self.kill(group)
        except Internal as error:
            log.warning("a container outlives its monitor", cgroup=group, cause=str(error))

    async def remove_pod(self, pod: str, sandbox_id: str, made: Iterable[str]) -> bool:
        """Remove the holder's group, and the pod's own if this daemon made it; whether nothing of ours is left.

        What the kubelet made is the kubelet's to remove: it holds limits that a next sandbox of the pod needs.
        """
        self._made.update(made)
        gone: bool = await self._run(self._remove_pod, pod, self.of_holder(pod, sandbox_id))
        self.sweep_soon()
        return gone

    def _remove_pod(self, pod: str, holder: str) -> bool:
        gone, until = True, time.monotonic() + _EMPTY_S
        if holder != pod:
            self.cgroups.remove(holder)
        for path, mount in zip(self.cgroups.directories(pod), self.cgroups.mounts, strict=True):
            if path in self._made or path.startswith(f"{mount}{self._default_parent}/"):
                if _removed(path, until):
                    self._made.discard(path)
                else:
                    gone = False
        return gone

    def sweep_soon(self) -> None:
        """Have the parents of pods' groups removed that are ours and empty, some seconds from now."""
        if self._sweep is None and self._parents:
            self._sweep = asyncio.get_running_loop().call_later(_LINGER_S, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweep = None
        swept = asyncio.wrap_future(self._pool.submit(self._remove_parents))
        swept.add_done_callback(lambda done: None if done.cancelled() or done.result() else self.sweep_soon())

    def _remove_parents(self) -> bool:
        """Whether it need not be tried again soon."""
        try:
            return self._parents.sweep()
        except OSError as error:
            log.warning("the groups above pods can't be removed", cause=str(error))
            return True

    async def end_pod(self, pod: str, sandbox_id: str, made: Iterable[str]) -> None:
        """Of a pod that never was recorded: ours is emptied and removed, the kubelet's group stays."""
        ours = [directory for directory in made if directory]
        if any(directory.endswith(pod) for directory in ours):
            await self.kill(pod)
            for child in self.cgroups.children(pod):
                await self.remove(child)
        elif (holder := self.of_holder(pod, sandbox_id)) != pod:
            await self.kill(holder)
        await self.remove_pod(pod, sandbox_id, ours)

    async def _run(self, call: Any, *arguments: Any) -> Any:
        """A caller who is cancelled waits for the thread all the same: his undo must not run beside it."""
        try:
            return await on_thread(self._pool, call, *arguments)
        except KernelError as error:
            if error.syscall == "write" and error.errno in _REFUSED:
                raise InvalidArgument(
                    f"a limit of the cgroup {arguments[0]} is not one that this node can set: {error}",
                    hint="ask for what the node and the pod's own group have",
                ) from error
            raise Internal(f"the cgroup {arguments[0]} is not as it should be: {error}") from error

    def close(self) -> None:
        """Ends the threads; what is empty of the parents goes at once."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._pool.submit(self._remove_parents)
        self._pool.shutdown(wait=True)


def rescore(pid: int, before: int, after: int) -> None:
    """Give a process another oom_score_adj, if it has ``before``. One that has ended is fine, and so is one that root
    may not lower here (CAP_SYS_RESOURCE), as at its start."""
    path = f"/proc/{pid}/oom_score_adj"
    try:
        with open(path) as file:
            has = int(file.read())
        if has == before:
            with open(path, "w") as file:
                file.write(str(after))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return


def _removed(directory: str, until: float) -> bool:
    """rmdir; a group whose last process is on its way out is waited for, one that others use is left."""
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return True
        except OSError:
            if _has_groups(directory) or time.monotonic() >= until:
                return False
            time.sleep(0.001)  # nothing tells when a process that has ended leaves its group
        else:
            return True


def _has_groups(directory: str) -> bool:
    """Whether groups lie below; not in one that went meanwhile: the parents of pods are removed by whoever is last."""
    try:
        with os.scandir(directory) as entries:
            return any(entry.is_dir() for entry in entries)
    except FileNotFoundError:
        return False
