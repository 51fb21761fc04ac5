"""Configuration files of others, in TOML: parsed again when they changed, checked key by key.

What is wrong is named with file and line: a mistake in a mirror's file must not silently send pulls elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from cri_py.config import line_of, spell
from cri_py.errors import ConfigError

_T = TypeVar("_T")
_Signature = tuple[int, int, int]

FILE_LIMIT: Final = 16 << 20


class Fresh(Generic[_T]):
    """What files say, by ``parse(content, path)``, kept until they change."""

    def __init__(self, parse: Callable[[bytes, str], _T]) -> None:
        self._parse = parse
        self._kept: dict[str, tuple[_Signature, _T]] = {}

    def get(self, path: str) -> _T | None:
        """None if there is no such file. Raises ConfigError if it can't be read, and what ``parse`` raises."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo must not hold us up
        except (FileNotFoundError, NotADirectoryError):
            self._kept.pop(path, None)
            return None
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}") from error
        try:
            status = os.fstat(fd)
            signature = (status.st_ino, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns))
            kept = self._kept.get(path)
            if kept is not None and kept[0] == signature:
                return kept[1]
            parsed = self._parse(_content(fd, path), path)
        finally:
            os.close(fd)
        self._kept[path] = (signature, parsed)
        return parsed


def _content(fd: int, path: str) -> bytes:
    content = b""
    try:
        while piece := os.read(fd, FILE_LIMIT + 1):
            content += piece
            if len(content) > FILE_LIMIT:
                raise ConfigError(f"{path} has more than {FILE_LIMIT} bytes")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    return content


@dataclass(frozen=True, slots=True)
class Table:
    """A TOML table that knows where it stands. The getters raise ConfigError if a value is of another type."""

    file: str
    text: str = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)
    path: tuple[str | int, ...] = ()

    def place(self, *below: str | int) -> str:
        """``FILE:LINE`` of a key below this table, or of the table itself."""
        return f"{self.file}:{line_of(self.text, (*self.path, *below)) or 1}"

    def wrong(self, key: str, wanted: str) -> ConfigError:
        """The error that says that ``key`` isn't ``wanted``."""
        value = self.values.get(key)
        shown = "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)[:100]
        name = spell(tuple(str(part) for part in (*self.path, key)))
        return ConfigError(f"{self.place(key)}: {name} is {shown}", hint=f"it takes {wanted}")

    def string(self, key: str) -> str:
        value = self.values.get(key, "")
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def boolean(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.wrong(key, "an array of strings")
        return tuple(value)

    def table(self, key: str) -> Table:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return Table(self.file, self.text, value, (*self.path, key))

    def tables(self, key: str) -> Iterator[tuple[str, Table]]:
        """The named tables below ``key``, in the file's order."""
        outer = self.table(key)
        for name in outer.values:
            yield name, outer.table(name)

    def array(self, key: str) -> Iterator[Table]:
        """The tables of the array ``[[key]]``."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self.wrong(key, "an array of tables")
        for index, each in enumerate(value):
            yield Table(self.file, self.text, each, (*self.path, key, index))

    def unknown(self, known: frozenset[str]) -> list[str]:
        """``FILE:LINE: KEY`` of every key that is not ``known``."""
        return [f"{self.place(key)}: {key}" for key in self.values if key not in known]


def parse_toml(content: bytes, file: str) -> Table:
    """Raises ConfigError that names the line if ``content`` is no TOML."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}: not TOML: this is no UTF-8") from error
    try:
        return Table(file, text, tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # "(at end of document)"
        cause = re.sub(r" \(at [^)]*\)$", "", str(error))
        raise ConfigError(f"{file}:{line}: not TOML: {cause}") from error


_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration_s(text: str) -> float | None:
    """Seconds of a duration in Go's notation, ``1m30s``; None if it is none (https://pkg.go.dev/time#ParseDuration)."""
    parts = list(_DURATION_PART.finditer(text))
    if "".join(part[0] for part in parts) != text or not parts:
        return None
    return sum(float(part[1]) * _UNITS_S[part[2]] for part in parts)
