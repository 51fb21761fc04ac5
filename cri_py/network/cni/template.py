"""A CNI configuration made from a template and the pod CIDRs that the kubelet tells. Pure.

Templates are those that containerd takes (``conf_template``), written in Go's text/template. Of that language they use,
and this knows: ``{{.Name}}``, ``{{$name}}``, ``{{range $i, $x := .Name}}``, ``{{if $i}}``, ``{{end}}``, and ``{{-`` and
``-}}`` that trim the white space beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cri_py.errors import ConfigError
from cri_py.network.pod_cidrs import Network

Fact = str | Sequence[str] | int

_ACTION: Final = re.compile(r"(\s*\{\{-\s|\{\{)\s*(.*?)\s*(\s-\}\}\s*|\}\})", re.DOTALL)
_RANGE: Final = re.compile(r"range\s+(?:(\$\w+)\s*,\s*)?(\$\w+)\s*:=\s*(\.\w+)")
_IF: Final = re.compile(r"if\s+(\$\w+|\.\w+)")
_NAME: Final = re.compile(r"\$\w+|\.\w+")


def facts(networks: Sequence[Network]) -> dict[str, Fact]:
    """The names that a template may use: PodCIDR, PodCIDRRanges, Routes (a default route for each family)."""
    routes = {4: "0.0.0.0/0", 6: "::/0"}
    return {
        ".PodCIDR": str(networks[0]),
        ".PodCIDRRanges": [str(network) for network in networks],
        ".Routes": [routes[version] for version in dict.fromkeys(network.version for network in networks)],
    }


def render(template: str, known: Mapping[str, Fact]) -> str:
    """The text with all actions carried out. Raises ConfigError, which names the action that isn't known."""
    return "".join(_render(_parse(template), known))


@dataclass(frozen=True, slots=True)
class _Action:
    """What stands between braces, with what stands before its ``end``."""

    words: str
    inner: list[str | _Action] = field(default_factory=list)


def _parse(template: str) -> list[str | _Action]:
    stack: list[list[str | _Action]] = [[]]
    at = 0
    for found in _ACTION.finditer(template):
        stack[-1].append(template[at : found.start()])
        at = found.end()
        words = found[2]
        if words == "end":
            if len(stack) == 1:
                raise ConfigError("the CNI template has an {{end}} too many")
            stack.pop()
            continue
        action = _Action(words)
        stack[-1].append(action)
        if words.startswith(("range ", "if ")):
            stack.append(action.inner)
    if len(stack) > 1:
        raise ConfigError("the CNI template lacks an {{end}}")
    stack[0].append(template[at:])
    return stack[0]


def _render(parts: Sequence[str | _Action], known: Mapping[str, Fact]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif repeated := _RANGE.fullmatch(part.words):
            index, each, name = repeated.groups()
            listed = _fact(name, known)
            for number, element in enumerate(listed if isinstance(listed, list) else ()):
                yield from _render(part.inner, {**known, each: element, **({index: number} if index else {})})
        elif chosen := _IF.fullmatch(part.words):
            if _fact(chosen[1], known):
                yield from _render(part.inner, known)
        elif _NAME.fullmatch(part.words):
            yield str(_fact(part.words, known))
        else:
            raise ConfigError(
                f"the CNI template has {{{{{part.words}}}}}, which cri_py does not know",
                hint="it knows range, if, end, .PodCIDR, .PodCIDRRanges and .Routes",
            )


def _fact(name: str, known: Mapping[str, Fact]) -> Fact:
    try:
        return known[name]
    except KeyError:
        raise ConfigError(f"the CNI template names {name}", hint=f"it may name {', '.join(known)}") from None
