"""Host ports: which pod has which, and the rules of the node that lead to them.

A port is claimed before the pod is made, so that of two pods the second is refused by the name of the first. All rules
are one nft table, replaced as a whole by every change; changes that come together share one run of nft.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

import structlog

from cri_py.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, KernelError
from cri_py.model import PortMapping
from cri_py.network import netns, nftables
from cri_py.network.conntrack import forget_udp
from cri_py.network.port_rules import Opening, ports_removal_text, ports_table_name, ports_text

log = structlog.get_logger()

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_BOTH: Final = frozenset({4, 6})


@dataclass(frozen=True, slots=True)
class HostPort:
    """A mapping as it counts here: in which families, and at which address of the node (None: at each)."""

    protocol: str
    port: int
    pod_port: int
    address: Address | None
    versions: frozenset[int]

    def meets(self, other: HostPort) -> bool:
        """Whether one connection could be meant for both."""
        if (self.protocol, self.port) != (other.protocol, other.port) or not self.versions & other.versions:
            return False
        return self.address is None or other.address is None or self.address == other.address

    def __str__(self) -> str:
        at = "" if self.address is None else f" of {self.address}"
        return f"host port {self.port}/{self.protocol}{at}"


@dataclass(frozen=True, slots=True)
class _Claim:
    owner: str
    ports: tuple[HostPort, ...]


@dataclass(frozen=True, slots=True)
class _Open:
    openings: tuple[Opening, ...]
    networks: tuple[Network, ...]
    interface: str


def host_ports(mappings: Iterable[PortMapping]) -> tuple[HostPort, ...]:
    """The mappings that have a host port; those said twice but once. Pure.

    Raises InvalidArgument for what no rule can do, and where two of them would meet.
    """
    ports: list[HostPort] = []
    for mapping in mappings:
        if not mapping.host_port:
            continue
        port = _host_port(mapping)
        for other in ports:
            if other.meets(port) and other != port:
                raise InvalidArgument(
                    f"port_mappings has {port} to two container ports, {other.pod_port} and {port.pod_port}",
                    hint="give every port_mappings entry a host_port, or a host_ip, of its own",
                )
        if port not in ports:
            ports.append(port)
    return tuple(ports)


class HostPorts:
    """The host ports of one daemon's pods. ``bridge`` names its table. All methods belong to one event loop."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self._claims: dict[str, _Claim] = {}
        self._open: dict[str, _Open] = {}
        self._one_by_one = asyncio.Lock()
        self._wanted = 0  # counts changes; the rules are as of change number _applied
        self._applied = 0

    @property
    def table(self) -> str:
        """The name of the nft table, which is there as long as a port is open."""
        return ports_table_name(self._bridge)

    @property
    def are_open(self) -> bool:
        return bool(self._open)

    def claim(self, name: str, owner: str, mappings: Iterable[PortMapping]) -> None:
        """Take a pod's host ports, which no other may have until :meth:`close`. Raises AlreadyExists, InvalidArgument.

        ``owner`` is what others are told.
        """
        ports = host_ports(mappings)
        for port in ports:
            for other, claim in self._claims.items():
                if other != name and any(port.meets(held) for held in claim.ports):
                    raise AlreadyExists(
                        f"{port} is taken by {claim.owner}", hint=f"remove that pod, or give {owner} another host port"
                    )
        if ports:
            self._claims[name] = _Claim(owner, ports)

    async def open(self, name: str, ips: Sequence[str], networks: Iterable[Network], interface: str) -> None:
        """Lead the claimed ports of ``name`` to its addresses, which the node reaches by ``interface``.

        ``networks`` are those of the pods. Raises FailedPrecondition (no address of the port's family), Unavailable
        and DeadlineExceeded (nft); :meth:`close` is then for the caller.
        """
        if name not in self._claims:
            return
        openings = self._openings(name, [ip_address(ip) for ip in ips])
        self._open[name] = _Open(openings, tuple(networks), interface)
        self._wanted += 1
        await self._apply()
        numbers = {opening.host_port for opening in openings if opening.protocol == "udp"}
        if numbers:
            await netns.on_own_thread(lambda: _forget(numbers), lambda _: None)

    def adopt(self, name: str, ips: Sequence[str], networks: Iterable[Network], interface: str) -> None:
        """What an earlier daemon opened; the rules stay as they are until :meth:`restore`."""
        if name in self._claims:
            self._open[name] = _Open(self._openings(name, [ip_address(ip) for ip in ips]), tuple(networks), interface)

    async def close(self, name: str) -> None:
        """Give the ports of ``name`` back, and let no rule lead to it. Idempotent.

        Raises Unavailable, DeadlineExceeded, as long as nft does not do it: a rule that stays would lead to the next
        pod of that address.
        """
        if self._open.pop(name, None) is not None:
            self._wanted += 1
        try:
            await self._apply()
        finally:
            self._claims.pop(name, None)

    async def restore(self) -> None:
        """Write the rules anew, whatever is there. Raises Unavailable, DeadlineExceeded."""
        self._wanted += 1
        await self._apply()

    async def remove(self) -> None:
        """Remove the table; pods that live on lose their host ports."""
        self._open.clear()
        await self.restore()

    # ------------------------------------------------------------ the rules

    def _openings(self, name: str, ips: Sequence[Address]) -> tuple[Opening, ...]:
        claim = self._claims[name]
        openings: list[Opening] = []
        for port in claim.ports:
            chosen = {ip.version: ip for ip in reversed(ips) if ip.version in port.versions}  # the first of each family
            if not chosen:
                raise FailedPrecondition(
                    f"{port} leads nowhere: {claim.owner} has no IPv{min(port.versions)} address",
                    hint="leave host_ip out, or name one of the other family",
                )
            openings += [Opening(port.protocol, port.address, port.port, ip, port.pod_port) for ip in chosen.values()]
        return tuple(openings)

    async def _apply(self) -> None:
        """Bring the node's rules to what is wanted now; who waits meanwhile finds it done."""
        mine = self._wanted
        async with self._one_by_one:
            if self._applied >= mine:
                return
            now = self._wanted
            interfaces = sorted({each.interface for each in self._open.values()})
            await nftables.apply(self._text(interfaces))
            for interface in interfaces:  # only now, as the rules keep pods from what listens there
                _route_loopback(interface)
            self._applied = now

    def _text(self, interfaces: Sequence[str]) -> str:
        opened = self._open.values()
        if not opened:
            return ports_removal_text(self._bridge)
        openings = [opening for each in opened for opening in each.openings]
        networks = {network for each in opened for network in each.networks}
        return ports_text(self._bridge, openings, sorted(networks, key=str), interfaces)


