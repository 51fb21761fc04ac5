"""Every message that we write by hand, read by pyroute2."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cri_py.network import bridge, netlink
from cri_py.network.netlink import Request

MAC = bytes.fromhex("0ac10a550002")


def read(kind: type[Any], request: Request) -> Any:
    header = struct.pack("=IHHII", 16 + len(request.body), request.type, request.flags, 1, 0)
    message = kind(header + request.body)
    message.decode()
    assert len(request.body) % 4 == 0  # the next message of a batch begins there
    return message


def test_a_bridge_has_a_fixed_mac_and_is_up() -> None:
    message = read(ifinfmsg, netlink.make_bridge("crip0", MAC, 1400))
    assert message.get("ifname") == "crip0"
    assert message.get("address") == "0a:c1:0a:55:00:02"
    assert message.get("mtu") == 1400
    assert message.get(("linkinfo", "kind")) == "bridge"
    assert (message["flags"], message["change"]) == (1, 1)


def test_a_veth_pair_has_its_peer_in_the_namespace_of_a_thread() -> None:
    request = netlink.make_veth("veth0123456789", "eth0", bridge=7, netns_of=4242, mac=MAC, mtu=1400)
    message = read(ifinfmsg, request)
    assert message.get("ifname") == "veth0123456789"
    assert message.get("master") == 7
    assert message.get(("linkinfo", "kind")) == "veth"
    peer = message.get("linkinfo").get("data").get("VETH_INFO_PEER")
    assert peer.get("ifname") == "eth0"
    assert peer.get("address") == "0a:c1:0a:55:00:02"
    assert peer.get("net_ns_pid") == 4242
    assert (message.get("mtu"), peer.get("mtu")) == (1400, 1400)


def test_no_link_local_address_is_asked_for_by_name() -> None:
    message = read(ifinfmsg, netlink.without_link_local("eth0"))
    assert message.get("ifname") == "eth0"
    assert message.get("af_spec").get("AF_INET6").get("IFLA_INET6_ADDR_GEN_MODE") == 1


def test_up_alias_and_removal_name_their_interface() -> None:
    up = read(ifinfmsg, netlink.set_up("lo"))
    assert (up.get("ifname"), up["flags"], up["change"]) == ("lo", 1, 1)
    noted = read(ifinfmsg, netlink.set_alias(5, "crip0", "cri_py /run/cri_py"))
    assert (noted["index"], noted.get("ifalias"), noted["change"]) == (5, "cri_py /run/cri_py", 0)
    assert read(ifinfmsg, netlink.remove_link(5, "crip0"))["index"] == 5


def test_a_bridge_is_told_to_have_rules_applied_to_it_and_a_port_whose_it_is() -> None:
    told = read(ifinfmsg, netlink.filter_bridge(4, "crip0"))
    assert told["index"] == 4
    assert told.get(("linkinfo", "data", "br_nf_call_iptables")) == 1
    assert told.get(("linkinfo", "data", "br_nf_call_ip6tables")) == 1
    port = read(ifinfmsg, netlink.set_master(7, "veth0", 4))
    assert (port["index"], port.get("master"), port["change"]) == (7, 4, 0)


def test_a_port_comes_up_and_sends_back_to_where_it_comes_from() -> None:
    message = read(ifinfmsg, netlink.set_port_up("veth0"))
    assert (message.get("ifname"), message["flags"], message["change"]) == ("veth0", 1, 1)
    assert message.get(("linkinfo", "slave_kind")) == "bridge"
    assert message.get("linkinfo").get("slave_data").get_attr("IFLA_BRPORT_MODE") == 1


def test_an_address_comes_with_prefix_and_broadcast() -> None:
    message = read(ifaddrmsg, netlink.add_address(2, IPv4Interface("10.85.0.9/16"), "eth0"))
    assert (message["family"], message["prefixlen"], message["index"]) == (socket.AF_INET, 16, 2)
    assert [message.get(name) for name in ("local", "address", "broadcast")] == [
        "10.85.0.9",
        "10.85.0.9",
        "10.85.255.255",
    ]


def test_the_default_route_goes_by_the_gateway() -> None:
    message = read(rtmsg, netlink.add_default_route(2, IPv4Address("10.85.0.1")))
    assert (message["dst_len"], message["table"], message["type"]) == (0, 254, 1)
    assert (message.get("gateway"), message.get("oif")) == ("10.85.0.1", 2)


def test_the_plan_of_a_pod_reads_as_this() -> None:
    plan = bridge.plan_pod_end(2, [(IPv4Interface("10.85.0.9/16"), IPv4Address("10.85.0.1"))], has_ipv6=True)
    assert [request.subject for request in plan] == [
        "set lo up",
        "leave eth0 without a link-local address",
        "set eth0 up",
        "give 10.85.0.9/16 to eth0",
        "route everything by 10.85.0.1",
    ]


def test_a_kernel_without_ipv6_is_not_asked_about_it() -> None:
    plan = bridge.plan_host_end("veth0", has_ipv6=False)
    assert [request.subject for request in plan] == ["set veth0 up"]
