"""The explanation as a page for a person: sections, a line for each fact, the field that it came from beside it. Pure.

Colours are ECMA-48's and only for a terminal; without them the page says the same.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from cri_py.explain.facts import Explanation, Fact, Origin, Section, Subject

_SHORT_ID: Final = 12
_NAME_WIDTH: Final = 28  # longer names have a line of their own
_MARGIN: Final = 2
_ASKED_WIDTH: Final = 60
_WHOSE: Final = {"container": "", "sandbox": "pod: ", "image": "image: ", "node": "node: "}
_STYLES: Final = {"title": "1;36", "name": "1", "quiet": "2", "alarm": "1;33"}


class Paint:
    """Words in the style of what they are; as they are where there is no terminal."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colours and text else text


def _printable(text: str) -> str:
    """What a container chose (paths of mounts, messages) must not steer the terminal, nor be no text at all."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def page(explanation: Explanation, *, width: int, colours: bool) -> str:
    """``width`` in columns: lines are wrapped to it where they can be."""
    paint = Paint(colours=colours)
    lines = [*_head(explanation, paint, width)]
    for section in explanation.sections:
        lines += ["", *_section(section, paint, width)]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------- head


def _head(explanation: Explanation, paint: Paint, width: int) -> Iterator[str]:
    subject = explanation.subject
    metadata = subject.asked.sandbox.get("metadata", {})
    pod = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
    yield paint("name", f"{subject.name} ({subject.id[:_SHORT_ID]})") + _printable(f" in pod {pod}: {_state(subject)}")
    yield f"{_printable(subject.image)}, created {_time(subject.created_at)}"
    if explanation.why:
        yield from _wrapped(paint, "alarm", explanation.why, width, indent=0)


def _state(subject: Subject) -> str:
    if subject.state == "running":
        return f"running as process {subject.pid} since {_time(subject.started_at)}"
    if subject.state not in ("exited", "unknown"):
        return subject.state
    message = f": {subject.message}" if subject.message else ""
    code = f"exit code {subject.exit_code}" if subject.state == "exited" else "exit code not known"
    return f"{subject.state} at {_time(subject.finished_at)}, {code}, {subject.reason}{message}"


def _time(nanos: int) -> str:
    return datetime.fromtimestamp(nanos // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --------------------------------------------------------------- sections


def _section(section: Section, paint: Paint, width: int) -> Iterator[str]:
    yield paint("title", section.title.upper()) + paint("quiet", f"  {section.name}")
    yield from _wrapped(paint, "quiet", section.about, width, indent=_MARGIN)
    if section.pages:
        yield from _wrapped(
            paint, "quiet", f"Read on: {', '.join((*section.pages, *section.made_by))}", width, indent=_MARGIN
        )
    if section.about:
        yield ""
    groups = list(_alike(section.facts))
    names = [len(_names(alike)) for alike in groups]
    column = max([length for length in names if length <= _NAME_WIDTH], default=0)
    for alike in groups:
        yield from _facts(alike, paint, width, column)


def _alike(facts: Sequence[Fact]) -> Iterator[list[Fact]]:
    """Neighbours that say the same from the same field are told together."""
    for _, group in itertools.groupby(facts, _sameness):
        yield list(group)


def _sameness(fact: Fact) -> tuple[str, ...]:
    return fact.text, fact.origin.of, fact.origin.field, fact.means, fact.differs


def _names(alike: Sequence[Fact]) -> str:
    return _printable(" ".join(fact.name for fact in alike))


def _facts(alike: Sequence[Fact], paint: Paint, width: int, column: int) -> Iterator[str]:
    """``column``: how wide the names are."""
    first = alike[0]
    indent = _MARGIN + column + 2
    names, text = _names(alike), _printable(first.text)
    origin = _origin(first.origin, several=len(alike) > 1)
    if len(names) <= column:
        lines = textwrap.wrap(text, max(width - indent, 20), break_long_words=False, break_on_hyphens=False) or [""]
        yield " " * _MARGIN + paint("name", names) + " " * (column - len(names) + 2) + lines[0]
        rest = [" " * indent + line for line in lines[1:]]
    else:
        yield from _wrapped(paint, "name", names, width, indent=_MARGIN)
        rest = list(_wrapped(paint, "", text, width, indent=indent))
    yield from rest
    if first.means:
        yield from _wrapped(paint, "quiet", first.means, width, indent=indent)
    if first.differs:
        yield from _wrapped(paint, "alarm", f"! {first.differs}", width, indent=indent)
    if origin:
        yield from _wrapped(paint, "quiet", f"← {origin}", width, indent=indent)


def _wrapped(paint: Paint, style: str, text: str, width: int, *, indent: int) -> Iterator[str]:
    for line in textwrap.wrap(
        _printable(text), max(width - indent, 20), break_long_words=False, break_on_hyphens=False
    ):
        yield " " * indent + (paint(style, line) if style else line)


def _origin(origin: Origin, *, several: bool) -> str:
    """``linux.resources.cpu_shares: 102``; nothing for what is the same for every container."""
    if origin.of not in _WHOSE:
        return ""
    untold = several or origin.of == "image" or (origin.of == "node" and origin.asked is None)
    asked = "" if untold else f": {_asked(origin)}"
    return f"{_WHOSE[origin.of]}{origin.field}{asked}"


def _asked(origin: Origin) -> str:
    if origin.asked is None or origin.asked in ("", {}):
        return "not set"
    if isinstance(origin.asked, str):
        return origin.asked
    text = _words(origin.asked)
    return text if len(text) <= _ASKED_WIDTH else f"{text[: _ASKED_WIDTH - 1]}…"


def _words(value: Any) -> str:
    """JSON as a person would write it."""
    if isinstance(value, Mapping):
        # where a mount or device is in the container is its name, which is told already
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items() if key != "container_path")
    if isinstance(value, list):
        return " ".join(map(_words, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)
