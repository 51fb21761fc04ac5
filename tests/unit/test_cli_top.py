"""``cri-py top``: rates from two looks, the order of rows, and a table that anybody can read."""

from __future__ import annotations

import argparse
import io
import os
import pty
import threading
from dataclasses import replace
from typing import Any, Self

import pytest

from cri_py import cli, cli_top
from cri_py.cli_top import COLUMNS, KEYS, SORTS, amount, in_order, rows, table
from cri_py.config import Config
from cri_py.errors import ConfigError
from cri_py.rpc.stats_client import Usage

WEB = Usage("p1", "default", "web", "", 0, cores=0.5, memory=3 << 20, read=0, written=0, received=100, transmitted=200)
MAIN = Usage(
    "c1", "default", "web", "main", 0, cores=0.4, memory=2 << 20, available=6 << 20, read=0, written=0, threads=3
)
SIDE = Usage(
    "c2", "default", "web", "side", 0, cores=0.1, memory=1 << 20, pressure={"cpu": 12.3, "memory": 0, "io": 1.0}
)
DB = Usage("p2", "default", "db", "", 0, cores=0.9, memory=1 << 20)
FIRST = [WEB, MAIN, SIDE, DB]


def later(usage: Usage, **changes: Any) -> Usage:
    return Usage(**{name: getattr(usage, name) for name in Usage.__slots__} | {"at": 2_000_000_000} | changes)


SECOND = [later(WEB, received=2148, transmitted=200, written=4096), later(MAIN, read=2 << 20), later(SIDE), later(DB)]


def test_counters_become_rates_of_a_second() -> None:
    web, main, side, _ = rows(FIRST, SECOND)
    assert (web.received, web.transmitted, web.written) == (1024.0, 0.0, 2048.0)
    assert main.read == 1 << 20
    assert side.read is None  # nobody counts it
    assert main.of_limit == 0.25
    assert side.of_limit is None


def test_what_was_not_there_before_has_no_rates_yet() -> None:
    assert rows([], SECOND)[0].received is None
    assert rows(SECOND, SECOND)[0].received is None  # no time has gone by


def test_a_counter_that_began_anew_is_no_negative_rate() -> None:
    assert rows([later(WEB, at=0, received=5000)], SECOND)[0].received == 0.0


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("cpu", ["db", "web", "main", "side"]),
        ("memory", ["web", "main", "side", "db"]),
        ("name", ["db", "web", "main", "side"]),
        ("psi-cpu", ["db", "web", "side", "main"]),
    ],
)
def test_containers_stay_with_their_pod_in_any_order(key: str, names: list[str]) -> None:
    assert [row.container or row.pod for row in in_order(rows(FIRST, SECOND), key)] == names


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (1000, "1.0k"), (1536, "1.5k"), (12 << 20, "12M"), (5 << 40, "5.0T")],
)
def test_an_amount_is_short(number: float | None, text: str) -> None:
    assert amount(number) == text


def test_a_table_has_its_columns_below_their_titles() -> None:
    head, web, main, side, db = table(in_order(rows(FIRST, SECOND), "memory"), "memory")
    assert len({len(line) for line in (head, web, main, side, db)}) == 1
    assert "MEM*" in head
    assert web.split()[:3] == ["default/web", "50%", "3.0M"]
    assert main.split() == ["main", "40%", "2.0M", "25%", "1.0M", "0", "-", "-", "3", "-", "-", "-"]
    assert side.split()[-3:] == ["12%", "0%", "1%"]


def test_long_names_are_cut_before_numbers_are_hidden() -> None:
    long = [replace(row, pod="coredns-7db6d8ff4d-" * 4) for row in rows(FIRST, SECOND)]
    head, *lines = table(long, "cpu", 80)
    assert head.index("CPU*") < 32
    assert {line[23] for line in lines if not line.startswith("  ")} == {"…"}
    assert table(long, "cpu", 500) == table(long, "cpu")


@pytest.mark.parametrize(("cores", "text"), [(0.0, "0.0%"), (0.004, "0.4%"), (0.1, "10%"), (1.5, "150%"), (None, "-")])
def test_little_work_is_told_to_a_tenth(cores: float | None, text: str) -> None:
    assert COLUMNS["cpu"].text(replace(rows(FIRST, SECOND)[0], cores=cores)) == text


def test_every_order_can_be_asked_for_by_a_flag() -> None:
    parser = cli._parser()
    assert [parser.parse_args(["top", "--sort", name]).sort for name in SORTS] == list(SORTS)
    assert set(KEYS.values()) == set(SORTS)
    assert ("name", *COLUMNS) == SORTS


class Client:
    """Stands for a daemon: one look after the other, the last again and again."""

    looks: list[list[Usage]]

    def __init__(self, _listen: str) -> None:
        type(self).looks = [FIRST, SECOND]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def look(self) -> list[Usage]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_top, "StatsClient", Client)


def asked(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"sort": "cpu", "interval": 0.001, "count": 0, "plain": False} | changes)


def test_away_from_a_terminal_one_table_is_printed_without_movements() -> None:
    out = io.StringIO()
    assert cli_top.top(Config(), asked(), out) == 0
    assert out.getvalue().splitlines() == table(in_order(rows(FIRST, SECOND), "cpu"), "cpu")
    assert "\x1b" not in out.getvalue()


def test_several_tables_are_kept_apart() -> None:
    out = io.StringIO()
    cli_top.top(Config(), asked(count=2), out)
    assert out.getvalue().count("POD and container") == 2
    assert "\n\n" in out.getvalue()


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="interval"):
        cli_top.top(Config(), asked(interval=0), io.StringIO())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A terminal on which keys are typed, and what was written to it."""
    keys, theirs = pty.openpty()
    with os.fdopen(theirs, "r+b", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as file:
        monkeypatch.setattr("sys.stdin", file)
        yield keys, file
    os.close(keys)


def test_on_a_terminal_keys_choose_the_order_and_q_ends(terminal: Any) -> None:
    keys, file = terminal
    seen = bytearray()

    def read() -> None:
        while b"\x1b[?1049l" not in seen:
            seen.extend(os.read(keys, 65536))
            if b"CPU*" in seen and b"typed" not in seen:
                seen.extend(b"typed")
                os.write(keys, b"mq")

    reader = threading.Thread(target=read)
    reader.start()
    assert cli_top.top(Config(), asked(interval=5), file) == 0
    reader.join()
    assert b"MEM*" in seen
    assert seen.index(b"\x1b[?1049h") < seen.index(b"default/web")
