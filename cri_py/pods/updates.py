"""New resources for what is there: UpdateContainerResources and UpdatePodSandboxResources.

The kernel is changed first, then the record; what can't be recorded is taken back, so that what is reported is always
what holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace

from cri_py.model import Container, ContainerId, Created, LinuxResources, Running
from cri_py.pods import spec, spec_limits
from cri_py.pods.groups import Groups
from cri_py.pods.ledger import Ledger


class Updates:
    """In-place resizes."""

    def __init__(self, ledger: Ledger, groups: Groups, forget: Callable[[ContainerId], None]) -> None:
        """``forget``: is called for a container whose next execs are to inherit something else."""
        self._ledger = ledger
        self._groups = groups
        self._forget = forget

    async def container(self, container_id: str, asked: LinuxResources) -> None:
        """Change the limits of a container; what is not asked for stays.

        Of one that has ended only the record changes. Raises NotFound, InvalidArgument, FailedPrecondition
        (memory below what is in use).
        """
        spec_limits.validate_resources(asked)
        found = self._ledger.container(container_id)
        async with self._ledger.lock(found.id):
            container = self._ledger.container(found.id)
            resources = merged(container.resources or LinuxResources(), asked)
            spec_limits.validate_resources(resources)
            await self._change(container, resources)

    async def _change(self, container: Container, resources: LinuxResources) -> None:
        limits = spec.linux_resources(resources)
        was, score = (container.resources or LinuxResources()).oom_score_adj, resources.oom_score_adj
        async with AsyncExitStack() as undo:
            if isinstance(container.state, Created | Running):
                before = await self._groups.change(container.cgroup, limits)
                undo.push_async_callback(self._groups.take_back, before)
                if score != was:
                    await self._groups.rescore(container.cgroup, was, score)
                    undo.push_async_callback(self._groups.rescore, container.cgroup, score, was)
            await self._ledger.put_container(replace(container, resources=resources), past=False)
            undo.pop_all()
        self._forget(container.id)

    async def sandbox(self, sandbox_id: str, overhead: LinuxResources | None, resources: LinuxResources | None) -> None:
        """Record what the pod has now. Its group is the kubelet's, who has changed it before it tells."""
        for asked in (overhead, resources):
            spec_limits.validate_resources(asked)
        found = self._ledger.sandbox(sandbox_id)
        async with self._ledger.lock(found.id):
            sandbox = self._ledger.sandbox(found.id)
            changed = replace(sandbox, overhead=overhead or sandbox.overhead, resources=resources or sandbox.resources)
            await self._ledger.put_sandbox(changed)


def merged(current: LinuxResources, asked: LinuxResources) -> LinuxResources:
    """``current`` with what is asked for: 0 and "" ask for nothing, and so does a size of pages that isn't named.

    A container whose limit of memory with swap is its memory limit, that is without swap, stays so.
    """
    names = (
        *("cpu_period", "cpu_quota", "cpu_shares", "cpuset_cpus", "cpuset_mems", "oom_score_adj"),
        *("memory_limit_in_bytes", "memory_swap_limit_in_bytes"),
    )
    given = {name: value for name in names if (value := getattr(asked, name))}
    swapless = current.memory_swap_limit_in_bytes == current.memory_limit_in_bytes
    if "memory_limit_in_bytes" in given and "memory_swap_limit_in_bytes" not in given and swapless:
        given["memory_swap_limit_in_bytes"] = (
            given["memory_limit_in_bytes"] if current.memory_swap_limit_in_bytes else 0
        )
    pages = {each.page_size: each for each in (*current.hugepage_limits, *asked.hugepage_limits)}
    return replace(
        current, **given, hugepage_limits=tuple(pages.values()), unified={**current.unified, **asked.unified}
    )