def _host_port(mapping: PortMapping) -> HostPort:
    protocol = mapping.protocol.name.lower()
    if not mapping.container_port:
        raise InvalidArgument(
            f"port_mappings.host_port {mapping.host_port} leads to no container_port", hint="give both"
        )
    if not mapping.host_ip:
        return HostPort(protocol, mapping.host_port, mapping.container_port, None, _BOTH)
    try:
        address = ip_address(mapping.host_ip)
    except ValueError:
        raise InvalidArgument(
            f"port_mappings.host_ip {mapping.host_ip!r} is no IP address", hint='e.g. 192.0.2.1, or "" for all'
        ) from None
    if address.version == 6 and address.is_loopback:
        raise InvalidArgument(
            f"port_mappings.host_ip {address} can't lead to a pod: the kernel routes ::1 nowhere",
            hint="use 127.0.0.1, or another address of the node",
        )
    versions = frozenset({address.version})
    at = None if address.is_unspecified else address
    return HostPort(protocol, mapping.host_port, mapping.container_port, at, versions)


def _route_loopback(interface: str) -> None:
    """Let the node's own connections to 127.0.0.1 leave by this interface. It is gone with the interface."""
    if not os.path.exists(f"/proc/sys/net/ipv4/conf/{interface}"):
        return  # removed by hand, or a pod's own that has just gone: nothing can leave by it
    try:
        netns.write_sysctl(f"net/ipv4/conf/{interface}/route_localnet", b"1")
    except KernelError as error:
        raise Internal(f"127.0.0.1 can't be led to pods by {interface}: {error}") from error


def _forget(ports: set[int]) -> None:
    """A client that keeps asking from one UDP port is one connection to the kernel, with the translation that it had.

    So it would go on to the pod before, or to nobody, for as long as it asks.
    """
    try:
        forget_udp(ports)
    except KernelError as error:
        log.warning(
            "clients of a UDP host port may go on to where it led before", ports=sorted(ports), cause=str(error)
        )
