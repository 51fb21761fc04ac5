"""CNI network configurations, from the bytes of a file to a value (SPEC.md, section 1). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cri_py.errors import ConfigError
from cri_py.network.cni.versions import OLDEST, spoken

SUFFIXES: Final = (".conf", ".conflist", ".json")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TYPE: Final = re.compile(r"[^/\0]+")


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """One plugin of a chain: the name of its program, its part of the file, and the capabilities that it wants."""

    type: str
    document: Mapping[str, Any]
    capabilities: frozenset[str]


@dataclass(frozen=True, slots=True)
class Network:
    """A chain of plugins, in the order of ADD. ``document`` is it as JSON, for the cache."""

    name: str
    offered: tuple[str, ...]  # versions that it may be run with and we speak, the newest first
    plugins: tuple[PluginConfig, ...]
    disable_check: bool
    disable_gc: bool
    document: Mapping[str, Any]

    @property
    def maps_ports(self) -> bool:
        """Whether a plugin leads host ports to the pods, so that nobody else must."""
        return any("portMappings" in plugin.capabilities for plugin in self.plugins)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network, and the version that it is run with."""

    network: Network
    version: str


def candidates(names: Iterable[str]) -> list[str]:
    """The files of a directory that may be configurations, in the order in which they count."""
    return sorted(name for name in names if name.endswith(SUFFIXES) and not name.startswith("."))


def added(names: Iterable[str]) -> list[str]:
    """The files of a network's own directory that each add a plugin to its list, in the order of the plugins."""
    return sorted(name for name in names if name.endswith(".conf") and not name.startswith("."))


def parse(file: str, content: bytes, more: Callable[[str], Iterable[tuple[str, bytes]]] = lambda _: ()) -> Network:
    """The network of a configuration file: a list of plugins, or one. Raises ConfigError, which names the file.

    ``more`` gives names and contents of the files that add plugins to a list (CNI 1.1, loadOnlyInlinedPlugins), from
    the network's name.
    """
    document = _object(file, content)
    try:
        if "type" in document and "plugins" not in document:
            return from_document(_as_list(document))
        name = _name(document)
        if not _flag(document, "loadOnlyInlinedPlugins", name):
            document = _with(document, name, [_object(*each) for each in more(name)])
        return from_document(document)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}", hint=error.hint) from error


def _object(file: str, content: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not JSON: {error}", hint="mend it, or remove it") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file} is no JSON object", hint="mend it, or remove it")
    return document


def _with(document: dict[str, Any], name: str, plugins: list[dict[str, Any]]) -> dict[str, Any]:
    """The list with more plugins at its end."""
    inlined = document.get("plugins", [])
    if not isinstance(inlined, list):
        raise ConfigError(f"the plugins of CNI network {name} are no list", hint="its key plugins is an array")
    return {**document, "plugins": [*inlined, *plugins]}


def _name(document: Mapping[str, Any]) -> str:
    name = document.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"name {name!r} is no name of a CNI network", hint="use letters, digits, '_', '.' and '-'")
    return name


def from_document(document: Mapping[str, Any]) -> Network:
    """The network of a list of plugins as JSON. Raises ConfigError."""
    name = _name(document)
    plugins = document.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise ConfigError(f"CNI network {name} has no plugins", hint="its key plugins is an array of objects")
    return Network(
        name=name,
        offered=spoken(_versions(document, name), name),
        plugins=tuple(_plugin(plugin, name) for plugin in plugins),
        disable_check=_flag(document, "disableCheck", name),
        disable_gc=_flag(document, "disableGC", name),
        document=document,
    )


def _as_list(plugin: dict[str, Any]) -> dict[str, Any]:
    """A single plugin's configuration as a list of one, as libcni takes it."""
    kept: dict[str, Any] = {key: plugin[key] for key in ("cniVersion", "name") if key in plugin}
    return {**kept, "plugins": [plugin]}


def _versions(document: Mapping[str, Any], name: str) -> list[str]:
    first = document.get("cniVersion") or OLDEST
    others = document.get("cniVersions") or []
    if not isinstance(first, str) or not isinstance(others, list) or not all(isinstance(v, str) for v in others):
        raise ConfigError(f"cniVersion or cniVersions of CNI network {name} is no version", hint='e.g. "1.0.0"')
    return [first, *others]


def _flag(document: Mapping[str, Any], key: str, name: str) -> bool:
    """A truth value; libcni also takes it as a string."""
    value = document.get(key, False)
    if value in (True, "true", "True", "TRUE"):
        return True
    if value in (False, "false", "False", "FALSE", ""):
        return False
    raise ConfigError(f"{key} of CNI network {name} is {value!r}", hint="write true or false")


def _plugin(document: object, name: str) -> PluginConfig:
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise ConfigError(
            f"a plugin of CNI network {name} has the type {kind!r}", hint="type is the name of a program in bin_dirs"
        )
    wanted = document.get("capabilities") or {}
    if not isinstance(wanted, dict):
        raise ConfigError(f"capabilities of {kind} in CNI network {name} are no object", hint='{"portMappings": true}')
    return PluginConfig(kind, document, frozenset(key for key, on in wanted.items() if on is True))
