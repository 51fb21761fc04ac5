"""Interfaces that move into a pod. Every test has a node of its own: a network namespace. Needs root."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition, NotFound
from cri_py.model import Attachment
from cri_py.network import devices
from cri_py.network.netlink import Netlink, add_address, make_bridge, make_veth
from tests.kernel.test_network import inside, make, named, on_own_node

pytestmark = pytest.mark.root
ADDRESS = IPv4Interface("192.0.2.7/24")


def make_cable() -> None:
    """An interface ``nic0`` with an address; its other end is on a switch."""
    with Netlink() as node:
        node.request(make_bridge("t-sw0", b"\x02\0\0\0\0\1", 1500))
        ends = make_veth(
            "t-end0",
            "nic0",
            bridge=node.index_of("t-sw0"),
            netns_of=threading.get_native_id(),
            mac=b"\x02\0\0\0\0\2",
            mtu=1500,
        )
        node.request(ends)
        node.request(add_address(node.index_of("nic0"), ADDRESS, "nic0"))


def looks(name: str) -> tuple[bool, list[IPv4Interface]]:
    """Whether it is up, and its addresses."""
    with Netlink() as here:
        link = here.find_link(name)
        assert link is not None
        return link.up, [each.interface for each in here.addresses() if each.index == link.index]


@asynccontextmanager
async def a_pod(tmp_path: Path) -> AsyncIterator[Attachment]:
    """A pod on a node that has ``nic0``."""
    make_cable()
    bridge = make(tmp_path)
    await bridge.start()
    pod = await bridge.attach(named("pod"))
    try:
        yield pod
    finally:
        await bridge.detach(pod)
        await bridge.stop()


@on_own_node
async def test_an_interface_moves_with_its_addresses_and_is_up(tmp_path: Path) -> None:
    async with a_pod(tmp_path) as pod:
        await devices.give(pod.netns_path, {"nic0": "fast0"})
        assert inside(pod, lambda: looks("fast0")) == (True, [ADDRESS])
        with Netlink() as node:
            assert node.find_link("nic0") is None
        await devices.give(pod.netns_path, {"nic0": "fast0"})  # for the next container of the pod it is there


@on_own_node
async def test_a_name_may_be_left_to_the_kernel(tmp_path: Path) -> None:
    async with a_pod(tmp_path) as pod:
        await devices.give(pod.netns_path, {"nic0": "eth%d"})
        assert inside(pod, lambda: looks("eth1")) == (True, [ADDRESS])  # eth0 is the pod's own


@on_own_node
async def test_what_can_t_be_moved_is_told_by_name_and_stays(tmp_path: Path) -> None:
    async with a_pod(tmp_path) as pod:
        with pytest.raises(NotFound, match="none0"):
            await devices.give(pod.netns_path, {"none0": "x"})
        for name, inside_name in (("nic0", "eth0"), ("t-sw0", "x")):  # a name that is taken; a bridge
            with pytest.raises(FailedPrecondition, match=f"{name} can't be moved into the pod.*{inside_name}"):
                await devices.give(pod.netns_path, {name: inside_name})
            with Netlink() as node:
                assert node.find_link(name) is not None
