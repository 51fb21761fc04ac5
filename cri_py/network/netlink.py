"""The few rtnetlink messages that a bridge network needs, as bytes, and the socket that sends them.

Written out by hand because pods start on this path: docs/adr/0002-netlink.md has the figures beside pyroute2's.
Layouts: rtnetlink(7), netlink(7), linux/rtnetlink.h, linux/if_link.h. A :class:`Request` is a value, so that a plan
can be printed, tested and sent as one batch: the kernel works through a batch in order within one system call.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Final, Self

from cri_py.errors import KernelError
from cri_py.kernel import syscalls

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLMSGERR_ATTR_MSG: Final = 1

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24

IFF_UP: Final = 1
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_NET_NS_PID: Final = 19
IFLA_IFALIAS: Final = 20
IFLA_AF_SPEC: Final = 26
IFLA_INET6_ADDR_GEN_MODE: Final = 8
IN6_ADDR_GEN_MODE_NONE: Final = 1
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_INFO_SLAVE_KIND: Final = 4
IFLA_INFO_SLAVE_DATA: Final = 5
IFLA_BRPORT_MODE: Final = 4
IFLA_BRPORT_ISOLATED: Final = 33
IFLA_BR_NF_CALL_IPTABLES: Final = 36
IFLA_BR_NF_CALL_IP6TABLES: Final = 37
VETH_INFO_PEER: Final = 1

IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_BROADCAST: Final = 4
IFA_FLAGS: Final = 8
IFA_F_NODAD: Final = 2
RTA_OIF: Final = 4
RTA_GATEWAY: Final = 5
RT_TABLE_MAIN: Final = 254
RTPROT_BOOT: Final = 3
RTN_UNICAST: Final = 1

_SIOCGIFINDEX: Final = 0x8933
NESTED: Final = 0x8000
_ANSWER_TIMEOUT_S: Final = 10
_BUFFER_BYTES: Final = 1 << 16

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # rtmsg
_TIMEVAL: Final = struct.Struct("ll")


@dataclass(frozen=True, slots=True)
class Request:
    """One message without its header; ``subject`` is what an error says was attempted."""

    type: int
    flags: int
    body: bytes
    subject: str


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: its index, whether it is up, and what kind of virtual interface it is ("" for hardware)."""

    index: int
    name: str
    up: bool
    kind: str = ""
    alias: str = ""
    master: int = 0


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    index: int
    interface: IPv4Interface | IPv6Interface


# ---------------------------------------------------------------- requests


def make_bridge(name: str, mac: bytes, mtu: int) -> Request:
    """A bridge, up. With a MAC of its own it does not take the lowest of its ports', which changes as pods come."""
    attributes = (
        _text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, mac)
        + _number(IFLA_MTU, mtu)
        + attribute(IFLA_LINKINFO | NESTED, _text(IFLA_INFO_KIND, "bridge"))
    )
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + attributes
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make the bridge {name}")


def make_veth(name: str, peer: str, *, bridge: int, netns_of: int, mac: bytes, mtu: int) -> Request:
    """A veth pair: ``name`` here as a port of ``bridge`` (an index), ``peer`` in another namespace; both down.

    ``netns_of`` is the id of a process or thread that is in that namespace. The peer is created there, which spares
    moving it: a move drops its addresses and waits for readers (RCU). It can't be up at once: the kernel opens it
    before it has tied it to its other end (ENOTCONN).
    """
    inner = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _text(IFLA_IFNAME, peer)
        + attribute(IFLA_ADDRESS, mac)
        + _number(IFLA_MTU, mtu)
        + _number(IFLA_NET_NS_PID, netns_of)
    )
    pair = _text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA | NESTED, attribute(VETH_INFO_PEER | NESTED, inner))
    attributes = (
        _text(IFLA_IFNAME, name)
        + _number(IFLA_MTU, mtu)
        + _number(IFLA_MASTER, bridge)
        + attribute(IFLA_LINKINFO | NESTED, pair)
    )
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attributes
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make the veth pair {name} and {peer}")


def set_up(name: str) -> Request:
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name)
    return Request(RTM_NEWLINK, 0, body, f"set {name} up")


def filter_bridge(index: int, name: str) -> Request:
    """Apply the node's rules to what passes a bridge, whatever net.bridge.bridge-nf-call-iptables says."""
    settings = attribute(IFLA_BR_NF_CALL_IPTABLES, b"\1") + attribute(IFLA_BR_NF_CALL_IP6TABLES, b"\1")
    info = _text(IFLA_INFO_KIND, "bridge") + attribute(IFLA_INFO_DATA | NESTED, settings)
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(IFLA_LINKINFO | NESTED, info)
    return Request(RTM_NEWLINK, 0, body, f"have rules applied to what passes {name}")


