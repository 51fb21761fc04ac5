"""Keys as TOML writes them, and the lines on which they stand."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final

from cri_py.config.rules import Path


def spell(path: Path) -> str:
    """A key as TOML writes it: ``images.registries."registry.k8s.io".mirrors``."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in path)


_HEADER: Final = re.compile(r"""\s*(?P<array>\[)?\[(?P<key>(?:"[^"]*"|'[^']*'|[^\[\]"'])+)\]\]?\s*(#.*)?""")
_ASSIGNMENT: Final = re.compile(r"""\s*(?P<key>(?:"[^"]*"|'[^']*'|[A-Za-z0-9_.\s-])+?)\s*=""")


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The number of the line of TOML that sets ``path``, or the nearest table around it; 0 if there is none.

    A number in ``path`` counts the tables of an array: ("registry", 1, "prefix") is in the second ``[[registry]]``.
    tomllib tells no lines of what it parsed, so the headers and assignments are looked for again.
    """
    table: tuple[str | int, ...] = ()
    last: dict[tuple[str | int, ...], int] = {}  # the array tables so far, each with its last index
    best, best_depth = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            table = found = _table_path(_split_key(header["key"]), bool(header["array"]), last)
        elif assignment := _ASSIGNMENT.match(line):
            found = (*table, *_split_key(assignment["key"]))
        else:
            continue
        if found and tuple(path[: len(found)]) == found and len(found) > best_depth:
            best, best_depth = number, len(found)
    return best


def _table_path(key: Path, array: bool, last: dict[tuple[str | int, ...], int]) -> tuple[str | int, ...]:
    """Where a header leads: below the last table of every array that it passes, or to a new one."""
    found: tuple[str | int, ...] = ()
    for depth, part in enumerate(key, 1):
        found = (*found, part)
        if array and depth == len(key):
            last[found] = last.get(found, -1) + 1
        if found in last:
            found = (*found, last[found])
    return found


def _split_key(dotted: str) -> Path:
    """The parts of a dotted key, quotes removed; () for what only looks like one (a line inside a string)."""
    try:
        nested: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(nested, dict):
        ((part, nested),) = nested.items()
        parts.append(part)
    return tuple(parts)
