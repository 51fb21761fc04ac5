"""Which host port is whose, and the rules as text."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from cri_py.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unavailable
from cri_py.model import PortMapping, TransportProtocol
from cri_py.network import hostports
from cri_py.network.hostports import HostPorts, host_ports
from cri_py.network.port_rules import Opening, ports_removal_text, ports_table_name, ports_text

TCP, UDP, SCTP = TransportProtocol
NETWORKS = (IPv4Network("10.85.0.0/16"),)

RULES = """\
table inet cri_py_crip0_ports
delete table inet cri_py_crip0_ports
table inet cri_py_crip0_ports {
    map anywhere4 {
        type inet_proto . inet_service : ipv4_addr . inet_service
        elements = { tcp . 8080 : 10.85.0.5 . 80 }
    }
    map at4 {
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
        elements = { 127.0.0.1 . udp . 53 : 10.85.0.5 . 5353 }
    }
    set targets4 {
        type ipv4_addr . inet_proto . inet_service
        elements = { 10.85.0.5 . tcp . 80, 10.85.0.5 . udp . 5353 }
    }
    chain to_pods {
        dnat ip to ip daddr . meta l4proto . th dport map @at4
        dnat ip to meta l4proto . th dport map @anywhere4
    }
    chain raw {
        type filter hook prerouting priority -300; policy accept;
        iifname "crip0" ip daddr 127.0.0.0/8 drop
    }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        fib daddr type local jump to_pods
    }
    chain output {
        type nat hook output priority -100; policy accept;
        fib daddr type local jump to_pods
    }
    chain postrouting {
        type nat hook postrouting priority 99; policy accept;
        ct status dnat ip daddr . meta l4proto . th dport @targets4 ip saddr { 127.0.0.0/8, 10.85.0.0/16 } masquerade
    }
}
"""


def opening(protocol: str, host_ip: str, port: int, pod_ip: str, pod_port: int) -> Opening:
    return Opening(protocol, ip_address(host_ip) if host_ip else None, port, ip_address(pod_ip), pod_port)


def test_the_rules_read_as_this() -> None:
    openings = [opening("udp", "127.0.0.1", 53, "10.85.0.5", 5353), opening("tcp", "", 8080, "10.85.0.5", 80)]
    assert ports_text("crip0", openings, NETWORKS, ["crip0"]) == RULES


def test_rules_of_ipv6_stand_beside_those_of_ipv4() -> None:
    openings = [opening("sctp", "", 7, "10.85.0.5", 8), opening("sctp", "", 7, "fd00::5", 8)]
    text = ports_text("b", openings, [*NETWORKS, IPv6Network("fd00::/64"), IPv4Network("10.85.1.0/24")], [])
    assert "elements = { sctp . 7 : fd00::5 . 8 }" in text
    assert "dnat ip6 to meta l4proto . th dport map @anywhere6" in text
    assert "ip saddr { 127.0.0.0/8, 10.85.0.0/16 } masquerade" in text  # nft refuses sets whose ranges overlap
    assert "@targets6 ip6 saddr { fd00::/64 } masquerade" in text


def test_the_removal_works_whether_or_not_there_is_a_table() -> None:
    table = f"table inet {ports_table_name('br-0')}"
    assert ports_removal_text("br-0") == f"{table}\ndelete {table}\n"


# ------------------------------------------------------------------ claims


def test_of_two_pods_the_second_is_refused_by_the_name_of_the_first() -> None:
    ports = HostPorts("b")
    ports.claim("one", "pod default/web", [PortMapping(TCP, 80, 8080)])
    with pytest.raises(AlreadyExists, match=r"host port 8080/tcp is taken by pod default/web \(remove that pod"):
        ports.claim("two", "pod default/other", [PortMapping(TCP, 9000, 8080)])
    ports.claim("three", "pod default/dns", [PortMapping(UDP, 80, 8080)])


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ("", "", True),
        ("", "192.0.2.1", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("0.0.0.0", "::", False),
        ("::", "2001:db8::1", True),
        ("", "2001:db8::1", True),
        ("192.0.2.1", "2001:db8::1", False),
    ],
)
def test_ports_meet_where_one_connection_could_be_meant_for_both(first: str, second: str, meet: bool) -> None:
    ((one,), (other,)) = (host_ports([PortMapping(TCP, 80, 8080, ip)]) for ip in (first, second))
    assert one.meets(other) == other.meets(one) == meet


def test_a_port_said_twice_counts_once_and_one_without_host_port_not_at_all() -> None:
    mapping = PortMapping(TCP, 80, 8080)
    assert len(host_ports([mapping, mapping, PortMapping(TCP, 80, 0)])) == 1


@pytest.mark.parametrize(
    ("mappings", "told"),
    [
        ([PortMapping(TCP, 80, 8080), PortMapping(TCP, 81, 8080)], "8080/tcp to two container ports, 80 and 81"),
        ([PortMapping(TCP, 80, 8080, "node7")], "host_ip 'node7' is no IP address"),
        ([PortMapping(TCP, 80, 8080, "::1")], "::1 can't lead to a pod"),
        ([PortMapping(TCP, 0, 8080)], "host_port 8080 leads to no container_port"),
    ],
)
def test_what_no_rule_can_do_is_refused(mappings: list[PortMapping], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        host_ports(mappings)


# ------------------------------------------------------------------- rules


class Node:
    """Takes rulesets as nft does, or refuses them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rulesets: list[str] = []
        self.works = True
        self.gate = asyncio.Event()
        self.gate.set()
        monkeypatch.setattr(hostports.nftables, "apply", self.apply)
        monkeypatch.setattr(hostports, "_route_loopback", lambda interface: None)

    async def apply(self, ruleset: str) -> None:
        await self.gate.wait()
        if not self.works:
            raise Unavailable("nft refused the rules")
        self.rulesets.append(ruleset)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(monkeypatch)


