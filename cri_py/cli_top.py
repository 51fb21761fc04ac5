"""``cri-py top``: what pods and containers use right now, as a table that is drawn anew until it is ended.

On a terminal the table fills the screen and keys choose its order; elsewhere it is printed, without colours and
movements, as often as asked for.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, TextIO

from cri_py.config import Config
from cri_py.errors import ConfigError
from cri_py.rpc.stats_client import StatsClient, Usage

_UNKNOWN: Final = "-"
_LEAST_NAME: Final = 24
_UNITS: Final = ("", "k", "M", "G", "T", "P")
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
_SCREEN: Final = ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l")  # its own page, without a cursor (xterm's ctlseqs)
_REVERSE: Final = ("\x1b[7m", "\x1b[m")
_QUIT: Final = ("q", "\x03")


@dataclass(frozen=True, slots=True)
class Row:
    """One line. Rates are a second's; None where nobody counts, or before a second look."""

    namespace: str
    pod: str
    container: str
    cores: float | None
    memory: int | None
    of_limit: float | None  # share of the memory limit
    read: float | None
    written: float | None
    received: float | None
    transmitted: float | None
    threads: int | None
    pressure: Mapping[str, float]


class Column(NamedTuple):
    """``amount`` is what is sorted by, ``text`` what is shown."""

    title: str
    width: int
    amount: Callable[[Row], float]
    text: Callable[[Row], str]


def top(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """Until Ctrl-C, q, or ``--count`` tables. Raises Unavailable where no daemon answers."""
    if parsed.interval <= 0:
        raise ConfigError(f"--interval is {parsed.interval:g}", hint="a number of seconds above 0")
    live = out.isatty() and sys.stdin.isatty() and not parsed.plain
    with StatsClient(config.listen) as client:
        return (_draw if live else _print)(client, parsed, out)


# ------------------------------------------------------------------- looking


def rows(before: Sequence[Usage], now: Sequence[Usage]) -> list[Row]:
    """What is there now, with rates since ``before`` for what was there then. Pure."""
    earlier = {each.id: each for each in before}
    return [_row(earlier.get(each.id), each) for each in now]


def _row(before: Usage | None, now: Usage) -> Row:
    seconds = (now.at - before.at) / 1e9 if before else 0.0

    def rate(name: str) -> float | None:
        total, earlier = getattr(now, name), getattr(before, name) if before else None
        return max(total - earlier, 0) / seconds if total is not None and earlier is not None and seconds > 0 else None

    limit = None if now.memory is None or now.available is None else now.memory + now.available
    return Row(
        namespace=now.namespace,
        pod=now.pod,
        container=now.container,
        cores=now.cores,
        memory=now.memory,
        of_limit=now.memory / limit if limit and now.memory is not None else None,
        read=rate("read"),
        written=rate("written"),
        received=rate("received"),
        transmitted=rate("transmitted"),
        threads=now.threads,
        pressure=now.pressure,
    )


def in_order(found: Sequence[Row], key: str) -> list[Row]:
    """Pods by ``key``, the largest first, and below each its containers by the same; by name from A to Z. Pure."""

    def place(row: Row) -> tuple[float, str]:
        return (0.0 if key == "name" else -COLUMNS[key].amount(row)), row.container or f"{row.namespace}/{row.pod}"

    members: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        if row.container:
            members.setdefault((row.namespace, row.pod), []).append(row)
    pods = sorted((row for row in found if not row.container), key=place)
    return [row for pod in pods for row in (pod, *sorted(members.pop((pod.namespace, pod.pod), ()), key=place))]


# --------------------------------------------------------------------- table


def amount(number: float | None) -> str:
    """Four places at most: 0, 512, 1.5k, 12M; - for what nobody counts."""
    if number is None:
        return _UNKNOWN
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            return f"{number:.1f}{unit}" if unit and number < 9.95 else f"{number:.0f}{unit}"
        number /= 1024
    raise AssertionError("the last unit takes every number")


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share * 100:.0f}%"


def _fine_percent(share: float | None) -> str:
    """With a tenth where it is small: most containers do little, and not the same little."""
    return f"{share * 100:.1f}%" if share is not None and share < 0.0995 else _percent(share)


def _pressure(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row.pressure[name]:.0f}%" if name in row.pressure else _UNKNOWN


