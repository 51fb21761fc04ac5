"""The rules as text, and programs run without a fork."""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import DeadlineExceeded, Unavailable
from cri_py.network import nftables

MASQUERADE = """\
table ip cri_py_crip0
delete table ip cri_py_crip0
table ip cri_py_crip0 {
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        ip saddr 10.85.0.0/16 ip daddr != { 10.85.0.0/16, 224.0.0.0/4 } masquerade
    }
}
"""


def test_the_masquerade_table_reads_as_this() -> None:
    assert nftables.masquerade_text("crip0", IPv4Network("10.85.0.0/16")) == MASQUERADE


def test_the_removal_works_whether_or_not_there_is_a_table() -> None:
    assert nftables.removal_text("br-0") == "table ip cri_py_br_2d0\ndelete table ip cri_py_br_2d0\n"


NAMES = st.text("ab_-.:0", min_size=1, max_size=15)


@given(NAMES, NAMES)
def test_two_bridges_never_share_a_table(one: str, other: str) -> None:
    assert (nftables.table_name(one) == nftables.table_name(other)) == (one == other)
    assert nftables.table_name(one).replace("_", "").isalnum()


async def test_a_program_gets_its_input_and_gives_output_and_status() -> None:
    ended = await nftables.run(["/bin/sh", "-c", "cat; echo oops >&2; exit 3"], b"text\n", 10)
    assert ended == nftables.Ended(3, b"text\noops\n")


async def test_a_program_killed_by_a_signal_has_a_negative_code() -> None:
    assert (await nftables.run(["/bin/sh", "-c", "kill -9 $$"], b"", 10)).code == -9


async def test_more_output_than_is_kept_does_not_block_the_program() -> None:
    ended = await nftables.run(["/bin/sh", "-c", "head -c 300000 /dev/zero"], b"", 10)
    assert (ended.code, len(ended.output)) == (0, 65536)


async def test_a_program_that_hangs_is_killed_and_reaped_at_its_deadline() -> None:
    before, others = sorted(os.listdir("/proc/self/fd")), _children()
    with pytest.raises(DeadlineExceeded, match=r"/bin/sh did not end within 0\.05 s"):
        await nftables.run(["/bin/sh", "-c", "exec tail -f /dev/null"], b"", 0.05)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert _children() == others


async def test_a_cancelled_run_leaves_no_program() -> None:
    others = _children()  # another test's daemon may be one
    task = asyncio.create_task(nftables.run(["/bin/sh", "-c", "exec tail -f /dev/null"], b"", 10))
    await asyncio.sleep(0)  # it runs up to its first wait, so the program is there
    assert len(_children()) == len(others) + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _children() == others


async def test_a_program_that_can_not_be_executed_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can't be executed: No such file"):
        await nftables.run([str(tmp_path / "nft")], b"", 1)


async def test_without_nft_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nftables, "_SEARCH_PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt install nftables"):
        await nftables.apply("")


def _children() -> list[str]:
    return [pid for task in os.listdir("/proc/self/task") for pid in _children_of(task)]


def _children_of(task: str) -> list[str]:
    try:
        return Path(f"/proc/self/task/{task}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
