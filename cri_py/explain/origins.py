"""Which field decided: look-ups in the kubelet's configs, by the names that CRI gives its fields. Pure.

The configs are protobuf as JSON: what has its default is not there, and 64-bit numbers are text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cri_py.explain.facts import Asked, Json, Origin

SECURITY: Final = "linux.security_context"
RESOURCES: Final = "linux.resources"
ALWAYS: Final = Origin("runtime")
_NUMBERS: Final = frozenset(
    (
        *("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "memory_swap_limit_in_bytes"),
        *("oom_score_adj", "run_as_user", "run_as_group", "supplemental_groups"),
    )
)


def of_container(asked: Asked, field: str, default: Any = None) -> Origin:
    """A field of ContainerConfig; ``default`` is what its absence means to CRI."""
    return Origin("container", field, look_up(asked.container, field, default))


def of_sandbox(asked: Asked, field: str, default: Any = None) -> Origin:
    """A field of PodSandboxConfig."""
    return Origin("sandbox", field, look_up(asked.sandbox, field, default))


def is_privileged(asked: Asked) -> bool:
    return bool(look_up(asked.container, f"{SECURITY}.privileged", False))


def look_up(config: Json, field: str, default: Any = None) -> Any:
    """What the dotted path ``field`` holds; ``default`` where it, or a message on the way, was left out."""
    found: Any = config
    for name in field.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return default
        found = found[name]
    return _number(found) if field.rpartition(".")[2] in _NUMBERS else found


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [int(each) for each in value]
    if isinstance(value, Mapping):  # CRI's Int64Value, in which a 0 is left out
        return int(value.get("value", 0))
    return int(value)
