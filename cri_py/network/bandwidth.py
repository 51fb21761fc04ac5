"""How fast a pod may receive and send: Kubernetes' annotations, in bits per second. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from cri_py.errors import InvalidArgument

INGRESS: Final = "kubernetes.io/ingress-bandwidth"
EGRESS: Final = "kubernetes.io/egress-bandwidth"
_LEAST: Final = 1_000
_MOST: Final = 10**15
_QUANTITY: Final = re.compile(r"\+?(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,3})|([numkMGTPE]|[KMGTPE]i)?)")
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bits per second that a pod may receive (``ingress``) and send; 0: as many as it can."""

    ingress: int = 0
    egress: int = 0

    def __bool__(self) -> bool:
        return bool(self.ingress or self.egress)


def bandwidth(annotations: Mapping[str, str]) -> Bandwidth:
    """What a pod's annotations ask for. Raises InvalidArgument for no quantity, and outside of 1k to 1P as peers do."""
    return Bandwidth(_rate(annotations, INGRESS), _rate(annotations, EGRESS))


def quantity(text: str) -> int | None:
    """Kubernetes' resource.Quantity, rounded up: 10M, 1.5Gi, 1e6; None for what is none."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        return None
    digits, exponent, suffix = found.groups()
    value = Fraction(digits)
    if exponent:
        value *= Fraction(10) ** int(exponent)
    elif suffix in _BINARY:
        value *= 1 << _BINARY[suffix]
    elif suffix:
        value *= Fraction(10) ** _DECIMAL[suffix]
    return math.ceil(value)


def _rate(annotations: Mapping[str, str], key: str) -> int:
    text = annotations.get(key, "")
    if not text:
        return 0
    rate = quantity(text)
    if rate is None or not _LEAST <= rate <= _MOST:
        raise InvalidArgument(f"annotation {key} is {text!r}", hint="give bits per second from 1k to 1P, such as 10M")
    return rate
