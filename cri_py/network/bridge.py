"""The network that is built in: one bridge on the node, a veth pair for every pod, IPv4 and IPv6, masquerading.

An attachment costs one thread of its own and three netlink batches, no program and no fork (docs/adr/0002-netlink.md).
What is taken lives in memory and follows from the attachments that recovery adopts; the kernel holds the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial
from ipaddress import IPv6Interface, ip_address, ip_network
from typing import Any, Final

import structlog

from cri_py.config import NetworkConfig
from cri_py.errors import (
    AlreadyExists,
    ConfigError,
    CriError,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    KernelError,
    Unavailable,
)
from cri_py.model import Attachment, Condition, Sandbox
from cri_py.network import netns, nftables, pod_cidrs
from cri_py.network.bandwidth import bandwidth
from cri_py.network.ipam import Address, Interface, Network, Ranges, overlap
from cri_py.network.netlink import (
    InterfaceAddress,
    Link,
    Netlink,
    Request,
    add_address,
    add_default_route,
    filter_bridge,
    make_bridge,
    make_veth,
    remove_link,
    set_alias,
    set_master,
    set_port_up,
    set_up,
    without_link_local,
)
from cri_py.network.pins import Pins
from cri_py.network.shaping import limit
from cri_py.network.wires import Surroundings

log = structlog.get_logger()

INTERFACE: Final = "eth0"
IPV6_SMALLEST_MTU: Final = 1280  # RFC 8200 section 5; below it Linux takes IPv6 off an interface
_BRIDGE_RULES: Final = "/proc/sys/net/bridge"  # there is br_netfilter, as kube-proxy wants it
_AT_ONCE: Final = 4  # the kernel has one lock for all changes of interfaces: more threads would only queue there
_LINK_LOCAL: Final = IPv6Interface("fe80::1/64")  # of the bridge: what routes IPv6 asks for neighbours from such a one


class Bridge:
    """The pods' network of one daemon.

    ``owner`` is a text that tells this daemon from others on the node, such as its state directory; it is written on
    the bridge, and a bridge on which another owner's pods live is refused. ``memory`` is the file that keeps the pod
    CIDRs which the kubelet has told, "" for none. All methods belong to one event loop.
    """

    def __init__(self, config: NetworkConfig, netns_dir: str, owner: str, memory: str = "") -> None:
        self._config = config
        self._pins = Pins(netns_dir, owner)
        self._owner = f"cri_py {owner}"
        self._memory = memory
        told, former = pod_cidrs.load(memory) if memory else ((), ())
        self._ranges = Ranges(told or _subnets(config), former)
        self._attached: dict[str, tuple[Address, ...]] = {}  # by the pin's path, also while it is being made
        self._host_ends: dict[str, str] = {}  # the veths' names on the node, by the same
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._index = 0
        self._fault = f"the bridge {config.bridge} is not set up yet"
        self._rules_stand = False
        self._has_ipv6 = config.mtu >= IPV6_SMALLEST_MTU and os.path.exists("/proc/sys/net/ipv6")

    # ------------------------------------------------------------- the node

    async def start(self) -> None:
        """Make or adopt the bridge, let the node forward, masquerade. Idempotent; brings back what somebody removed.

        Raises FailedPrecondition if the subnet or the bridge is somebody else's, Internal if the kernel refuses.
        Without nftables pods reach each other and the node only; that is logged, not raised.
        """
        try:
            ends = tuple(self._host_ends.values())
            self._index = await netns.on_own_thread(partial(self._set_up_node, ends), _keep)
        except OSError as error:
            self._fault = f"the bridge {self._config.bridge} can't be set up: {error}"
            raise Internal(self._fault) from error
        except CriError as error:
            self._fault = str(error)
            raise
        self._fault = ""
        await self.restore_rules()

    async def stop(self) -> None:
        """Take no more pods. The bridge stays for those that live on."""
        self._index = 0
        self._fault = "the daemon is stopping"

    async def destroy(self) -> None:
        """Remove the bridge and its rules; pods that live on lose their network. Idempotent."""
        self._fault = f"the bridge {self._config.bridge} was removed"
        self._index = 0
        await netns.on_own_thread(self._remove_bridge, _keep)
        if self._has_rules:
            with contextlib.suppress(Unavailable):  # no nft, hence no rules
                await nftables.apply(nftables.removal_text(self._config.bridge))

    def condition(self) -> Condition:
        """CRI's NetworkReady."""
        if self._fault:
            return Condition("NetworkReady", False, "NetworkPluginNotReady", self._fault)
        return Condition("NetworkReady", True)

    def damage(self) -> str:
        """What somebody has removed of what :meth:`start` had made, "" if it is there. Three microseconds."""
        with contextlib.suppress(OSError):
            if socket.if_nametoindex(self._config.bridge) == self._index:
                return ""
        return f"somebody has removed the bridge {self._config.bridge}" if self._index else ""

    async def update_pod_cidr(self, cidr: str) -> None:
        """What the kubelet says the node's pods should have: from now on new ones get it, those that live keep theirs.

        Raises InvalidArgument (no CIDR, or too small), FailedPrecondition (in use on the node), Internal.
        """
        subnets = pod_cidrs.parse(cidr)
        if not subnets or subnets == self._ranges.subnets:
            return
        former = self._ranges.subnets
        try:
            self._ranges.change(subnets)
        except ConfigError as error:
            raise InvalidArgument(f"pod_cidr {cidr!r}: {error.message}", hint=error.hint) from error
        try:
            await self.start()
            if self._memory:
                pod_cidrs.save(self._memory, subnets, [each for each in self._ranges.all if each not in subnets])
        except BaseException:
            self._ranges.change(former)
            self._fault = ""
            raise
        log.info("pods get addresses of the kubelet's pod CIDR", pod_cidr=cidr)

    @property
    def tables(self) -> frozenset[str]:
        return frozenset({nftables.table_name(self._config.bridge)}) if self._has_rules else frozenset()

    async def restore_rules(self) -> None:
        """Write the rules anew, whatever is there. A failure is logged: pods reach each other all the same."""
        if self._has_rules:
            await self._write_rules()

    # ------------------------------------------------------------- the pods

    async def attach(
        self, sandbox: Sandbox, on_netns: Callable[[], None] = lambda: None, holder: int = 0
    ) -> Attachment:
        """A new network namespace, pinned, with lo, eth0 on the bridge, an address and a default route.

        ``holder``: a process that is in the namespace already; it belongs to the user namespace that it was made in.

        ``on_netns`` is called on the event loop as soon as the namespace is pinned: who only has to be in it need not
        wait for the wires.

        On failure and on cancellation nothing is left. Raises FailedPrecondition (network not ready), InvalidArgument
        (bandwidth annotations), AlreadyExists, ResourceExhausted (no address), Internal (the kernel refused).
        """
        if self._fault:
            raise FailedPrecondition(f"no network for {sandbox.id}: {self._fault}")
        bandwidth(sandbox.config.annotations)  # a wrong one is the pod's fault, and told before anything is made
        own = self._ranges.take()
        loop = asyncio.get_running_loop()
        told = partial(loop.call_soon_threadsafe, on_netns)
        try:
            made = await self._make(sandbox, own, partial(self._attach_here, sandbox, own, told, holder))
        except BaseException:
            self._ranges.release(address.ip for address in own)
            raise
        self._host_ends[made.netns_path] = made.host_interface
        return made

    async def detach(self, attachment: Attachment) -> None:
        """Let go of the namespace and of its addresses; its veth goes with its last process. Idempotent.

        Runs where it is called: 0.02 ms, seldom half a millisecond.
        """
        try:
            netns.unpin(attachment.netns_path)
        except KernelError as error:
            raise Internal(f"the network namespace {attachment.netns_path} can't be removed: {error}") from error
        # Only what this attachment holds: after a second detach its addresses may be another pod's.
        self._ranges.release(self._attached.pop(attachment.netns_path, ()))
        self._host_ends.pop(attachment.netns_path, None)

    def adopt(self, attachment: Attachment) -> bool:
        """Take over an attachment that an earlier daemon made: its address is taken.

        Returns whether the namespace is still pinned; after a reboot it is not, and :meth:`detach` is all that is left.
        """
        self._attached[attachment.netns_path] = self._ranges.reserve(map(ip_address, attachment.ips))
        self._host_ends[attachment.netns_path] = attachment.host_interface
        return netns.is_pinned(attachment.netns_path)

    async def sweep(self, known: Set[str]) -> list[str]:
        """Remove the pinned namespaces that are neither in ``known`` nor attached here; returns their names.

        Pods whose bridge was removed while no daemon ran are its ports again.
        """

        def removed() -> list[str]:
            with Netlink() as node:
                self._rejoin(node, ends, index)
            return [os.path.basename(path) for path in self._pins.strange(kept, known) if netns.unpin(path)]

        kept, ends, index = frozenset(self._attached), tuple(self._host_ends.values()), self._index
        try:
            return await netns.on_own_thread(removed, _keep)
        except KernelError as error:
            raise Internal(f"{self._pins.directory} can't be cleared of what an earlier run left: {error}") from error

    # ---------------------------------------------------------- on a thread

    def _attach_here(
        self, sandbox: Sandbox, own: tuple[Interface, ...], on_netns: Callable[[], object], holder: int
    ) -> Attachment:
        """Runs on a thread of its own; what fails after the pin goes with it, the veth pair too."""
        pin = self.pin_of(sandbox)
        host_end = f"veth{secrets.token_hex(5)}"
        isolated, limits = self._isolates_ports, bandwidth(sandbox.config.annotations)
        with Netlink() as node:
            if holder:
                netns.enter_that_of(holder, pin)
            else:
                netns.enter_new(pin)
            try:
                on_netns()
                if _has_version(own, 6):
                    _listen_to_no_router()
                # The thread is in the pod's namespace by now, so its id names that namespace.
                veth = make_veth(
                    host_end,
                    INTERFACE,
                    bridge=self._index,
                    netns_of=threading.get_native_id(),
                    mac=mac_of(own[0].ip),
                    mtu=self._config.mtu,
                )
                node.request(veth, *plan_host_end(host_end, has_ipv6=self._has_ipv6, isolated=isolated))
                with Netlink() as pod:
                    ways = [(address, self._ranges.gateway_of(address)) for address in own]
                    index = pod.index_of(INTERFACE)
                    pod.request(*plan_pod_end(index, ways, has_ipv6=self._has_ipv6))
                    if limits.egress:
                        pod.request(limit(index, INTERFACE, limits.egress))
                if limits.ingress:  # what the node's end sends
                    node.request(limit(node.index_of(host_end), host_end, limits.ingress))
            except BaseException:
                netns.unpin(pin)
                raise
        return Attachment(pin, tuple(str(address.ip) for address in own), INTERFACE, host_end)

    def _set_up_node(self, ends: Sequence[str]) -> int:
        self._pins.make_directory()
        with Netlink() as node:
            link = node.find_link(self._config.bridge)
            if link is not None:
                self._refuse_strangers(link, node.links())
            missing = self._missing_addresses(node, link)
            if link is None:
                node.request(make_bridge(self._config.bridge, mac_of(self._ranges.gateways[0].ip), self._config.mtu))
            index = link.index if link else node.index_of(self._config.bridge)
            if missing:
                node.request(*(add_address(index, address, self._config.bridge) for address in missing))
            link = node.find_link(self._config.bridge)
            if link is None:
                raise Internal(f"the bridge {self._config.bridge} was removed while it was set up", hint="start again")
            node.request(set_alias(link.index, link.name, self._owner), set_up(link.name))
            if self._config.isolate_pods and os.path.exists(_BRIDGE_RULES):
                node.request(filter_bridge(link.index, link.name))
            self._rejoin(node, ends, link.index)
        for version in {subnet.version for subnet in self._ranges.all}:
            _enable_forwarding(version)
        return link.index

    def _rejoin(self, node: Netlink, ends: Sequence[str], bridge: int) -> None:
        """Make pods' veths ports of the bridge again: of one that is removed, all ports are let go."""
        lost = [link for link in node.links() if link.name in ends and link.master != bridge] if ends else []
        for link in lost:
            up = set_port_up(link.name, isolated=self._isolates_ports)
            try:
                node.request(set_master(link.index, link.name, bridge), up)
            except KernelError as error:  # its pod has just ended
                log.warning("a pod is not connected to the bridge again", interface=link.name, cause=str(error))

    def _refuse_strangers(self, link: Link, links: list[Link]) -> None:
        if link.kind != "bridge":
            raise FailedPrecondition(f"{link.name} exists and is not a bridge", hint="name another network.bridge")
        used = any(other.master == link.index for other in links)
        if used and link.alias not in {"", self._owner}:
            raise FailedPrecondition(
                f"the bridge {link.name} carries pods of another daemon ({link.alias})",
                hint="name another network.bridge and network.subnet",
            )

    def _missing_addresses(self, node: Netlink, link: Link | None) -> list[Interface]:
        """What the bridge still needs. Raises FailedPrecondition if a subnet is in use elsewhere."""
        wanted = [*self._ranges.gateways]
        if _has_version(wanted, 6):
            if not self._has_ipv6:
                raise FailedPrecondition("an IPv6 subnet is asked for, but this node has no IPv6, or too small an MTU")
            wanted.append(_LINK_LOCAL)
        addresses = node.addresses()
        held = [other.interface for other in addresses if link is not None and other.index == link.index]
        for version in {address.version for address in wanted}:
            _refuse_another_subnet(self._config.bridge, version, held, wanted)
        for other in addresses:
            if link is None or other.index != link.index:
                self._refuse_overlap(node, other)
        return [address for address in wanted if address not in held]

    def _refuse_overlap(self, node: Netlink, other: InterfaceAddress) -> None:
        for subnet in self._ranges.all:
            if overlap(subnet, other.interface.network):
                name = next((at.name for at in node.links() if at.index == other.index), str(other.index))
                raise FailedPrecondition(
                    f"network.subnet {subnet} overlaps {other.interface} of the interface {name}",
                    hint="give network.subnet a range that the node does not use",
                )

    def _remove_bridge(self) -> None:
        with Netlink() as node:
            link = node.find_link(self._config.bridge)
            if link is not None and link.kind == "bridge":
                node.request(remove_link(link.index, link.name))

    # ------------------------------------------------------ what both share

    async def _make(self, sandbox: Sandbox, own: tuple[Interface, ...], work: Callable[[], Attachment]) -> Attachment:
        pin = self.pin_of(sandbox)
        if pin in self._attached:
            raise AlreadyExists(f"{sandbox.id} has a network already", hint="detach it first")
        self._attached[pin] = tuple(address.ip for address in own)
        try:
            async with self._turns:
                return await netns.on_own_thread(work, lambda made: _unpin(made.netns_path))
        except KernelError as error:
            del self._attached[pin]
            raise Internal(
                f"the network of {sandbox.id} can't be set up: {error}",
                hint=f"if the bridge {self._config.bridge} was removed meanwhile, the next try makes it anew",
            ) from error
        except BaseException:
            del self._attached[pin]
            raise

    @property
    def _has_rules(self) -> bool:
        return self._config.masquerade or self._config.isolate_pods

    @property
    def _isolates_ports(self) -> bool:
        """Whether the bridge itself keeps pods apart. Where rules see what passes it, they do, and must alone: such a
        kernel sends what a host port or a service has led to a pod's neighbour right on from port to port."""
        return self._config.isolate_pods and not (self._rules_stand and os.path.exists(_BRIDGE_RULES))

    async def _write_rules(self) -> None:
        self._rules_stand = False
        try:
            await nftables.apply(self._rules())
            self._rules_stand = True
        except CriError as error:
            log.warning(
                "no masquerading and no isolation: pods reach each other and the node, but nothing beyond it",
                bridge=self._config.bridge,
                error=error.message,
                remedy=error.hint,
            )

    def _rules(self) -> str:
        masquerade = nftables.masquerade_text(self._config.bridge, self._ranges.all) if self._config.masquerade else ""
        return masquerade + (nftables.isolation_text(self._config.bridge) if self._config.isolate_pods else "")

    def surroundings(self, attachment: Attachment) -> Surroundings:
        """How the node reaches a pod."""
        return Surroundings(self._config.bridge, self._ranges.all)

    def result(self, attachment: Attachment) -> dict[str, Any] | None:
        """As the bridge plugin of CNI would have answered."""
        own = [self._ranges.in_subnet(ip_address(ip)) for ip in attachment.ips]
        gateways = [str(self._ranges.gateway_of(address)) for address in own]
        return {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": self._config.bridge},
                {"name": attachment.host_interface},
                {"name": attachment.interface, "sandbox": attachment.netns_path},
            ],
            "ips": [
                {"address": str(address), "gateway": gateway, "interface": 2}
                for address, gateway in zip(own, gateways, strict=True)
            ],
            "routes": [{"dst": "::/0" if ":" in gateway else "0.0.0.0/0", "gw": gateway} for gateway in gateways],
        }

    def verbose(self) -> dict[str, str]:
        return {}

    def pin_of(self, sandbox: Sandbox) -> str:
        """Where the namespace of a pod is pinned."""
        return self._pins.path_of(sandbox)


