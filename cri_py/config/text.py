"""A Config as TOML: the commented default, and the effective one with the place of each value."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from cri_py.config.lines import spell
from cri_py.config.loading import Loaded
from cri_py.config.rules import Path
from cri_py.config.tables import EXAMPLES, Config, kinds


def default_text() -> str:
    """A config file with every key at its default, each with what it means."""
    out = ["# All keys of cri_py, at their defaults. Files in config.d/*.toml beside this one override it.", ""]
    for table in fields(Config):
        kind = typing.cast(type, kinds(Config)[table.name])
        out += [f"# {kind.__doc__}", f"[{table.name}]"]
        named = []
        for part in fields(kind):
            out.append(f"# {part.metadata['comment']}")
            if part.default is MISSING:
                named = _example_table((table.name, part.name), typing.get_args(kinds(kind)[part.name])[1])
            else:
                out.append(f"{part.name} = {toml(part.default)}")
        out += [*named, ""]
    return "\n".join(out)


def _example_table(path: Path, inner: type) -> list[str]:
    """A commented table of the kind that the user names."""
    lines = ["", f"# {inner.__doc__}", f"# [{spell((*path, EXAMPLES[inner]))}]"]
    for part in fields(inner):
        lines += [f"#   {part.metadata['comment']}", f"# {part.name} = {toml(part.default)}"]
    return lines


def effective_text(loaded: Loaded) -> str:
    """The effective config as TOML, each value with where it was set."""
    out: list[str] = []
    for table in fields(Config):
        out += _effective_table((table.name,), getattr(loaded.config, table.name), loaded.sources)
    return "\n".join(out)


def _effective_table(path: Path, table: Any, sources: Mapping[Path, str]) -> list[str]:
    lines, named = [f"[{spell(path)}]"], []
    for part in fields(table):
        value, here = getattr(table, part.name), (*path, part.name)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                named += _effective_table((*here, name), inner, sources)
        else:
            lines.append(f"{part.name} = {toml(value)}  # {sources.get(here, 'default')}")
    return [*lines, "", *named]


def toml(value: object) -> str:
    """A string, number, truth value or array of strings as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):  # a JSON string is a TOML one, but for the one control character that JSON leaves bare
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
