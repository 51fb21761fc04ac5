"""Interfaces of the node that move into a pod's network namespace (OCI runtime-spec, config-linux.md, Network Devices).

Such an interface keeps its global addresses, which a move drops, and is up afterwards. It stays as long as the pod's
namespace, also when the container that brought it ends: then the kernel gives hardware back to the node and removes
virtual ones. So the next container of the pod that asks for it, after a restart, finds it there.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping
from typing import Final

from cri_py.errors import FailedPrecondition, KernelError, NotFound
from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWNET
from cri_py.network.netlink import (
    IFLA_IFNAME,
    NLM_F_CREATE,
    RTM_GETADDR,
    RTM_NEWADDR,
    RTM_NEWLINK,
    Netlink,
    Request,
    attribute,
    attributes,
    set_up,
)
from cri_py.network.netns import on_own_thread

IFLA_NET_NS_FD: Final = 28
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_BROADCAST: Final = 4
IFA_FLAGS: Final = 8
IFA_F_PERMANENT: Final = 0x80
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg
_GLOBAL: Final = 0  # RT_SCOPE_UNIVERSE


async def give(netns_path: str, names: Mapping[str, str]) -> None:
    """Move interfaces into the namespace pinned at ``netns_path``. ``names``: what each is called there, by its name on
    the node; one with ``%d`` is numbered by the kernel.

    Raises NotFound for one that is neither here nor there, FailedPrecondition for one that can't be moved.
    """
    await on_own_thread(lambda: _give_all(netns_path, names), lambda _: None)


def _give_all(netns_path: str, names: Mapping[str, str]) -> None:
    """On a thread that ends with this: it is in the pod's namespace afterwards."""
    fd = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Netlink() as node:
            syscalls.setns(fd, CLONE_NEWNET)
            with Netlink() as pod:
                for name, inside in names.items():
                    _give(node, pod, fd, name, inside or name)
    finally:
        os.close(fd)


def _give(node: Netlink, pod: Netlink, fd: int, name: str, inside: str) -> None:
    link, taken = node.find_link(name), "%" not in inside and pod.find_link(inside) is not None
    if link is None and taken:
        return  # an earlier container of the pod has brought it
    if link is None:
        raise NotFound(f"the network interface {name}, which a CDI device asks for, is not on this node")
    if taken:  # the kernel would move it first and then not rename it
        raise FailedPrecondition(
            f"the network interface {name} can't be moved into the pod: it has an {inside} already"
        )
    addresses = lasting_addresses(node, link.index)
    there = {each.index for each in pod.links()}
    try:
        node.request(move(link.index, name, inside, fd))
        moved = next(each for each in pod.links() if each.index not in there)
        pod.request(*(put_address(moved.index, each, moved.name) for each in addresses), set_up(moved.name))
    except KernelError as error:
        raise FailedPrecondition(
            f"the network interface {name} can't be moved into the pod as {inside}: {error.strerror}",
            hint="some kinds, such as bridges, belong to the network that they were made in",
        ) from error


def move(index: int, name: str, inside: str, netns_fd: int) -> Request:
    """Into the namespace behind ``netns_fd``, under the name ``inside``."""
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        + attribute(IFLA_NET_NS_FD, struct.pack("=I", netns_fd))
        + attribute(IFLA_IFNAME, inside.encode() + b"\0")
    )
    return Request(RTM_NEWLINK, 0, body, f"move {name} into the pod as {inside}")


def lasting_addresses(node: Netlink, index: int) -> list[bytes]:
    """The interface's addresses of any family that are global and permanent, as the kernel tells them."""
    listing = Request(RTM_GETADDR, 0, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0), "list addresses")
    return [each for each in node.dump(listing) if _lasts(each, index)]


def _lasts(message: bytes, index: int) -> bool:
    _, _, flags, scope, owner = _ADDRESS.unpack_from(message)
    wide = attributes(message, _ADDRESS.size).get(IFA_FLAGS)
    flags = int.from_bytes(wide, "little") if wide else flags
    return owner == index and scope == _GLOBAL and bool(flags & IFA_F_PERMANENT)


def put_address(index: int, message: bytes, name: str) -> Request:
    """The same address for an interface, by what the kernel has told of it."""
    family, prefix, flags, scope, _ = _ADDRESS.unpack_from(message)
    found = attributes(message, _ADDRESS.size)
    kept = b"".join(attribute(kind, found[kind]) for kind in (IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST) if kind in found)
    body = _ADDRESS.pack(family, prefix, flags & IFA_F_PERMANENT, scope, index) + kept
    return Request(RTM_NEWADDR, NLM_F_CREATE, body, f"give its address to {name}")
