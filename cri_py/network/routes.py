"""By which interface the node reaches an address, asked of the kernel: rtnetlink(7), RTM_GETROUTE."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Final

from cri_py.errors import FailedPrecondition, KernelError
from cri_py.network.netlink import RTA_OIF, Netlink, Request, attribute, attributes

RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # rtmsg


def interface_to(ip: str) -> str:
    """The name of the interface that leads to an address of a pod. Raises FailedPrecondition if none does.

    Blocks for some ten microseconds.
    """
    try:
        with Netlink() as node:
            answer = node.ask(route_to(ip))
            return socket.if_indextoname(int.from_bytes(attributes(answer, _ROUTE.size)[RTA_OIF], "little"))
    except (KernelError, OSError, KeyError) as error:
        raise FailedPrecondition(f"the node has no route to the pod's address {ip}: {error}") from error


def route_to(ip: str) -> Request:
    """The question which route leads to an address."""
    address = ip_address(ip)
    family, bits = (socket.AF_INET, 32) if address.version == 4 else (socket.AF_INET6, 128)
    body = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address.packed)
    return Request(RTM_GETROUTE, 0, body, f"look up the route to {ip}")