def set_master(index: int, name: str, bridge: int) -> Request:
    """Make an interface a port of a bridge, which is an index, too."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + _number(IFLA_MASTER, bridge)
    return Request(RTM_NEWLINK, 0, body, f"make {name} a port of the bridge")


def set_port_up(name: str, *, isolated: bool = False) -> Request:
    """Set a bridge's port up, and let the bridge send back by it what came from it.

    Between two ports that are ``isolated`` the bridge forwards nothing.

    A pod that connects to its own host port, or to its own service, gets the packet back: where the rules are applied
    to what passes a bridge, too (br_netfilter), it is translated before the bridge has given it to the node to route.
    """
    settings = attribute(IFLA_BRPORT_MODE, b"\1") + (attribute(IFLA_BRPORT_ISOLATED, b"\1") if isolated else b"")
    hairpin = attribute(IFLA_INFO_SLAVE_DATA | NESTED, settings)
    port = attribute(IFLA_LINKINFO | NESTED, _text(IFLA_INFO_SLAVE_KIND, "bridge") + hairpin)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + _text(IFLA_IFNAME, name) + port
    return Request(RTM_NEWLINK, 0, body, f"set {name} up")


def without_link_local(name: str) -> Request:
    """No IPv6 address that nobody asked for, hence no duplicate-address wait and no multicast on every pod start.

    The messages that a link-local address causes are flooded to all pods of the bridge: with forty pods they cost
    more than the attachments. Send it while the interface is down; the kernel sets the flags before this.
    """
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    families = attribute(IFLA_AF_SPEC | NESTED, attribute(socket.AF_INET6 | NESTED, mode))
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, name) + families
    return Request(RTM_NEWLINK, 0, body, f"leave {name} without a link-local address")


def set_alias(index: int, name: str, alias: str) -> Request:
    """The note that ``ip link`` shows below an interface; at most 255 bytes."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0) + attribute(IFLA_IFALIAS, alias.encode()[:255])
    return Request(RTM_NEWLINK, 0, body, f"write the alias of {name}")


def remove_link(index: int, name: str) -> Request:
    return Request(RTM_DELLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0), f"remove {name}")


def add_address(index: int, interface: IPv4Interface | IPv6Interface, name: str) -> Request:
    """An IPv6 address is there at once: nobody else can have it, so it is not probed for a second (RFC 4862 5.4)."""
    packed = interface.ip.packed
    if isinstance(interface, IPv4Interface):
        family, more = socket.AF_INET, attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    else:
        family, more = socket.AF_INET6, _number(IFA_FLAGS, IFA_F_NODAD)
    body = (
        _ADDRESS.pack(family, interface.network.prefixlen, 0, 0, index)
        + attribute(IFA_LOCAL, packed)
        + attribute(IFA_ADDRESS, packed)
        + more
    )
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"give {interface} to {name}")


def add_default_route(index: int, gateway: IPv4Address | IPv6Address) -> Request:
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    body = (
        _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0)
        + attribute(RTA_GATEWAY, gateway.packed)
        + _number(RTA_OIF, index)
    )
    return Request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, f"route everything by {gateway}")


# ----------------------------------------------------------------- socket


