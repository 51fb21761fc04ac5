"""What pods are attached by: the wires (the built-in bridge), and on top of them the host ports that they ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from typing import Any

import structlog

from cri_py import telemetry
from cri_py.errors import CriError
from cri_py.model import Attachment, Condition, Sandbox, SandboxConfig
from cri_py.network.flushes import Flushes
from cri_py.network.hostports import HostPorts
from cri_py.network.wires import Wires

log = structlog.get_logger()


class PodNetwork:
    """The network of one daemon's pods. All methods belong to one event loop."""

    def __init__(self, wires: Wires, ports: HostPorts) -> None:
        self._wires = wires
        self._ports = ports
        self._one_mends = asyncio.Lock()
        self._mending: asyncio.Task[None] | None = None
        self._flushes = Flushes(wires.tables | {ports.table}, self._restore)

    async def start(self) -> None:
        """Make the node ready for pods. Raises as the wires do."""
        await self._wires.start()

    async def stop(self) -> None:
        """Take no more pods; those that are there keep their network."""
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.wait({self._mending})
        await self._flushes.stop()
        await self._wires.stop()

    def condition(self) -> Condition:
        """CRI's NetworkReady. What somebody has removed is brought back soon, for the pods that are there."""
        if self._wires.damage() and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self._mend_for_all())
        return self._wires.condition()

    async def update_pod_cidr(self, cidr: str) -> None:
        """What the kubelet says the node's pods should have."""
        await self._wires.update_pod_cidr(cidr)

    def verbose(self) -> dict[str, str]:
        """What ``crictl info`` shows of the network."""
        return self._wires.verbose()

    def pin_of(self, sandbox: Sandbox) -> str:
        """Where the namespace of a sandbox is pinned."""
        return self._wires.pin_of(sandbox)

    def result(self, sandbox: Sandbox) -> dict[str, Any] | None:
        """A pod's network in the form of a CNI result; None on the host's network."""
        return self._wires.result(sandbox.attachment) if sandbox.attachment else None

    @telemetry.timed(telemetry.NETWORK_SECONDS, telemetry.NETWORK_ERRORS, "attach")
    async def attach(self, sandbox: Sandbox, on_netns: Callable[[], None], holder: int = 0) -> Attachment:
        """A namespace with a network for a pod that is not on the host's, and its host ports.

        ``on_netns`` is called as soon as the namespace is pinned. ``holder``: a process that is in it already, of a pod
        with a user namespace. On failure and on cancellation nothing is left.
        Raises AlreadyExists (a host port is another pod's, who is named), InvalidArgument, Unavailable and
        DeadlineExceeded (nft), and as the wires do.
        """
        if self._wires.damage():
            await self._mend()
        if not _has_host_ports(sandbox.config):
            return await self._wires.attach(sandbox, on_netns, holder)
        self._ports.claim(sandbox.id, _owner(sandbox.config), sandbox.config.port_mappings)
        attachment = None
        try:
            attachment = await self._wires.attach(sandbox, on_netns, holder)
            around = self._wires.surroundings(attachment)
            if around is not None:
                await self._ports.open(sandbox.id, attachment.ips, around.networks, around.interface)
        except BaseException:
            await self._undo(sandbox, attachment)
            raise
        return attachment

    @telemetry.timed(telemetry.NETWORK_SECONDS, telemetry.NETWORK_ERRORS, "detach")
    async def detach(self, sandbox: Sandbox) -> None:
        """Close a pod's host ports and let go of its namespace and addresses. Idempotent.

        Raises Unavailable and DeadlineExceeded (nft), before its address is another's; and as the wires do.
        """
        if sandbox.attachment is None:
            return
        if _has_host_ports(sandbox.config):
            await self._ports.close(sandbox.id)
        await self._wires.detach(sandbox.attachment)

    def adopt(self, sandbox: Sandbox) -> bool:
        """Take over what an earlier daemon attached. Returns whether its namespace is still there."""
        if sandbox.attachment is None:
            return False
        is_there = self._wires.adopt(sandbox.attachment)
        if is_there and _has_host_ports(sandbox.config):
            around = self._wires.surroundings(sandbox.attachment)
            try:
                self._ports.claim(sandbox.id, _owner(sandbox.config), sandbox.config.port_mappings)
                if around is not None:
                    self._ports.adopt(sandbox.id, sandbox.attachment.ips, around.networks, around.interface)
            except CriError as error:  # made by a version with other rules: its pod is there all the same
                log.warning("host ports of a pod are lost", sandbox=sandbox.id, cause=str(error))
        return is_there

    async def sweep(self, known: Set[str]) -> list[str]:
        """Remove what no sandbox of ``known`` has, host ports too; the names of the namespaces that went.

        From then on rules that somebody else removes are restored.
        """
        try:
            await self._ports.restore()
        except CriError as error:
            log.warning("host ports don't work", error=error.message, remedy=error.hint)
        self._flushes.start()
        return await self._wires.sweep(known)

    async def _mend(self) -> None:
        """Bring back what somebody has removed. Raises as the wires' start does."""
        async with self._one_mends:
            damage = self._wires.damage()
            if not damage:
                return  # somebody else was faster
            log.warning("the pods' network is mended", cause=damage)
            await self._wires.start()
            if self._ports.are_open:
                await self._ports.restore()

    async def _mend_for_all(self) -> None:
        try:
            await self._mend()
        except CriError as error:  # NetworkReady tells it from now on
            log.warning("the pods' network can't be mended", error=error.message, remedy=error.hint)

    async def _restore(self, tables: Set[str]) -> None:
        """Write rules anew that somebody else has removed."""
        try:
            if tables & self._wires.tables:
                log.warning("somebody removed rules of the pods' network; they are written anew", tables=sorted(tables))
                await self._wires.restore_rules()
            if self._ports.table in tables and self._ports.are_open:
                log.warning("somebody removed rules of host ports; they are written anew", tables=sorted(tables))
                await self._ports.restore()
        except CriError as error:
            log.warning("rules that somebody removed are not restored", error=error.message, remedy=error.hint)

    async def _undo(self, sandbox: Sandbox, attachment: Attachment | None) -> None:
        try:
            await self._ports.close(sandbox.id)
        except CriError as error:  # the next run of nft writes all rules anew, and without these
            log.warning("host ports are still open", sandbox=sandbox.id, cause=str(error))
        if attachment is not None:
            await self._wires.detach(attachment)


def _has_host_ports(config: SandboxConfig) -> bool:
    return any(mapping.host_port for mapping in config.port_mappings)


def _owner(config: SandboxConfig) -> str:
    return f"pod {config.metadata.namespace}/{config.metadata.name}"
