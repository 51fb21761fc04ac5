"""The network that is built in: one bridge on the node, a veth pair for every pod, IPv4, masquerading.

An attachment costs one thread of its own and three netlink batches, no program and no fork (docs/adr/0002-netlink.md).
What is taken lives in memory and follows from the attachments that recovery adopts; the kernel holds the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Set
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, Final

import structlog

from cri_py.config import NetworkConfig
from cri_py.errors import AlreadyExists, ConfigError, CriError, FailedPrecondition, Internal, KernelError, Unavailable
from cri_py.model import Attachment, Condition, Sandbox
from cri_py.network import netns, nftables
from cri_py.network.ipam import AddressPool
from cri_py.network.netlink import (
    Link,
    Netlink,
    Request,
    add_address,
    add_default_route,
    make_bridge,
    make_veth,
    remove_link,
    set_alias,
    set_port_up,
    set_up,
    without_link_local,
)
from cri_py.network.pins import Pins
from cri_py.network.wires import Surroundings

log = structlog.get_logger()

INTERFACE: Final = "eth0"
IPV6_SMALLEST_MTU: Final = 1280  # RFC 8200 section 5; below it Linux takes IPv6 off an interface
_AT_ONCE: Final = 4  # the kernel has one lock for all changes of interfaces: more threads would only queue there
_FORWARD: Final = "/proc/sys/net/ipv4/ip_forward"


class Bridge:
    """The pods' network of one daemon.

    ``owner`` is a text that tells this daemon from others on the node, such as its state directory; it is written on
    the bridge, and a bridge on which another owner's pods live is refused. All methods belong to one event loop.
    """

    def __init__(self, config: NetworkConfig, netns_dir: str, owner: str) -> None:
        self._config = config
        self._pins = Pins(netns_dir, owner)
        self._owner = f"cri_py {owner}"
        self._pool = AddressPool(_subnet(config.subnet))
        self._attached: dict[str, IPv4Address | None] = {}  # by the pin's path, also while it is being made
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._index = 0
        self._fault = f"the bridge {config.bridge} is not set up yet"
        self._has_ipv6 = config.mtu >= IPV6_SMALLEST_MTU and os.path.exists("/proc/sys/net/ipv6")

    # ------------------------------------------------------------- the node

    async def start(self) -> None:
        """Make or adopt the bridge, let the node forward, masquerade. Idempotent.

        Raises FailedPrecondition if the subnet or the bridge is somebody else's, Internal if the kernel refuses.
        Without nftables pods reach each other and the node only; that is logged, not raised.
        """
        try:
            self._index = await netns.on_own_thread(self._set_up_node, _keep)
        except OSError as error:
            self._fault = f"the bridge {self._config.bridge} can't be set up: {error}"
            raise Internal(self._fault) from error
        except CriError as error:
            self._fault = str(error)
            raise
        self._fault = ""
        if self._config.masquerade:
            await self._masquerade()

    async def stop(self) -> None:
        """Take no more pods. The bridge stays for those that live on."""
        self._fault = "the daemon is stopping"

    async def destroy(self) -> None:
        """Remove the bridge and its rules; pods that live on lose their network. Idempotent."""
        self._fault = f"the bridge {self._config.bridge} was removed"
        await netns.on_own_thread(self._remove_bridge, _keep)
        if self._config.masquerade:
            with contextlib.suppress(Unavailable):  # no nft, hence no rules
                await nftables.apply(nftables.removal_text(self._config.bridge))

    def condition(self) -> Condition:
        """CRI's NetworkReady."""
        if self._fault:
            return Condition("NetworkReady", False, "NetworkPluginNotReady", self._fault)
        return Condition("NetworkReady", True)

    async def update_pod_cidr(self, cidr: str) -> None:
        """What the kubelet says the node's pods should have. The subnet of the configuration counts; that is logged."""
        if cidr != self._config.subnet:
            log.warning(
                "pod CIDR of the kubelet ignored: the built-in network uses network.subnet",
                pod_cidr=cidr,
                subnet=self._config.subnet,
            )

    # ------------------------------------------------------------- the pods

    async def attach(
        self, sandbox: Sandbox, on_netns: Callable[[], None] = lambda: None, holder: int = 0
    ) -> Attachment:
        """A new network namespace, pinned, with lo, eth0 on the bridge, an address and a default route.

        ``holder``: a process that is in the namespace already; it belongs to the user namespace that it was made in.

        ``on_netns`` is called on the event loop as soon as the namespace is pinned: who only has to be in it need not
        wait for the wires.

        On failure and on cancellation nothing is left. Raises FailedPrecondition (network not ready), AlreadyExists,
        ResourceExhausted (no address), Internal (the kernel refused).
        """
        if self._fault:
            raise FailedPrecondition(f"no network for {sandbox.id}: {self._fault}")
        address = self._pool.take()
        loop = asyncio.get_running_loop()
        told = partial(loop.call_soon_threadsafe, on_netns)
        try:
            return await self._make(sandbox, address, partial(self._attach_here, sandbox, address, told, holder))
        except BaseException:
            self._pool.release(address)
            raise

    async def detach(self, attachment: Attachment) -> None:
        """Let go of the namespace and of its addresses; its veth goes with its last process. Idempotent.

        Runs where it is called: 0.02 ms, seldom half a millisecond.
        """
        try:
            netns.unpin(attachment.netns_path)
        except KernelError as error:
            raise Internal(f"the network namespace {attachment.netns_path} can't be removed: {error}") from error
        # Only what this attachment holds: after a second detach its address may be another pod's.
        address = self._attached.pop(attachment.netns_path, None)
        if address is not None:
            self._pool.release(address)

    def adopt(self, attachment: Attachment) -> bool:
        """Take over an attachment that an earlier daemon made: its address is taken.

        Returns whether the namespace is still pinned; after a reboot it is not, and :meth:`detach` is all that is left.
        """
        address = next((IPv4Address(ip) for ip in attachment.ips), None)
        self._pool.reserve([address] if address else [])
        self._attached[attachment.netns_path] = address if address and address in self._pool else None
        return netns.is_pinned(attachment.netns_path)

    async def sweep(self, known: Set[str]) -> list[str]:
        """Remove the pinned namespaces that are neither in ``known`` nor attached here; returns their names."""

        def removed() -> list[str]:
            return [os.path.basename(path) for path in self._pins.strange(kept, known) if netns.unpin(path)]

        kept = frozenset(self._attached)
        try:
            return await netns.on_own_thread(removed, _keep)
        except KernelError as error:
            raise Internal(f"{self._pins.directory} can't be cleared of what an earlier run left: {error}") from error

    # ---------------------------------------------------------- on a thread

    def _attach_here(
        self, sandbox: Sandbox, address: IPv4Address, on_netns: Callable[[], object], holder: int
    ) -> Attachment:
        """Runs on a thread of its own; what fails after the pin goes with it, the veth pair too."""
        pin = self.pin_of(sandbox)
        host_end = f"veth{secrets.token_hex(5)}"
        with Netlink() as node:
            if holder:
                netns.enter_that_of(holder, pin)
            else:
                netns.enter_new(pin)
            try:
                on_netns()
                # The thread is in the pod's namespace by now, so its id names that namespace.
                veth = make_veth(
                    host_end,
                    INTERFACE,
                    bridge=self._index,
                    netns_of=threading.get_native_id(),
                    mac=mac_of(address),
                    mtu=self._config.mtu,
                )
                node.request(veth, *plan_host_end(host_end, has_ipv6=self._has_ipv6))
                with Netlink() as pod:
                    own = IPv4Interface((address, self._pool.subnet.prefixlen))
                    index = pod.index_of(INTERFACE)
                    pod.request(*plan_pod_end(index, own, self._pool.gateway, has_ipv6=self._has_ipv6))
            except BaseException:
                netns.unpin(pin)
                raise
        return Attachment(pin, (str(address),), INTERFACE, host_end)

    def _set_up_node(self) -> int:
        self._pins.make_directory()
        with Netlink() as node:
            link = node.find_link(self._config.bridge)
            if link is not None:
                self._refuse_strangers(link, node.links())
            if not self._has_address(node, link):
                self._give_address(node, link)
            link = node.find_link(self._config.bridge)
            if link is None:
                raise Internal(f"the bridge {self._config.bridge} was removed while it was set up", hint="start again")
            node.request(set_alias(link.index, link.name, self._owner), set_up(link.name))
        _enable_forwarding()
        return link.index

    def _give_address(self, node: Netlink, link: Link | None) -> None:
        name = self._config.bridge
        if link is None:
            node.request(make_bridge(name, mac_of(self._pool.gateway), self._config.mtu))
        index = link.index if link else node.index_of(name)
        node.request(add_address(index, IPv4Interface((self._pool.gateway, self._pool.subnet.prefixlen)), name))

    def _refuse_strangers(self, link: Link, links: list[Link]) -> None:
        if link.kind != "bridge":
            raise FailedPrecondition(f"{link.name} exists and is not a bridge", hint="name another network.bridge")
        used = any(other.master == link.index for other in links)
        if used and link.alias not in {"", self._owner}:
            raise FailedPrecondition(
                f"the bridge {link.name} carries pods of another daemon ({link.alias})",
                hint="name another network.bridge and network.subnet",
            )

    def _has_address(self, node: Netlink, link: Link | None) -> bool:
        """Whether the bridge has its address. Raises FailedPrecondition if the subnet is in use elsewhere."""
        own = IPv4Interface((self._pool.gateway, self._pool.subnet.prefixlen))
        found = False
        for other in node.addresses():
            if link is not None and other.index == link.index:
                if other.interface != own:
                    raise FailedPrecondition(
                        f"the bridge {link.name} has {other.interface}, network.subnet asks for {own}",
                        hint=f"set network.subnet back, or remove all pods and then: ip link delete {link.name}",
                    )
                found = True
            elif other.interface.network.overlaps(self._pool.subnet):
                name = next((at.name for at in node.links() if at.index == other.index), str(other.index))
                raise FailedPrecondition(
                    f"network.subnet {self._pool.subnet} overlaps {other.interface} of the interface {name}",
                    hint="give network.subnet a range that the node does not use",
                )
        return found

    def _remove_bridge(self) -> None:
        with Netlink() as node:
            link = node.find_link(self._config.bridge)
            if link is not None and link.kind == "bridge":
                node.request(remove_link(link.index, link.name))

    # ------------------------------------------------------ what both share

    async def _make(self, sandbox: Sandbox, address: IPv4Address, work: Callable[[], Attachment]) -> Attachment:
        pin = self.pin_of(sandbox)
        if pin in self._attached:
            raise AlreadyExists(f"{sandbox.id} has a network already", hint="detach it first")
        self._attached[pin] = address
        try:
            async with self._turns:
                return await netns.on_own_thread(work, lambda made: _unpin(made.netns_path))
        except KernelError as error:
            del self._attached[pin]
            raise Internal(
                f"the network of {sandbox.id} can't be set up: {error}",
                hint=f"if the bridge {self._config.bridge} was removed, restart the daemon",
            ) from error
        except BaseException:
            del self._attached[pin]
            raise

    async def _masquerade(self) -> None:
        try:
            await nftables.apply(nftables.masquerade_text(self._config.bridge, self._pool.subnet))
        except CriError as error:
            log.warning(
                "no masquerading: pods reach each other and the node, but nothing beyond it",
                bridge=self._config.bridge,
                error=error.message,
                remedy=error.hint,
            )

    def surroundings(self, attachment: Attachment) -> Surroundings:
        """How the node reaches a pod."""
        return Surroundings(self._config.bridge, (self._pool.subnet,))

    def result(self, attachment: Attachment) -> dict[str, Any] | None:
        """As the bridge plugin of CNI would have answered."""
        prefix, gateway = self._pool.subnet.prefixlen, str(self._pool.gateway)
        return {
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": self._config.bridge},
                {"name": attachment.host_interface},
                {"name": attachment.interface, "sandbox": attachment.netns_path},
            ],
            "ips": [{"address": f"{ip}/{prefix}", "gateway": gateway, "interface": 2} for ip in attachment.ips],
            "routes": [{"dst": "0.0.0.0/0", "gw": gateway}],
        }

    def verbose(self) -> dict[str, str]:
        return {}

    def pin_of(self, sandbox: Sandbox) -> str:
        """Where the namespace of a pod is pinned."""
        return self._pins.path_of(sandbox)