class Netlink:
    """A netlink socket of the network namespace that the calling thread is in; it stays there wherever the thread goes.

    For routes and interfaces, or what ``protocol`` names.

    Not shared between threads. Blocking: a call takes as long as the kernel works, tens of microseconds to a
    millisecond, and waits for the kernel's one lock on network configuration.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(_ANSWER_TIMEOUT_S, 0))
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, *requests: Request) -> None:
        """Send all as one batch; raises KernelError for the first that the kernel refused, and says which.

        The kernel goes on after a refusal, so whoever sends a batch undoes the whole of it.
        """
        first = self._send(requests, NLM_F_ACK)
        refused: tuple[int, int, str] | None = None
        left = len(requests)
        while left:
            for kind, flags, sequence, payload in self._answers():
                if kind != NLMSG_ERROR:
                    continue
                left -= 1
                number, text = _refusal(payload, flags)
                if number and refused is None:
                    refused = (sequence - first, number, text)
        if refused is not None:
            raise _error(requests[refused[0]].subject, refused[1], refused[2])

    def find_link(self, name: str) -> Link | None:
        """The interface of that name, None if there is none."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, name)
        self._send([Request(RTM_GETLINK, 0, body, f"look up {name}")], 0)
        for kind, flags, _, payload in self._answers():
            if kind == RTM_NEWLINK:
                return _link(payload)
            number, text = _refusal(payload, flags)
            if number != errno.ENODEV:
                raise _error(f"look up {name}", number, text)
        return None

    def links(self) -> list[Link]:
        body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return [_link(payload) for payload in self.dump(Request(RTM_GETLINK, 0, body, "list interfaces"))]

    def addresses(self) -> list[InterfaceAddress]:
        """All addresses of the namespace with the prefix length of their network."""
        body = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return [_interface_address(payload) for payload in self.dump(Request(RTM_GETADDR, 0, body, "list addresses"))]

    def index_of(self, name: str) -> int:
        """The index of an interface by ioctl: a microsecond, where a netlink answer of 1.5 kB has to be built."""
        answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16si20x", name.encode(), 0))
        return int(struct.unpack_from("=i", answer, 16)[0])

    def _send(self, requests: Sequence[Request], flags: int) -> int:
        first = self._sequence + 1
        batch = bytearray()
        for request in requests:
            if syscalls.failpoint is not None:
                syscalls.failpoint("netlink", request.subject)
            self._sequence += 1
            size = _HEADER.size + len(request.body)
            batch += _HEADER.pack(size, request.type, request.flags | flags | NLM_F_REQUEST, self._sequence, 0)
            batch += request.body  # a multiple of four bytes, as all parts of it are
        try:
            self._socket.send(batch)
        except OSError as error:
            raise _error(requests[0].subject, error.errno or errno.EIO, "") from error
        return first

    def ask(self, request: Request) -> bytes:
        """The body of the one message that answers. Raises KernelError."""
        self._send([request], 0)
        kind, flags, _, payload = next(self._answers())
        if kind == NLMSG_ERROR:
            number, text = _refusal(payload, flags)
            raise _error(request.subject, number, text)
        return payload

    def dump(self, request: Request) -> Iterator[bytes]:
        """The bodies of the messages that answer a request for all there is."""
        self._send([request], NLM_F_DUMP)
        while True:
            for kind, flags, _, payload in self._answers():
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    number, text = _refusal(payload, flags)
                    raise _error(request.subject, number, text)
                yield payload

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and payload of the messages of one datagram."""
        try:
            datagram = self._socket.recv(_BUFFER_BYTES)
        except OSError as error:
            raise _error("wait for the kernel's answer", error.errno or errno.EIO, "") from error
        offset = 0
        while offset < len(datagram):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
            yield kind, flags, sequence, datagram[offset + _HEADER.size : offset + size]
            offset += _aligned(size)


# ---------------------------------------------------------------- encoding


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(_aligned(size) - size)


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _number(kind: int, number: int) -> bytes:
    return struct.pack("=HHI", 8, kind, number)


def attributes(payload: bytes, offset: int) -> Mapping[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if size < _ATTRIBUTE.size:
            break
        found[kind & ~NESTED] = payload[offset + _ATTRIBUTE.size : offset + size]
        offset += _aligned(size)
    return found


def _string(encoded: bytes) -> str:
    return encoded.rstrip(b"\0").decode(errors="replace")


def _link(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = attributes(payload, _LINK.size)
    details = attributes(found.get(IFLA_LINKINFO, b""), 0)
    return Link(
        index=index,
        name=_string(found[IFLA_IFNAME]),
        up=bool(flags & IFF_UP),
        kind=_string(details.get(IFLA_INFO_KIND, b"")),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        master=int.from_bytes(found.get(IFLA_MASTER, b""), "little"),
    )


def _interface_address(payload: bytes) -> InterfaceAddress:
    _, prefix, _, _, index = _ADDRESS.unpack_from(payload)
    found = attributes(payload, _ADDRESS.size)
    # On a point-to-point interface IFA_ADDRESS is the other end's.
    return InterfaceAddress(index, ip_interface((found.get(IFA_LOCAL) or found[IFA_ADDRESS], prefix)))


def _refusal(payload: bytes, flags: int) -> tuple[int, str]:
    """errno (0: done) and the kernel's own words, if it has any."""
    number = -struct.unpack_from("=i", payload)[0]
    if not number or not flags & NLM_F_ACK_TLVS:
        return number, ""
    return number, _string(attributes(payload, 4 + _HEADER.size).get(NLMSGERR_ATTR_MSG, b""))


def _error(subject: str, number: int, text: str) -> KernelError:
    strerror = os.strerror(number)
    return KernelError(number, f"{strerror}: {text}" if text else strerror, "netlink", subject)
