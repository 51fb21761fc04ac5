"""Files and flags become one Config; whatever is wrong is told with file, key and line."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar

from cri_py.config.lines import line_of, spell
from cri_py.config.rules import Path, Rule
from cri_py.config.tables import BlockIoClass, CniHandlerConfig, Config, RegistryConfig, keys, kinds
from cri_py.errors import ConfigError

DEFAULT_FILE: Final = "/etc/cri_py/config.toml"

_T = TypeVar("_T")
_NAMED: Final[Mapping[Path, type]] = {
    ("images", "registries"): RegistryConfig,
    ("network", "cni_handlers"): CniHandlerConfig,
    ("runtime", "block_io_classes"): BlockIoClass,
}  # whose tables the user names


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective config, and where each value that isn't a default was set, as ``FILE:LINE`` or ``--flag``."""

    config: Config
    sources: Mapping[Path, str]


@dataclass(frozen=True, slots=True)
class Flag:
    """A value from the command line for one key."""

    name: str  # as typed: --root
    value: Any


@dataclass(frozen=True, slots=True)
class _Origin:
    """Something that sets keys: a file's text, or a flag."""

    name: str
    text: str | None = None  # None: a flag

    def place(self, path: Path) -> str:
        if self.text is None:
            return self.name
        line = line_of(self.text, path)
        return f"{self.name}:{line}" if line else self.name


def files_of(main: str) -> list[str]:
    """``main`` and its drop-ins, in the order in which they count; a missing default file is no error."""
    directory = main.removesuffix(".toml") + ".d"
    try:
        drop_ins = sorted(name for name in os.listdir(directory) if name.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        drop_ins = []
    first = [] if main == DEFAULT_FILE and not os.path.exists(main) else [main]
    return first + [os.path.join(directory, name) for name in drop_ins]


def load(files: Sequence[str] = (), flags: Mapping[Path, Flag] | None = None) -> Loaded:
    """Merge ``files`` in their order, then ``flags``, over the defaults.

    Raises ConfigError that names file and line (or flag), key, what is wrong and what would be right.
    """
    merged: dict[str, Any] = {}
    sources: dict[Path, str] = {}
    for file in files:
        text = _read(file)
        _merge(merged, _parse(text, file), _Origin(file, text), sources)
    for path, flag in (flags or {}).items():
        nested: Any = flag.value
        for part in reversed(path):
            nested = {part: nested}
        _merge(merged, nested, _Origin(flag.name), sources)
    return Loaded(_build(Config, merged), sources)


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist", hint="`cri-py config default` prints one to begin with") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # "(at end of document)"
        cause = re.sub(r" \(at [^)]*\)$", "", str(error))
        raise ConfigError(f"{file}:{line}: not TOML: {cause}") from error


def _merge(merged: dict[str, Any], table: dict[str, Any], origin: _Origin, sources: dict[Path, str]) -> None:
    """Check ``table`` and lay it over ``merged``; note in ``sources`` where each of its values stands."""

    def lay(over: dict[str, Any], under: dict[str, Any], path: Path) -> None:
        for word, value in over.items():
            here = (*path, word)
            if isinstance(value, dict):
                lay(value, under.setdefault(word, {}), here)
            else:
                under[word] = value
                sources[here] = origin.place(here)

    lay(_check_table(Config, table, (), origin), merged, ())


def _build(cls: Callable[..., _T], table: Mapping[str, Any]) -> _T:
    """Checked tables to dataclasses; what is missing keeps its default."""
    arguments: dict[str, Any] = {}
    for word, kind in kinds(typing.cast(type, cls)).items():
        if word not in table:
            continue
        if is_dataclass(kind):
            arguments[word] = _build(typing.cast(type, kind), table[word])
        elif typing.get_origin(kind) is Mapping:
            inner = typing.get_args(kind)[1]
            arguments[word] = {name: _build(inner, value) for name, value in table[word].items()}
        else:
            arguments[word] = table[word]
    return cls(**arguments)


# ---------------------------------------------------------------- checking


def _check_table(cls: type, table: object, path: Path, origin: _Origin) -> dict[str, Any]:
    """``table`` with every value checked, and lists made tuples."""
    if not isinstance(table, dict):
        raise ConfigError(
            f"{origin.place(path)}: {spell(path)} is {_shown(table)}", hint=f"it is a table: write [{spell(path)}]"
        )
    known = kinds(cls)
    rules = {f.name: f.metadata.get("rule") for f in fields(cls)}
    checked: dict[str, Any] = {}
    for word, value in table.items():
        here = (*path, word)
        if word not in known:
            raise ConfigError(f"{origin.place(here)}: {spell(here)} is no key of cri_py", hint=_suggest(path, word))
        kind = known[word]
        if is_dataclass(kind):
            checked[word] = _check_table(typing.cast(type, kind), value, here, origin)
        elif typing.get_origin(kind) is Mapping:
            checked[word] = _check_named_tables(typing.get_args(kind)[1], value, here, origin)
        else:
            checked[word] = _check_value(kind, rules[word], value, here, origin)
    return checked


def _check_named_tables(inner: type, table: object, path: Path, origin: _Origin) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(
            f"{origin.place(path)}: {spell(path)} is {_shown(table)}", hint=f'write [{spell(path)}."NAME"]'
        )
    return {name: _check_table(inner, value, (*path, name), origin) for name, value in table.items()}


def _check_value(kind: object, rule: Rule | None, value: object, path: Path, origin: _Origin) -> object:
    wanted, converted = _CONVERSIONS[kind](value)
    if converted is None:
        raise ConfigError(f"{origin.place(path)}: {spell(path)} is {_shown(value)}", hint=f"it takes {wanted}")
    complaint = rule(converted) if rule else ""
    if complaint:
        raise ConfigError(f"{origin.place(path)}: {spell(path)} is {_shown(value)}", hint=complaint)
    return converted


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # bool is a subclass of int


def _strings(value: object) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    return None


_CONVERSIONS: Final[Mapping[object, Callable[[Any], tuple[str, Any]]]] = {
    str: lambda value: ("a string", value if isinstance(value, str) else None),
    bool: lambda value: ("true or false", value if isinstance(value, bool) else None),
    int: lambda value: ("a whole number", value if _is_int(value) else None),
    float: lambda value: ("a number", float(value) if _is_int(value) or isinstance(value, float) else None),
    tuple[str, ...]: lambda value: ("an array of strings", _strings(value)),
}


def _shown(value: object) -> str:
    return "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)


def _suggest(path: Path, word: str) -> str:
    """The nearest key beside it, or else one of the same or nearly the same name in another table."""
    names = [name for name, _ in keys(Config, ())]
    siblings = {name[len(path)] for name in names if name[: len(path)] == path and len(name) > len(path)}
    if len(path) > 2 and path[:2] in _NAMED:
        siblings = {part.name for part in fields(_NAMED[path[:2]])}
    near = difflib.get_close_matches(word, sorted(siblings), n=1)
    if near:
        return f"did you mean {spell((*path, near[0]))}?"
    elsewhere = difflib.get_close_matches(word, [name[-1] for name in names], n=1, cutoff=0.8)
    found = [name for name in names if elsewhere and name[-1] == elsewhere[0]]
    return f"did you mean {spell(found[0])}?" if found else "`cri-py config default` lists all keys"