def plan_host_end(name: str, *, has_ipv6: bool) -> list[Request]:
    """What a new veth's end on the node needs."""
    return [*([without_link_local(name)] if has_ipv6 else []), set_port_up(name)]


def plan_pod_end(index: int, own: IPv4Interface, gateway: IPv4Address, *, has_ipv6: bool) -> list[Request]:
    """What a new pod's namespace needs: lo, and eth0, which has ``index``, with its address and the way out."""
    return [
        set_up("lo"),
        *([without_link_local(INTERFACE)] if has_ipv6 else []),
        set_up(INTERFACE),
        add_address(index, own, INTERFACE),
        add_default_route(index, gateway),
    ]


def mac_of(address: IPv4Address) -> bytes:
    """A locally administered MAC that follows from the address: who gets the address again has the same one, and what
    neighbours remember stays true."""
    return b"\x0a\xc1" + address.packed


def _subnet(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"network.subnet {text!r} is not an IPv4 range: {error}", hint="e.g. 10.85.0.0/16") from error


def _enable_forwarding() -> None:
    with open(_FORWARD, "rb") as current:
        if current.read().strip() != b"0":
            return
    netns.write_sysctl("net/ipv4/ip_forward", b"1")


def _unpin(path: str) -> None:
    netns.unpin(path)


def _keep(_: object) -> None:
    """The undo of what may stay."""
