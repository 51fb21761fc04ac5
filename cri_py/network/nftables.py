"""Masquerading by nftables: the rules as text, and the ``nft`` program run without forking the daemon.

``nft -f -`` replaces a whole table in one transaction. The tables are ours alone, so other users of nftables are left
in peace. nft runs when the daemon starts, and when a pod with host ports comes or goes (``port_rules``).
"""

from __future__ import annotations

import shutil
from ipaddress import IPv4Network
from typing import Final

from cri_py.errors import Unavailable
from cri_py.network.program import SEARCH_PATH, run

DEADLINE_S: Final = 10.0
_SEARCH_PATH = SEARCH_PATH


# -------------------------------------------------------------------- text


def table_name(bridge: str) -> str:
    """A name that nft reads as one word, different for every bridge: ``br-0`` → ``cri_py_br_2d0``."""
    return "cri_py_" + "".join(
        c if c.isascii() and c.isalnum() else "__" if c == "_" else f"_{ord(c):x}" for c in bridge
    )


def masquerade_text(bridge: str, subnet: IPv4Network) -> str:
    """What leaves the node from a pod carries the node's address. Replaces the table as a whole, or makes it.

    Traffic between pods and multicast keep their addresses.
    """
    table = f"table ip {table_name(bridge)}"
    return f"""\
{table}
delete {table}
{table} {{
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {subnet} ip daddr != {{ {subnet}, 224.0.0.0/4 }} masquerade
    }}
}}
"""


def removal_text(bridge: str) -> str:
    """Removes the table; also if there is none, hence the first line."""
    table = f"table ip {table_name(bridge)}"
    return f"{table}\ndelete {table}\n"


# ----------------------------------------------------------------- running


async def apply(ruleset: str) -> None:
    """Apply a ruleset in one transaction. Raises Unavailable (no nft, or the kernel refuses), DeadlineExceeded."""
    program = shutil.which("nft", path=_SEARCH_PATH)
    if program is None:
        raise Unavailable("the program nft is not installed", hint="apt install nftables")
    ended = await run([program, "-f", "-"], ruleset.encode(), deadline_s=DEADLINE_S)
    if ended.code != 0:
        raise Unavailable(
            f"nft refused the rules with status {ended.code}: {ended.told}",
            hint="the kernel needs nf_tables with nft_nat, nft_masq and nft_fib_inet: modprobe nft_masq",
        )
