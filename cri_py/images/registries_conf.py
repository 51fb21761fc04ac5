"""``registries.conf`` with its drop-ins, version 2: prefixes and where they lead, mirrors, short names.

containers-registries.conf(5) and containers-registries.conf.d(5) of https://github.com/containers/image. Pure but for
``ConfFiles``, which reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, cast

from cri_py.errors import ConfigError, FailedPrecondition, InvalidArgument
from cri_py.images.endpoints import HUB, SYSTEM_TRUST, Endpoint, Trust, api_root, server_of
from cri_py.images.reference import ImageRef, names_a_host, parse_ref, short_name
from cri_py.images.tables import Fresh, Table, parse_toml

PullFrom = Literal["all", "digest-only", "tag-only"]

_TOP: Final = frozenset(
    {
        *("unqualified-search-registries", "registry", "aliases", "short-name-mode", "credential-helpers"),
        "additional-layer-store-auth-helper",
    }
)
_REGISTRY: Final = frozenset({"prefix", "location", "insecure", "blocked", "mirror-by-digest-only", "mirror"})
_MIRROR: Final = frozenset({"location", "insecure", "pull-from-mirror"})
_MODES: Final = ("enforcing", "permissive", "disabled")
_PATH: Final = re.compile(r"[^\s/@*]+(/[^\s/@*]+)*")
_HEADER: Final = re.compile(r"\s*\[\[\s*registry\s*\]\]\s*(#.*)?")
_WILDCARD: Final = re.compile(r"\*(\.[A-Za-z0-9-]+)+")


@dataclass(frozen=True, slots=True)
class Mirror:
    location: str
    insecure: bool = False
    pull_from: PullFrom = "all"


@dataclass(frozen=True, slots=True)
class Registry:
    """One ``[[registry]]``; ``place`` is FILE:LINE. ``location`` is "" where the ref's own name stands."""

    prefix: str
    location: str
    place: str
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """One file, or all of them merged; None where a file doesn't say."""

    registries: tuple[Registry, ...] = ()
    search: tuple[str, ...] | None = None
    short_name_mode: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    keychains: tuple[str, ...] | None = None  # of credentials, docker-credential-NAME
    unknown: tuple[str, ...] = ()

    def overridden_by(self, later: RegistriesConf) -> RegistriesConf:
        """What a drop-in makes of it: registries of the same prefix are replaced, aliases one by one."""
        replaced = {registry.prefix for registry in later.registries}
        return RegistriesConf(
            registries=(*(each for each in self.registries if each.prefix not in replaced), *later.registries),
            search=self.search if later.search is None else later.search,
            short_name_mode=later.short_name_mode or self.short_name_mode,
            aliases={**self.aliases, **later.aliases},
            keychains=self.keychains if later.keychains is None else later.keychains,
            unknown=(*self.unknown, *later.unknown),
        )

    def registry_for(self, ref: ImageRef) -> Registry | None:
        """The one with the longest prefix that ``ref`` begins with."""
        fitting = [each for each in self.registries if _matched(ref, each.prefix)]
        return max(fitting, key=lambda each: len(each.prefix), default=None)

    def candidates(self, text: str) -> tuple[ImageRef, ...]:
        """What a short name may mean: its alias, or each search registry in turn; else what Docker takes it for.

        Raises InvalidArgument if ``short-name-mode`` is ``enforcing`` and it may mean several things.
        """
        plain = parse_ref(text)
        name = short_name(text)
        if not name:
            return (plain,)
        suffix = text[len(name) :]
        alias = self.aliases.get(name, "") if self.short_name_mode != "disabled" else ""
        if alias:
            return (parse_ref(alias + suffix),)
        if not self.search:
            return (plain,)
        found = tuple(parse_ref(f"{registry}/{name}{suffix}") for registry in self.search)
        if self.short_name_mode == "enforcing" and len(found) > 1:
            meant = ", ".join(map(str, found))
            raise InvalidArgument(
                f"{text!r} is a short name that may mean {meant}",
                hint='write one of these, or add it to [aliases]; short-name-mode = "enforcing" forbids to try',
            )
        return found


# ------------------------------------------------------------------- parsing


def parse_conf(content: bytes, file: str) -> RegistriesConf:
    """Parse one file. Raises ConfigError that names file and line."""
    top = parse_toml(content, file)
    if "registries" in top.values:
        hint = "write [[registry]] and unqualified-search-registries"
        raise ConfigError(f"{top.place('registries')}: [registries.…] is version 1, which is not read", hint=hint)
    mode = top.string("short-name-mode")
    if mode not in {"", *_MODES}:
        raise top.wrong("short-name-mode", f"one of {', '.join(_MODES)}")
    tables = list(top.array("registry"))
    unknown = top.unknown(_TOP)
    for table in tables:
        unknown += table.unknown(_REGISTRY)
        unknown += [line for mirror in table.array("mirror") for line in mirror.unknown(_MIRROR)]
    return RegistriesConf(
        registries=tuple(map(_registry, tables, _places(top, tables))),
        search=_search(top) if "unqualified-search-registries" in top.values else None,
        short_name_mode=mode,
        aliases=_aliases(top.table("aliases")),
        keychains=top.strings("credential-helpers") if "credential-helpers" in top.values else None,
        unknown=tuple(unknown),
    )


def _places(top: Table, tables: Sequence[Table]) -> list[str]:
    """``FILE:LINE`` of every ``[[registry]]``, found in one go: a node may have hundreds."""
    lines = [number for number, line in enumerate(top.text.splitlines(), 1) if _HEADER.fullmatch(line)]
    if len(lines) != len(tables):  # written in another way: [["registry"]], registry = [{…}]
        return [table.place() for table in tables]
    return [f"{top.file}:{number}" for number in lines]


