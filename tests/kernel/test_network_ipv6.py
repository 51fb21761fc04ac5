"""The built-in network with IPv6 beside IPv4, and the kubelet's pod CIDRs, on a real kernel. Needs root."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import Attachment
from cri_py.network.bridge import Bridge
from tests.kernel.test_network import CONFIG, inside, make, named, on_own_node, ping

pytestmark = pytest.mark.root
IFA_F_TENTATIVE = 0x40  # linux/if_addr.h


def ping6(pin: str, address: str) -> bool:
    """Whether an address answers by IPv6. None of ours may wait a second for others that have it (RFC 4862, 5.4)."""

    def ask() -> bool:
        flags = [int(line.split()[4], 16) for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines()]
        assert not any(each & IFA_F_TENTATIVE for each in flags)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.getprotobyname("ipv6-icmp")) as asking:
            asking.settimeout(30)
            asking.sendto(struct.pack("!BBHHH", 128, 0, 0, 0, 1), (address, 0))
            try:
                return asking.recv(64)[0] == 129
            except TimeoutError:
                return False

    return inside(Attachment(pin, ()), ask)


@on_own_node
async def test_both_families_work_at_once_between_pods_to_the_node_and_beyond(tmp_path: Path) -> None:
    bridge = make(tmp_path, subnet6="fd66::/64", masquerade=True)
    uplink = Bridge(
        replace(CONFIG, bridge="t-up", subnet="10.99.0.0/24", subnet6="fd99::/64"),
        str(tmp_path / "beyond/netns"),
        str(tmp_path / "beyond"),
    )
    await bridge.start()
    await uplink.start()
    one, other = await bridge.attach(named("one")), await bridge.attach(named("other"))
    outside = await uplink.attach(named("outside"))
    assert (one.ips, other.ips) == (("10.66.0.2", "fd66::2"), ("10.66.0.3", "fd66::3"))
    for address in ("fd66::3", "fd66::1", outside.ips[1]):
        assert ping6(one.netns_path, address), address
    assert ping(one.netns_path, outside.ips[0])
    result = bridge.result(one)
    assert result is not None
    assert [ip["address"] for ip in result["ips"]] == ["10.66.0.2/24", "fd66::2/64"]
    for network, pod in ((bridge, one), (bridge, other), (uplink, outside)):
        await network.detach(pod)
    assert bridge._ranges.taken == 0
    await bridge.destroy()


@on_own_node
async def test_the_kubelets_pod_cidrs_count_for_new_pods_and_after_a_restart(tmp_path: Path) -> None:
    def with_memory() -> Bridge:
        return Bridge(CONFIG, str(tmp_path / "netns"), str(tmp_path), str(tmp_path / "pod-cidrs.json"))

    bridge = with_memory()
    await bridge.start()
    old = await bridge.attach(named("old"))
    for wrong in ("10.66.1.0", "10.66.0.0/25", "10.1.0.0/24,10.2.0.0/24", "192.168.1.0/30"):
        with pytest.raises(InvalidArgument):
            await bridge.update_pod_cidr(wrong)
    await bridge.update_pod_cidr("10.67.0.0/24,fd67::/64")
    new = await bridge.attach(named("new"))
    assert new.ips == ("10.67.0.2", "fd67::2")
    assert ping(old.netns_path, new.ips[0])
    again = with_memory()
    await again.start()
    assert again.adopt(old)
    assert again.adopt(new)
    third = await again.attach(named("third"))
    assert third.ips == ("10.67.0.3", "fd67::3")
    assert ping(third.netns_path, old.ips[0])
    assert ping6(third.netns_path, new.ips[1])
    await again.update_pod_cidr("10.66.0.0/24")  # back again: who lives there keeps it
    assert (await again.attach(named("fourth"))).ips != old.ips
    for name in ("old", "new", "third", "fourth"):
        await again.detach(Attachment(again.pin_of(named(name)), ()))
    assert again._ranges.taken == 0


@on_own_node
async def test_a_pod_cidr_that_the_node_uses_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    bridge, second = make(tmp_path), make(tmp_path / "second", bridge="t-br1", subnet="10.67.0.0/24")
    await bridge.start()
    await second.start()
    with pytest.raises(FailedPrecondition, match=r"overlaps 10\.67\.0\.1/24 of the interface t-br1"):
        await bridge.update_pod_cidr("10.67.0.0/16")
    pod = await bridge.attach(named("pod"))
    assert pod.ips == ("10.66.0.2",)
    await bridge.detach(pod)
