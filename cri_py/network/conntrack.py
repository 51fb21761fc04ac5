"""Connections that the kernel tracks (nf_conntrack), forgotten by netlink: linux/netfilter/nfnetlink_conntrack.h."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final

from cri_py.errors import KernelError
from cri_py.network.netlink import NESTED, NETLINK_NETFILTER, Netlink, Request, attribute, attributes

_GET: Final = 0x101  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
_DELETE: Final = 0x102
_HEAD: Final = struct.Struct("=BBH")  # nfgenmsg
_TUPLE_ORIG: Final = 1
_TUPLE_PROTO: Final = 2
_PROTO_NUM: Final = 1
_PROTO_DST_PORT: Final = 3
_ID: Final = 12
_ZONE: Final = 18
_FILTER: Final = 25
_FILTER_ORIG_FLAGS: Final = 1
_BY_PROTO_NUM: Final = 1 << 3
_BY_DST_PORT: Final = 1 << 5


def forget_udp(ports: Iterable[int]) -> int:
    """Forget the UDP connections to ``ports`` of this namespace's addresses; returns how many there were.

    Blocking; the kernel looks through its whole table and answers with these alone (Linux 5.8). Raises KernelError.
    """
    forgotten = 0
    with Netlink(NETLINK_NETFILTER) as netfilter:
        for port in ports:
            for family in (socket.AF_INET, socket.AF_INET6):
                for found in list(netfilter.dump(connections(family, port))):
                    forgotten += _forget(netfilter, forgetting(found))
    return forgotten


def connections(family: int, port: int) -> Request:
    """All UDP connections whose first packet went to ``port``."""
    protocol = attribute(_PROTO_NUM, bytes([socket.IPPROTO_UDP])) + attribute(_PROTO_DST_PORT, struct.pack("!H", port))
    body = (
        _HEAD.pack(family, 0, 0)
        + attribute(_TUPLE_ORIG | NESTED, attribute(_TUPLE_PROTO | NESTED, protocol))
        + attribute(_FILTER | NESTED, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_PROTO_NUM | _BY_DST_PORT)))
    )
    return Request(_GET, 0, body, f"list UDP connections to port {port}")


def forgetting(found: bytes) -> Request:
    """The request to forget a connection, from the message that tells of it."""
    parts = attributes(found, _HEAD.size)
    named = b"".join(attribute(kind, parts[kind]) for kind in (_ID, _ZONE) if kind in parts)
    body = found[: _HEAD.size] + attribute(_TUPLE_ORIG | NESTED, parts[_TUPLE_ORIG]) + named
    return Request(_DELETE, 0, body, "forget a UDP connection")


def _forget(netfilter: Netlink, request: Request) -> int:
    try:
        netfilter.request(request)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0  # it ended by itself meanwhile
    return 1