async def open_port(ports: HostPorts, name: str, port: int, ip: str = "10.85.0.5") -> None:
    ports.claim(name, f"pod {name}", [PortMapping(TCP, 80, port)])
    await ports.open(name, [ip], NETWORKS, "b")


async def test_a_port_is_free_again_when_no_rule_leads_to_it(node: Node) -> None:
    ports = HostPorts("b")
    await open_port(ports, "one", 8080)
    assert "tcp . 8080 : 10.85.0.5 . 80" in node.rulesets[-1]
    await ports.close("one")
    assert node.rulesets[-1] == ports_removal_text("b")
    await ports.close("one")
    assert len(node.rulesets) == 2
    await open_port(ports, "two", 8080)


async def test_changes_that_come_together_share_runs_of_nft(node: Node) -> None:
    ports = HostPorts("b")
    node.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(open_port(ports, f"pod{number}", 8000 + number, f"10.85.0.{number + 2}"))
        await asyncio.sleep(0)
        node.gate.set()
    assert len(node.rulesets) <= 2
    assert all(f"tcp . {8000 + number} : 10.85.0.{number + 2} . 80" in node.rulesets[-1] for number in range(20))


async def test_while_nft_fails_a_close_fails_each_time_and_then_succeeds(node: Node) -> None:
    ports = HostPorts("b")
    await open_port(ports, "one", 8080)
    node.works = False
    for _ in range(2):
        with pytest.raises(Unavailable):
            await ports.close("one")
    node.works = True
    await ports.close("one")
    assert node.rulesets[-1] == ports_removal_text("b")


async def test_what_could_not_be_opened_is_not_opened_by_the_next(node: Node) -> None:
    ports = HostPorts("b")
    node.works = False
    with pytest.raises(Unavailable):
        await open_port(ports, "one", 8080)
    with pytest.raises(Unavailable):
        await ports.close("one")
    node.works = True
    await open_port(ports, "two", 8081, "10.85.0.6")
    assert "8080" not in node.rulesets[-1]


async def test_a_family_that_the_pod_has_no_address_of_is_refused(node: Node) -> None:
    ports = HostPorts("b")
    ports.claim("one", "pod default/web", [PortMapping(TCP, 80, 8080, "::")])
    with pytest.raises(FailedPrecondition, match=r"8080/tcp leads nowhere: pod default/web has no IPv6 address"):
        await ports.open("one", ["10.85.0.5"], NETWORKS, "b")
    await ports.close("one")
    assert node.rulesets == []


async def test_what_is_adopted_is_written_anew_and_taken(node: Node) -> None:
    ports = HostPorts("b")
    ports.claim("old", "pod default/old", [PortMapping(TCP, 80, 8080)])
    ports.adopt("old", ["10.85.0.5"], NETWORKS, "b")
    assert node.rulesets == []
    await ports.restore()
    assert "tcp . 8080 : 10.85.0.5 . 80" in node.rulesets[-1]
    with pytest.raises(AlreadyExists, match="taken by pod default/old"):
        ports.claim("new", "pod default/new", [PortMapping(TCP, 80, 8080)])