def plan_host_end(name: str, *, has_ipv6: bool, isolated: bool = False) -> list[Request]:
    """What a new veth's end on the node needs."""
    return [*([without_link_local(name)] if has_ipv6 else []), set_port_up(name, isolated=isolated)]


def plan_pod_end(index: int, ways: Sequence[tuple[Interface, Address]], *, has_ipv6: bool) -> list[Request]:
    """What a new pod's namespace needs: lo, and eth0, which has ``index``, with its addresses and for each the way out.

    With IPv6 it has a link-local address, too, that ends as the other does: it then is in no further multicast group.
    """
    addresses = [add_address(index, own, INTERFACE) for own, _ in ways]
    local = [add_address(index, _link_local(own), INTERFACE) for own, _ in ways if own.version == 6]
    return [
        set_up("lo"),
        *([without_link_local(INTERFACE)] if has_ipv6 else []),
        set_up(INTERFACE),
        *addresses,
        *local,
        *(add_default_route(index, gateway) for _, gateway in ways),
    ]


def mac_of(address: Address) -> bytes:
    """A locally administered MAC that follows from the address: who gets the address again has the same one, and what
    neighbours remember stays true."""
    return b"\x0a\xc1" + address.packed[-4:]


def _link_local(own: Interface) -> IPv6Interface:
    return IPv6Interface((b"\xfe\x80" + bytes(6) + own.ip.packed[-8:], 64))


