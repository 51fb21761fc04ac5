"""What critest found, read from ginkgo's JSON report: numbers by group, failures in full, reasons of skips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_FAILED = {"failed", "panicked", "timedout", "aborted", "interrupted"}


@dataclass(frozen=True, slots=True)
class Result:
    """One spec that was chosen. ``outcome`` is passed, failed or skipped; ``reason`` is empty for passed ones."""

    group: str
    name: str
    outcome: str
    reason: str
    seconds: float


def read(report: Iterable[Mapping[str, Any]], left_out: Mapping[str, str]) -> list[Result]:
    """The specs that ran or skipped themselves; those that focus and skip expressions left out are not among them.

    ``left_out``: specs that couldn't be run here, reason by full name; they count as skipped. A failure outside of
    specs, such as in the suite's set-up, counts as a failed spec of its own.
    """
    return [result for suite in report for spec in suite.get("SpecReports") or () for result in _result(spec, left_out)]


def _result(spec: Mapping[str, Any], left_out: Mapping[str, str]) -> list[Result]:
    state, reason = spec["State"], str((spec.get("Failure") or {}).get("Message", "")).strip()
    if state == "skipped" and not reason:
        reason = left_out.get(full_name(spec), "")
    groups = [text.removeprefix("[k8s.io] ").strip() for text in spec.get("ContainerHierarchyTexts") or ()]
    name = " ".join((*groups[1:], spec.get("LeafNodeText", ""))).strip()
    is_spec = spec["LeafNodeType"] == "It"
    group = groups[0] if groups else spec["LeafNodeType"]
    seconds = spec.get("RunTime", 0) / 1e9
    if state in _FAILED:
        return [Result(group, name or group, "failed", reason or state, seconds)]
    if not is_spec or (state == "skipped" and not reason):
        return []
    if state in {"skipped", "pending"}:
        return [Result(group, name, "skipped", reason or "pending in critest", seconds)]
    return [Result(group, name, "passed", "", seconds)]


def full_name(spec: Mapping[str, Any]) -> str:
    """What ginkgo's focus and skip expressions are matched with."""
    return " ".join((*(spec.get("ContainerHierarchyTexts") or ()), spec.get("LeafNodeText", "")))


def render(results: list[Result]) -> str:
    """Lines for a terminal; the last one is ``N passed, N failed, N skipped``."""
    lines = []
    for group in sorted({result.group for result in results}):
        members = [result for result in results if result.group == group]
        lines.append(f"{group}: {_numbers(members)} ({sum(result.seconds for result in members):.1f} s)")
        for result in members:
            if result.outcome == "failed":
                lines.append(f"  failed: {result.name}")
                lines += [f"    {line}" for line in result.reason.splitlines()[:12]]
        skips = Counter(_first_line(result.reason) for result in members if result.outcome == "skipped")
        lines += [f"  skipped {count}: {reason}" for reason, count in skips.items()]
    return "\n".join([*lines, _numbers(results)])


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _numbers(results: Iterable[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
