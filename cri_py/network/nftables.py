"""Masquerading by nftables: the rules as text, and the ``nft`` program run without forking the daemon.

``nft -f -`` replaces a whole table in one transaction. The tables are ours alone, so other users of nftables are left
in peace. nft runs when the daemon starts, and when a pod with host ports comes or goes (``port_rules``).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from cri_py.errors import Unavailable
from cri_py.kernel.faults import trace
from cri_py.network.program import SEARCH_PATH, run

DEADLINE_S: Final = 10.0
_SEARCH_PATH = SEARCH_PATH
_FAMILIES: Final = (("ip", 4, "224.0.0.0/4"), ("ip6", 6, "ff00::/8"))


# -------------------------------------------------------------------- text


def table_name(bridge: str) -> str:
    """A name that nft reads as one word, different for every bridge: ``br-0`` → ``cri_py_br_2d0``."""
    return "cri_py_" + "".join(
        c if c.isascii() and c.isalnum() else "__" if c == "_" else f"_{ord(c):x}" for c in bridge
    )


def masquerade_text(bridge: str, subnets: Collection[IPv4Network | IPv6Network]) -> str:
    """What leaves the node from a pod carries the node's address. Replaces the tables as a whole, or makes them.

    Traffic between pods and multicast keep their addresses.
    """
    parts = []
    for family, version, multicast in _FAMILIES:
        own = ", ".join(sorted(str(subnet) for subnet in subnets if subnet.version == version))
        table = f"table {family} {table_name(bridge)}"
        if not own:
            continue
        parts.append(f"""\
{table}
delete {table}
{table} {{
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        {family} saddr {{ {own} }} {family} daddr != {{ {own}, {multicast} }} masquerade
    }}
}}
""")
    return "".join(parts)


def isolation_text(bridge: str) -> str:
    """What pods send to each other is dropped, unless a host port or a service led it. Replaces the table.

    Both names are the bridge's also of what passes it from port to port, where br_netfilter applies rules to that.
    """
    table = f"table inet {table_name(bridge)}"
    return f"""\
{table}
delete {table}
{table} {{
    chain forward {{
        type filter hook forward priority 0; policy accept;
        iifname "{bridge}" oifname "{bridge}" ct status ! dnat drop
    }}
}}
"""


def removal_text(bridge: str) -> str:
    """Removes the tables; also if there are none, hence the first line of each."""
    tables = [f"table {family} {table_name(bridge)}" for family in ("ip", "ip6", "inet")]
    return "".join(f"{table}\ndelete {table}\n" for table in tables)


# ----------------------------------------------------------------- running


async def apply(ruleset: str) -> None:
    """Apply a ruleset in one transaction. Raises Unavailable (no nft, or the kernel refuses), DeadlineExceeded."""
    program = shutil.which("nft", path=_SEARCH_PATH)
    if program is None:
        raise Unavailable("the program nft is not installed", hint="apt install nftables")
    trace("nft: before")
    ended = await run([program, "-f", "-"], ruleset.encode(), deadline_s=DEADLINE_S)
    trace("nft: ended")
    if ended.code != 0:
        raise Unavailable(
            f"nft refused the rules with status {ended.code}: {ended.told}",
            hint="the kernel needs nf_tables with nft_nat, nft_masq and nft_fib_inet: modprobe nft_masq",
        )
