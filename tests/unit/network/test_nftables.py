"""The rules as text."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import Unavailable
from cri_py.network import nftables

MASQUERADE = """\
table ip cri_py_crip0
delete table ip cri_py_crip0
table ip cri_py_crip0 {
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        ip saddr { 10.85.0.0/16 } ip daddr != { 10.85.0.0/16, 224.0.0.0/4 } masquerade
    }
}
"""
MASQUERADE6 = """\
table ip6 cri_py_crip0
delete table ip6 cri_py_crip0
table ip6 cri_py_crip0 {
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        ip6 saddr { fd00:1::/64, fd00::/64 } ip6 daddr != { fd00:1::/64, fd00::/64, ff00::/8 } masquerade
    }
}
"""


def test_the_masquerade_table_reads_as_this() -> None:
    four, six = IPv4Network("10.85.0.0/16"), [IPv6Network("fd00::/64"), IPv6Network("fd00:1::/64")]
    assert nftables.masquerade_text("crip0", [four]) == MASQUERADE
    assert nftables.masquerade_text("crip0", [*six, four]) == MASQUERADE + MASQUERADE6


def test_the_removal_works_whether_or_not_there_is_a_table() -> None:
    assert nftables.removal_text("br-0") == (
        "table ip cri_py_br_2d0\ndelete table ip cri_py_br_2d0\n"
        "table ip6 cri_py_br_2d0\ndelete table ip6 cri_py_br_2d0\n"
        "table inet cri_py_br_2d0\ndelete table inet cri_py_br_2d0\n"
    )


NAMES = st.text("ab_-.:0", min_size=1, max_size=15)


@given(NAMES, NAMES)
def test_two_bridges_never_share_a_table(one: str, other: str) -> None:
    assert (nftables.table_name(one) == nftables.table_name(other)) == (one == other)
    assert nftables.table_name(one).replace("_", "").isalnum()


async def test_without_nft_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nftables, "_SEARCH_PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt install nftables"):
        await nftables.apply("")
