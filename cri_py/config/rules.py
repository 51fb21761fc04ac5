"""What values a key takes, and how a dataclass says so."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

Rule = Callable[[Any], str]
"""What values a key takes: answers "" for one that it takes, otherwise what it wants ("use …")."""

Path = tuple[str, ...]
"""A key with its tables: ("images", "registries", "registry.k8s.io", "mirrors")."""


# ------------------------------------------------------------------- rules


def one_of(*words: str) -> Rule:
    return lambda value: "" if value in words else f"use one of {', '.join(words)}"


def within(low: float, high: float) -> Rule:
    return lambda value: "" if low <= value <= high else f"use a number from {low:g} to {high:g}"


def matching(pattern: str, wanted: str) -> Rule:
    return lambda value: "" if re.fullmatch(pattern, value) else f"use {wanted}"


def each(rule: Rule) -> Rule:
    return lambda values: next(filter(None, map(rule, values)), "")


def ipv4_subnet(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        return f"use an IPv4 network such as 10.85.0.0/16: {error}"
    return "" if network.prefixlen <= 29 else "use a network of at least 8 addresses (/29)"


def ipv6_subnet(value: str) -> str:
    try:
        network = ipaddress.IPv6Network(value or "::/0")
    except ValueError as error:
        return f"use an IPv6 network such as fd00:85::/64: {error}"
    return "" if network.prefixlen <= 125 else "use a network of at least 8 addresses (/125)"


ABSOLUTE: Final = matching(r"(?!.*/\.\.(/|$))/[^\0]*", "an absolute path without ..")
ABSOLUTE_OR_NONE: Final = matching(r"(?!.*/\.\.(/|$))(/[^\0]*)?", 'an absolute path without .., or ""')
ADDRESS: Final = r"(unix://)?/.+|(tcp://)?[^/\s]+:\d{1,5}"
URL: Final = matching(r"https?://[^/\s]+(/\S*)?", "a URL that begins with http:// or https://")
POSITIVE_S: Final = within(0.001, 86400)
GIB: Final = 1 << 30


def key(default: _T, comment: str, rule: Rule | None = None) -> _T:
    """A key of the config: its default, what it means in one or two lines, what values it takes."""
    metadata = {"comment": comment, "rule": rule}
    if isinstance(default, Mapping):
        made: _T = field(default_factory=lambda: default, metadata=metadata)
        return made
    return field(default=default, metadata=metadata)