def _subnets(config: NetworkConfig) -> tuple[Network, ...]:
    """What the configuration gives pods."""
    try:
        return tuple(ip_network(text) for text in (config.subnet, config.subnet6) if text)
    except ValueError as error:
        raise ConfigError(f"network.subnet is no range: {error}", hint="e.g. 10.85.0.0/16") from error


def _has_version(addresses: Iterable[Interface], version: int) -> bool:
    return any(address.version == version for address in addresses)


def _refuse_another_subnet(bridge: str, version: int, held: Sequence[Interface], wanted: Sequence[Interface]) -> None:
    """A bridge that has addresses, and none of those that it should, serves pods of another subnet."""
    found = [address for address in held if address.version == version and not address.is_link_local]
    own = [address for address in wanted if address.version == version and not address.is_link_local]
    if found and not set(found) & set(own):
        raise FailedPrecondition(
            f"the bridge {bridge} has {found[0]}, network.subnet asks for {own[0]}",
            hint=f"set network.subnet back, or remove all pods and then: ip link delete {bridge}",
        )


def _enable_forwarding(version: int) -> None:
    name = "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"
    with open(f"/proc/sys/{name}", "rb") as current:
        if current.read().strip() != b"0":
            return
    if version == 6:
        _keep_listening_to_routers()
    netns.write_sysctl(name, b"1")


def _keep_listening_to_routers() -> None:
    """A node that forwards takes no routes from routers unless told to (accept_ra 2): one with SLAAC would lose its."""
    for name in os.listdir("/proc/sys/net/ipv6/conf"):
        path = f"net/ipv6/conf/{name}/accept_ra"
        with contextlib.suppress(FileNotFoundError):  # an interface that has just gone
            with open(f"/proc/sys/{path}", "rb") as current:
                listens = current.read().strip() == b"1"
            if listens and name != "all":
                netns.write_sysctl(path, b"2")


def _listen_to_no_router() -> None:
    """For the namespace that the thread is in: the pod's routes are set here, so it need not ask for them."""
    netns.write_sysctl("net/ipv6/conf/default/accept_ra", b"0")


def _unpin(path: str) -> None:
    netns.unpin(path)


def _keep(_: object) -> None:
    """The undo of what may stay."""