COLUMNS: Final[Mapping[str, Column]] = {
    "cpu": Column("CPU", 6, lambda row: row.cores or 0, lambda row: _fine_percent(row.cores)),
    "memory": Column("MEM", 6, lambda row: row.memory or 0, lambda row: amount(row.memory)),
    "limit": Column("LIMIT", 6, lambda row: row.of_limit or 0, lambda row: _percent(row.of_limit)),
    "read": Column("READ/s", 7, lambda row: row.read or 0, lambda row: amount(row.read)),
    "write": Column("WRITE/s", 8, lambda row: row.written or 0, lambda row: amount(row.written)),
    "rx": Column("RX/s", 6, lambda row: row.received or 0, lambda row: amount(row.received)),
    "tx": Column("TX/s", 6, lambda row: row.transmitted or 0, lambda row: amount(row.transmitted)),
    "pids": Column("PIDS", 6, lambda row: row.threads or 0, lambda row: amount(row.threads)),
    "psi-cpu": Column("PSI-CPU", 8, lambda row: row.pressure.get("cpu", 0), _pressure("cpu")),
    "psi-mem": Column("PSI-MEM", 8, lambda row: row.pressure.get("memory", 0), _pressure("memory")),
    "psi-io": Column("PSI-IO", 7, lambda row: row.pressure.get("io", 0), _pressure("io")),
}
SORTS: Final = ("name", *COLUMNS)
KEYS: Final = {
    "n": "name",
    "c": "cpu",
    "m": "memory",
    "l": "limit",
    "r": "read",
    "w": "write",
    "x": "rx",
    "t": "tx",
    "p": "pids",
    "1": "psi-cpu",
    "2": "psi-mem",
    "3": "psi-io",
}


def table(found: Sequence[Row], key: str, columns: int = 0) -> list[str]:
    """A headline and a line for each row; the column that decides the order is marked. Pure.

    Where the screen has ``columns``, long names are cut, so that numbers are still to be seen.
    """
    names = [f"  {row.container}" if row.container else f"{row.namespace}/{row.pod}" for row in found]
    if columns:
        room = max(columns - sum(each.width + 1 for each in COLUMNS.values()), _LEAST_NAME)
        names = [name if len(name) <= room else f"{name[: room - 1]}…" for name in names]
    width = max(map(len, ["POD and container", *names]))
    titles = [f"{f'{each.title}*' if name == key else each.title:>{each.width + 1}}" for name, each in COLUMNS.items()]
    lines = [f"{'POD and container':{width}}{''.join(titles)}"]
    for name, row in zip(names, found, strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{each.text(row):>{each.width + 1}}" for each in COLUMNS.values()))
    return lines


# ------------------------------------------------------------------ the loop


def _print(client: StatsClient, parsed: argparse.Namespace, out: TextIO) -> int:
    """Tables as text, an empty line between two; a rate needs two looks, so the first comes after an interval."""
    before = client.look()
    for number in range(parsed.count or 1):
        time.sleep(parsed.interval)
        now = client.look()
        lines = table(in_order(rows(before, now), parsed.sort), parsed.sort)
        out.write(("\n" if number else "") + "\n".join(lines) + "\n")
        out.flush()
        before = now
    return 0


def _draw(client: StatsClient, parsed: argparse.Namespace, out: TextIO) -> int:
    key, shown, before = parsed.sort, 0, client.look()
    found = rows((), before)
    with _keyboard(out) as pressed:
        while True:
            out.write(_page(found, key, shutil.get_terminal_size()))
            out.flush()
            if parsed.count and shown >= parsed.count:
                return 0
            letter = pressed(parsed.interval)
            if letter in _QUIT:
                return 0
            if letter:
                key = KEYS.get(letter, key)
                continue
            now = client.look()
            found, before, shown = rows(before, now), now, shown + 1


def _page(found: Sequence[Row], key: str, size: os.terminal_size) -> str:
    """The screen from its top: what fits of the table, and what the keys do."""
    head, *lines = table(in_order(found, key), key, size.columns)
    room = max(size.lines - 2, 1)
    hidden = len(lines) - room
    keys = " ".join(f"{letter}:{name}" for letter, name in KEYS.items())
    foot = f"{f'{hidden} more; ' if hidden > 0 else ''}order {keys} q:quit"
    head = _REVERSE[0] + f"{head:{size.columns}}"[: size.columns] + _REVERSE[1]
    shown = [head, *(line[: size.columns] for line in lines[:room])]
    return _HOME + "".join(f"{line}{_REST_OF_LINE}\r\n" for line in shown) + foot[: size.columns] + _REST_OF_SCREEN


@contextmanager
def _keyboard(out: TextIO) -> Iterator[Callable[[float], str]]:
    """A page of its own and keys without Enter; both are as before afterwards. The call waits for a key, "" if none."""
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    out.write(_SCREEN[0])
    try:
        tty.setcbreak(fd)
        yield lambda timeout_s: _key(fd, timeout_s)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
        out.write(_SCREEN[1])
        out.flush()


def _key(fd: int, timeout_s: float) -> str:
    ready, _, _ = select.select([fd], [], [], timeout_s)
    return os.read(fd, 1).decode(errors="replace") if ready else ""
