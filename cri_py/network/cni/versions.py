"""Versions of the CNI specification, and which one a network is run with. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from cri_py.errors import ConfigError

SUPPORTED: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")  # oldest first
OLDEST: Final = SUPPORTED[0]
NEWEST: Final = SUPPORTED[-1]
RESULT_TO_DEL: Final = "0.4.0"  # since then DEL is given what ADD answered, and there is CHECK
STATUS_AND_GC: Final = "1.1.0"


def since(version: str, first: str) -> bool:
    """Whether ``version`` is ``first`` or a later one."""
    return SUPPORTED.index(version) >= SUPPORTED.index(first)


def spoken(wanted: Sequence[str], name: str) -> tuple[str, ...]:
    """Those of a configuration's versions that we speak, the newest first. Raises ConfigError if there is none."""
    found = [version for version in reversed(SUPPORTED) if version in wanted]
    if not found:
        raise ConfigError(
            f"CNI network {name} asks for version {', '.join(wanted)} of CNI",
            hint=f"write a cniVersion from {OLDEST} to {NEWEST}",
        )
    return tuple(found)


def negotiate(name: str, offered: Sequence[str], plugins: Mapping[str, AbstractSet[str]]) -> str:
    """The newest of the ``offered`` versions, which are in that order, that each of its plugins supports.

    Raises ConfigError that names the plugin which does not.
    """
    for version in offered:
        if all(version in supported for supported in plugins.values()):
            return version
    for plugin, supported in plugins.items():
        if not set(offered) & supported:
            raise ConfigError(
                f"CNI network {name} asks for CNI {', '.join(offered)}, which its plugin {plugin} does not support",
                hint=f"the plugin supports {', '.join(sorted(supported)) or 'none'}: replace it, or set cniVersion",
            )
    raise ConfigError(
        f"the plugins of CNI network {name} have no version of CNI in common among {', '.join(offered)}",
        hint="name more versions in cniVersions, or replace the oldest plugin",
    )