def _registry(table: Table, place: str) -> Registry:
    prefix, location = table.string("prefix").rstrip("/"), table.string("location").rstrip("/")
    if not prefix and not location:
        raise ConfigError(f"{table.place()}: [[registry]] has neither prefix nor location", hint="it needs one of them")
    prefix = prefix or location
    if not (_WILDCARD.fullmatch(prefix) or _is_location(prefix)):
        raise table.wrong("prefix" if table.string("prefix") else "location", "HOST[:PORT][/PATH] or *.DOMAIN")
    if location and not _is_location(location):
        raise table.wrong("location", "HOST[:PORT][/PATH]")
    by_digest = table.boolean("mirror-by-digest-only")
    return Registry(
        prefix=prefix,
        location=location,
        place=place,
        insecure=table.boolean("insecure"),
        blocked=table.boolean("blocked"),
        mirrors=tuple(_mirror(each, by_digest) for each in table.array("mirror")),
    )


def _mirror(table: Table, by_digest: bool) -> Mirror:
    location, pull_from = table.string("location").rstrip("/"), table.string("pull-from-mirror")
    if not _is_location(location):
        raise table.wrong("location", "HOST[:PORT][/PATH]")
    if pull_from not in {"", "all", "digest-only", "tag-only"}:
        raise table.wrong("pull-from-mirror", "all, digest-only or tag-only")
    if by_digest and pull_from:
        raise table.wrong("pull-from-mirror", "nothing where the registry has mirror-by-digest-only")
    chosen = "digest-only" if by_digest else pull_from or "all"
    return Mirror(location, table.boolean("insecure"), cast(PullFrom, chosen))


def _search(top: Table) -> tuple[str, ...]:
    registries = tuple(each.rstrip("/") for each in top.strings("unqualified-search-registries"))
    if not all(_is_location(each) for each in registries):
        raise top.wrong("unqualified-search-registries", "an array of HOST[:PORT][/PATH]")
    return registries


def _is_location(text: str) -> bool:
    host, slash, path = text.partition("/")
    return names_a_host(host) and (not slash or _PATH.fullmatch(path) is not None)


def _aliases(table: Table) -> dict[str, str]:
    found = {}
    for name in table.values:
        target = table.string(name)
        try:
            valid = not target or (not short_name(target) and parse_ref(target).tagged == f"{target}:latest")
        except InvalidArgument:
            valid = False
        if not valid:
            raise table.wrong(name, 'HOST/PATH without tag or digest, or "" for no alias')
        found[name] = target
    return found


# -------------------------------------------------------------------- routes


def _matched(ref: ImageRef, prefix: str) -> int:
    """How many characters of ``ref`` the prefix takes, 0 if it doesn't fit."""
    if prefix.startswith("*."):
        return len(ref.host) if ref.host.endswith(prefix[1:]) else 0
    if "/" not in prefix:  # a host, which is another with another port
        return len(prefix) if ref.host == prefix else 0
    whole = str(ref)
    fits = whole.startswith(prefix) and (len(whole) == len(prefix) or whole[len(prefix)] in ":/@")
    return len(prefix) if fits else 0


def by_registry(ref: ImageRef, registry: Registry) -> list[Endpoint]:
    """The endpoints of ``ref``: the mirrors that serve this kind of ref in order, then the location itself.

    Raises FailedPrecondition if the registry is blocked.
    """
    if registry.blocked:
        raise FailedPrecondition(f"{ref.name} is blocked by {registry.place}", hint="remove blocked = true there")
    rest = ref.name[_matched(ref, registry.prefix) :] if _matched(ref, registry.prefix) <= len(ref.name) else ""
    unfit = "digest-only" if ref.digest is None else "tag-only"
    found = []
    for mirror in registry.mirrors:
        if mirror.pull_from != unfit:
            found += _approaches(mirror.location + rest, mirror.insecure, ref, own=False)
    here = registry.location + rest if registry.location else ref.name
    return [*found, *_approaches(here, registry.insecure, ref, own=True)]


def _approaches(location: str, insecure: bool, ref: ImageRef, *, own: bool) -> list[Endpoint]:
    """An insecure host may have an unknown certificate, or none: HTTPS is tried first, then plain HTTP."""
    host, _, path = location.partition("/")
    path = path or ref.path
    if host == HUB and "/" not in path:
        path = f"library/{path}"
    server = server_of(host)
    if insecure and server.startswith("https://"):
        secure = Endpoint(api_root(server), path, ref.host, own, trust=Trust(skip_verify=True))
        return [secure, replace(secure, url=f"http://{secure.url.removeprefix('https://')}", trust=SYSTEM_TRUST)]
    return [Endpoint(api_root(server), path, ref.host, own)]


# -------------------------------------------------------------------- reading


class ConfFiles:
    """registries.conf and its drop-ins, read again when they changed."""

    def __init__(self, main: str) -> None:
        self._main = main
        self._files = Fresh(parse_conf)

    def read(self) -> RegistriesConf:
        """What they say together; nothing if there are none. Raises ConfigError that names file and line."""
        merged = RegistriesConf()
        for path in self._paths():
            found = self._files.get(path)
            if found is not None:
                merged = merged.overridden_by(found)
        return merged

    def _paths(self) -> Sequence[str]:
        if not self._main:
            return []
        directory = f"{self._main}.d"
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(".conf"))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            raise ConfigError(f"{directory} can't be read: {error.strerror}") from error
        return [self._main, *(os.path.join(directory, name) for name in names)]
