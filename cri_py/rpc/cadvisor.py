"""The series of containers as text for Prometheus: its own format (0.0.4), and OpenMetrics where that is asked for.

Lines are written here and not by prometheus_client, whose objects for each of ten thousand samples take ten times as
long. No sample carries a time: it was read for this scrape.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from cri_py.pods import metrics_series as series
from cri_py.pods.metrics import SandboxMetrics
from cri_py.pods.metrics_series import BASE_LABELS, Series

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def exposition(found: Sequence[SandboxMetrics], accept: str) -> tuple[str, bytes]:
    """Content type and body, in the format that the Accept header asks for."""
    openmetrics = "application/openmetrics-text" in accept
    lines: dict[Series, list[str]] = {}
    for sandbox in found:
        for metrics in (*sandbox.own, *sandbox.containers):
            common = _labels(BASE_LABELS, metrics.labels)
            for each, values, number in metrics.points:
                own = f",{_labels(each.labels, values)}" if values else ""
                lines.setdefault(each, []).append(f"{each.name}{{{common}{own}}} {_number(each, number)}")
    text = [line for each in series.ALL if each in lines for line in (*_head(each, openmetrics), *lines[each])]
    if openmetrics:
        text.append("# EOF")
    body = "".join([f"{line}\n" for line in text]).encode()
    return OPEN_METRICS if openmetrics else TEXT, body


def _head(each: Series, openmetrics: bool) -> tuple[str, str]:
    """OpenMetrics names a family of counters without _total; a counter without it is none there, but unknown."""
    family, kind = each.name, each.kind.name.lower()
    if openmetrics and each.kind is series.Kind.COUNTER:
        family, kind = (family.removesuffix("_total"), kind) if family.endswith("_total") else (family, "unknown")
    return f"# HELP {family} {each.help}", f"# TYPE {family} {kind}"


@lru_cache(maxsize=4096)
def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True)])


def _number(each: Series, number: int) -> str:
    return repr(number / 1e9) if each.nanos else str(number)
