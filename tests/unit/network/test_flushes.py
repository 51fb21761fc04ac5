"""What the kernel tells of transactions on nf_tables, and which of them took something from us."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from cri_py.network.flushes import Transactions
from cri_py.network.netlink import attribute

NEW_TABLE, DELETE_TABLE, NEW_RULE, DELETE_RULE, NEW_GENERATION = 0, 2, 6, 8, 15
IP, INET = 2, 1


def message(kind: int, table: str = "", family: int = INET, subsystem: int = 10) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + (attribute(1, table.encode() + b"\0") if table else b"")
    return struct.pack("=IHHII", 16 + len(body), subsystem << 8 | kind, 0, 0, 0) + body


END = message(NEW_GENERATION)


def heard(*messages: bytes) -> frozenset[str]:
    return Transactions({"ours", "other"}).hear(b"".join(messages))


def test_a_flush_takes_our_tables() -> None:
    flush = [message(DELETE_RULE, "ours"), message(DELETE_TABLE, "ours"), message(DELETE_TABLE, "strange")]
    assert heard(*flush, END) == {"ours"}


def test_a_single_rule_is_missed_too() -> None:
    assert heard(message(DELETE_RULE, "other"), END) == {"other"}


def test_a_table_that_is_replaced_is_whole() -> None:
    replacing = [message(DELETE_RULE, "ours"), message(DELETE_TABLE, "ours"), message(NEW_TABLE, "ours")]
    assert heard(*replacing, message(NEW_RULE, "ours"), END) == frozenset()


def test_a_table_of_another_family_is_another() -> None:
    assert heard(message(DELETE_TABLE, "ours", IP), message(NEW_TABLE, "ours", INET), END) == {"ours"}


def test_strangers_and_other_subsystems_are_nothing_to_us() -> None:
    assert heard(message(DELETE_TABLE, "strange"), message(DELETE_TABLE, "ours", subsystem=1), END) == frozenset()


def test_a_transaction_counts_when_it_has_ended_over_however_many_datagrams() -> None:
    transactions = Transactions({"ours"})
    assert transactions.hear(message(DELETE_TABLE, "ours")) == frozenset()
    assert transactions.hear(END) == {"ours"}
    assert transactions.hear(END) == frozenset()


@given(st.binary(max_size=200))
def test_garbage_is_survived(datagram: bytes) -> None:
    Transactions({"ours"}).hear(datagram)
