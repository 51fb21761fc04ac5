"""The rules of host ports as text for ``nft -f -``: one table, a lookup per connection however many ports there are.

A connection to a port comes from a pod, from the node by its loopback, or from elsewhere. In the first two cases its
source becomes the node's address on the way to the pod: the answer to a neighbour on the bridge would else not pass the
node and so not be translated back, and one to 127.0.0.1 would not leave the pod. From elsewhere, a pod sees its client.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import Final

from cri_py.network.nftables import table_name


@dataclass(frozen=True, slots=True)
class Opening:
    """One host port that leads to a pod. ``host_ip`` None: at every address that the node has of the pod's family."""

    protocol: str  # tcp, udp, sctp
    host_ip: IPv4Address | IPv6Address | None
    host_port: int
    pod_ip: IPv4Address | IPv6Address
    pod_port: int


@dataclass(frozen=True, slots=True)
class _Family:
    version: int
    word: str  # of nft's expressions
    kind: str  # of nft's sets


_FAMILIES: Final = (_Family(4, "ip", "ipv4_addr"), _Family(6, "ip6", "ipv6_addr"))


def ports_table_name(bridge: str) -> str:
    """``br-0`` → ``cri_py_br_2d0_ports``: no other bridge's tables, as no letter is written as ``_p…``."""
    return f"{table_name(bridge)}_ports"


def ports_text(
    bridge: str,
    openings: Collection[Opening],
    networks: Sequence[IPv4Network | IPv6Network],
    routed: Sequence[str],
) -> str:
    """All host ports of pods, which are in ``networks``. Replaces the table as a whole, or makes it.

    ``routed``: interfaces on which the kernel takes 127.0.0.1 for an address like others (route_localnet), as the
    node's own connections need it. What a pod sends to such an address would now reach what listens on the node's
    loopback alone (CVE-2020-8558), so it is dropped; answers carry the node's address until they are translated back.
    """
    table = f"table inet {ports_table_name(bridge)}"
    families = [family for family in _FAMILIES if any(o.pod_ip.version == family.version for o in openings)]
    sets = [line for family in families for line in _sets(family, openings)]
    to_node = ["fib daddr type local jump to_pods"]
    lines = [
        *sets,
        *_chain("to_pods", "", [rule for family in families for rule in _translations(family)]),
        *_chain("raw", "filter hook prerouting priority -300", [_drop(name) for name in routed]),
        *_chain("prerouting", "nat hook prerouting priority -100", to_node),
        *_chain("output", "nat hook output priority -100", to_node),
        *_chain("postrouting", "nat hook postrouting priority 99", [_from_here(f, networks) for f in families]),
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"{table}\ndelete {table}\n{table} {{\n{body}}}\n"


def ports_removal_text(bridge: str) -> str:
    """Removes the table; also if there is none, hence the first line."""
    table = f"table inet {ports_table_name(bridge)}"
    return f"{table}\ndelete {table}\n"


def _chain(name: str, hook: str, rules: Sequence[str]) -> list[str]:
    head = [f"    type {hook}; policy accept;"] if hook else []
    return [f"chain {name} {{", *head, *(f"    {rule}" for rule in rules), "}"]


def _sets(family: _Family, openings: Collection[Opening]) -> list[str]:
    own = sorted((o for o in openings if o.pod_ip.version == family.version), key=_order)
    number, target = f"{family.version}", f"{family.kind} . inet_service"
    anywhere = [f"{o.protocol} . {o.host_port} : {o.pod_ip} . {o.pod_port}" for o in own if o.host_ip is None]
    at = [f"{o.host_ip} . {o.protocol} . {o.host_port} : {o.pod_ip} . {o.pod_port}" for o in own if o.host_ip]
    targets = sorted({f"{o.pod_ip} . {o.protocol} . {o.pod_port}" for o in own})
    return [
        *_set(f"map anywhere{number}", f"inet_proto . inet_service : {target}", anywhere),
        *_set(f"map at{number}", f"{family.kind} . inet_proto . inet_service : {target}", at),
        *_set(f"set targets{number}", f"{family.kind} . inet_proto . inet_service", targets),
    ]


def _set(head: str, kind: str, elements: Sequence[str]) -> list[str]:
    held = [f"    elements = {{ {', '.join(elements)} }}"] if elements else []
    return [f"{head} {{", f"    type {kind}", *held, "}"]


def _translations(family: _Family) -> list[str]:
    word, number = family.word, family.version
    return [
        f"dnat {word} to {word} daddr . meta l4proto . th dport map @at{number}",
        f"dnat {word} to meta l4proto . th dport map @anywhere{number}",
    ]


def _from_here(family: _Family, networks: Sequence[IPv4Network | IPv6Network]) -> str:
    own = [network for network in networks if network.version == family.version]
    sources = [str(network) for network in collapse_addresses(own)]  # type: ignore[type-var]
    if family.version == 4:
        sources.insert(0, "127.0.0.0/8")
    word = family.word
    target = f"{word} daddr . meta l4proto . th dport @targets{family.version}"
    return f"ct status dnat {target} {word} saddr {{ {', '.join(sources)} }} masquerade"


def _drop(interface: str) -> str:
    return f'iifname "{interface}" ip daddr 127.0.0.0/8 drop'


def _order(opening: Opening) -> tuple[str, int, str]:
    return opening.protocol, opening.host_port, str(opening.host_ip or "")
