"""TOML, drop-ins and flags become one frozen Config; an error names the file, the key and the line.

The dataclasses are the whole truth: names, types, defaults, what each key means and which values it takes. The loader,
``cri-py config default`` and the flags are derived from them.

A Config is merged from the main file, its drop-ins (``config.toml`` has them in ``config.d/*.toml``, in the order of
their names) and the flags; of two that set a key the later wins, tables are merged, arrays are replaced.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, Final, TypeVar

from cri_py.errors import ConfigError

DEFAULT_FILE: Final = "/etc/cri_py/config.toml"

Rule = Callable[[Any], str]
"""What values a key takes: answers "" for one that it takes, otherwise what it wants ("use …")."""

Path = tuple[str, ...]
"""A key with its tables: ("images", "registries", "registry.k8s.io", "mirrors")."""

_T = TypeVar("_T")


# ------------------------------------------------------------------- rules


def one_of(*words: str) -> Rule:
    return lambda value: "" if value in words else f"use one of {', '.join(words)}"


def within(low: float, high: float) -> Rule:
    return lambda value: "" if low <= value <= high else f"use a number from {low:g} to {high:g}"


def matching(pattern: str, wanted: str) -> Rule:
    return lambda value: "" if re.fullmatch(pattern, value) else f"use {wanted}"


def each(rule: Rule) -> Rule:
    return lambda values: next(filter(None, map(rule, values)), "")


def _ipv4_subnet(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        return f"use an IPv4 network such as 10.85.0.0/16: {error}"
    return "" if network.prefixlen <= 29 else "use a network of at least 8 addresses (/29)"


_ABSOLUTE: Final = matching(r"(?!.*/\.\.(/|$))/[^\0]*", "an absolute path without ..")
_ABSOLUTE_OR_NONE: Final = matching(r"(?!.*/\.\.(/|$))(/[^\0]*)?", 'an absolute path without .., or ""')
_ADDRESS: Final = r"(unix://)?/.+|(tcp://)?[^/\s]+:\d{1,5}"
_URL: Final = matching(r"https?://[^/\s]+(/\S*)?", "a URL that begins with http:// or https://")
_POSITIVE_S: Final = within(0.001, 86400)
_GIB: Final = 1 << 30


def key(default: _T, comment: str, rule: Rule | None = None) -> _T:
    """A key of the config: its default, what it means in one or two lines, what values it takes."""
    metadata = {"comment": comment, "rule": rule}
    if isinstance(default, Mapping):
        made: _T = field(default_factory=lambda: default, metadata=metadata)
        return made
    return field(default=default, metadata=metadata)


# -------------------------------------------------------------- the tables


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The CRI socket and the daemon's directories."""

    root: str = key("/var/lib/cri_py", "What outlives a reboot: images, snapshots, records.", _ABSOLUTE)
    state: str = key("/run/cri_py", "What doesn't: sockets, bundles, pinned network namespaces.", _ABSOLUTE)
    listen: str = key(
        "",
        'The address of the CRI socket: unix:///path or tcp://host:port (no encryption); "" is STATE/cri.sock.',
        matching(f"({_ADDRESS})?", "unix:///absolute/path or tcp://host:port"),
    )
    socket_group: str = key("", 'Name or number of the group that may use the socket, mode 0660; "" is root\'s.')
    max_message_bytes: int = key(64 << 20, "The longest gRPC message, sent or received.", within(1 << 20, 1 << 30))
    shutdown_grace_s: float = key(5.0, "How long calls may go on after the daemon was told to stop.", within(0, 3600))


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The daemon's own log, on its standard error."""

    level: str = key("info", "debug, info, warning or error.", one_of("debug", "info", "warning", "error"))
    format: str = key("auto", "text, json, or auto: text on a terminal, else json.", one_of("auto", "text", "json"))


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """Where Prometheus reads the metrics."""

    listen: str = key(
        "",
        'unix:///path or 127.0.0.1:PORT, served as /metrics; "" is unix://STATE/metrics.sock, "off" is nowhere.',
        matching(f"({_ADDRESS}|off)?", 'unix:///absolute/path, 127.0.0.1:PORT or "off"'),
    )


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How one registry host, as image refs name it, is reached."""

    mirrors: tuple[str, ...] = key((), "Base URLs, tried in order before the host itself.", each(_URL))
    insecure: bool = key(False, "Plain HTTP to the host itself.")


@dataclass(frozen=True, slots=True)
class ImagesConfig:
    """Pulling and keeping images."""

    registries: Mapping[str, RegistryConfig] = key(
        {}, "One table for each registry host that isn't reached in the usual way, see below."
    )
    max_parallel_downloads: int = key(
        3, "Blobs that are fetched at the same time from one registry, over all pulls.", within(1, 64)
    )
    max_parallel_unpacks: int = key(
        2,
        "Layers that are unpacked at the same time, over all pulls; one that waits for a slow registry does not count.",
        within(1, 64),
    )
    discard_unpacked_layers: bool = key(
        False,
        "Whether layers' blobs go once they are unpacked: takes less disk, but nothing can be exported or mended.",
    )
    pull_progress_timeout_s: float = key(300.0, "A pull that receives nothing for so long is given up.", _POSITIVE_S)
    pull_minimum_bytes_per_s: int = key(
        1024,
        "A connection that brings less for pull_progress_timeout_s is given up; 0: any byte will do.",
        within(0, _GIB),
    )
    pull_attempts: int = key(5, "How often a host is asked that fails in a way that may pass.", within(1, 100))
    pull_retry_wait_s: float = key(0.5, "Before the second attempt; doubled before each further one.", within(0, 60))
    certs_d: tuple[str, ...] = key(
        ("/etc/containerd/certs.d", "/etc/docker/certs.d", "/etc/containers/certs.d"),
        "Directories with HOST/hosts.toml or HOST/*.crt, *.cert, *.key; read at every pull.",
        each(_ABSOLUTE),
    )
    registries_conf: str = key(
        "/etc/containers/registries.conf",
        'Read at every pull, with the drop-ins beside it (registries.conf.d/*.conf); "" is none.',
        _ABSOLUTE_OR_NONE,
    )
    auth_files: tuple[str, ...] = key(
        ("/etc/cri_py/auth.json",),
        "Credentials for hosts, mirrors and repositories, as in auth.json or Docker's config.json.",
        each(_ABSOLUTE),
    )
    credential_helper_timeout_s: float = key(10.0, "How long a docker-credential-… program may take.", _POSITIVE_S)
    signature_policy: str = key(
        "/etc/containers/policy.json",
        'Which images may be pulled, as containers-policy.json(5) says; read at every pull; "" is all.',
        _ABSOLUTE_OR_NONE,
    )
    image_verifiers: str = key(
        "/opt/containerd/image-verifier/bin",
        'A directory of programs that may refuse what is pulled, called as containerd calls them; "" is none.',
        _ABSOLUTE_OR_NONE,
    )
    image_verifier_timeout_s: float = key(10.0, "How long each of them may take.", _POSITIVE_S)
    pinned: tuple[str, ...] = key((), "Glob patterns of image refs that the kubelet never collects.")


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The built-in network: one bridge, IPv4."""

    bridge: str = key("crip0", "The bridge's name, at most 15 bytes.", matching(r"[^\s/:]{1,15}", "1 to 15 characters"))
    subnet: str = key("10.85.0.0/16", "Where pods get their addresses; the bridge takes the first.", _ipv4_subnet)
    netns_dir: str = key("", 'Where network namespaces are pinned; "" is STATE/netns.', _ABSOLUTE_OR_NONE)
    masquerade: bool = key(True, "Whether what pods send beyond the subnet leaves with the node's address (nftables).")
    mtu: int = key(1500, "Of the bridge and of the pods' interfaces.", within(68, 65535))


@dataclass(frozen=True, slots=True)
class CgroupConfig:
    """Control groups."""

    driver: str = key("cgroupfs", "What makes cgroups; the kubelet asks for it (RuntimeConfig).", one_of("cgroupfs"))
    parent: str = key(
        "/cri_py",
        "For pods that name no cgroup_parent: a path below the root of every hierarchy.",
        matching(r"(/(?!\.\.?(/|$))[^/\s]+)+", "a path that begins with /, without .."),
    )


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Running containers."""

    handlers: tuple[str, ...] = key(("cri_py",), 'Names that RuntimeClasses may use; "" always works.')
    seccomp: bool = key(False, "Whether containers that name no seccomp profile get the default one (CRI: none).")
    log_line_bytes: int = key(16384, "A longer line of a container is logged in parts.", within(256, 1 << 20))
    exec_output_bytes: int = key(16 << 20, "What ExecSync returns of each stream, at most.", within(1024, 1 << 30))
    exec_drain_s: float = key(2.0, "How long output is awaited after an ExecSync's process ended.", within(0, 3600))
    monitor_timeout_s: float = key(
        30.0, "How long one answer of a monitor may take; a mount that hangs for so long is given up.", _POSITIVE_S
    )
    missing_host_paths: str = key(
        "refuse",
        "What becomes of a volume whose host_path is not there: refuse, as CRI asks, or make, a directory.",
        one_of("refuse", "make"),
    )
    shm_bytes: int = key(64 << 20, "How much a pod's /dev/shm may hold, in bytes.", within(4096, 1 << 40))
    apparmor_profile: str = key(
        "cri-py-default",
        'What containers get that name no AppArmor profile, loaded at the start where the kernel has it; "" is none.',
        matching(r"[A-Za-z0-9_.-]*", "letters, digits, '_', '.' and '-'"),
    )
    cdi_spec_dirs: tuple[str, ...] = key(
        ("/etc/cdi", "/var/run/cdi"),
        "Directories with CDI files (*.json, *.yaml), read when a container asks for such a device; later ones win.",
        each(_ABSOLUTE),
    )
    device_ownership_from_security_context: bool = key(
        False, "Whether devices that are root's belong to run_as_user and run_as_group in the container."
    )
    nofile: int = key(1048576, "RLIMIT_NOFILE of containers.", within(64, 1 << 30))


@dataclass(frozen=True, slots=True)
class StatsConfig:
    """What pods and containers use."""

    period_s: float = key(
        10.0, "How often CPU time is noted in the background, for rates (usage_nano_cores).", within(1, 600)
    )
    layer_period_s: float = key(10.0, "How old the last count of a container's layer may be.", within(1, 86400))


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """Exec, attach and port-forward: where clients (the kubelet, as a proxy) connect to."""

    host: str = key("127.0.0.1", "The address to listen on.", matching(r"[0-9A-Fa-f:.]+", "an IP address"))
    port: int = key(0, "The port; 0 is any that is free.", within(0, 65535))
    head_timeout_s: float = key(10.0, "How long a client may take for its request's head.", _POSITIVE_S)
    max_waiting_connections: int = key(256, "Connections whose session has not begun, at most.", within(1, 1 << 16))
    idle_timeout_s: float = key(
        14400.0, "A session without a byte for so long is ended (the kubelet has 4 h).", _POSITIVE_S
    )
    tls: bool = key(False, "Whether to speak TLS: sessions then pass through the daemon and end with it.")
    tls_certificate: str = key(
        "",
        "PEM file with the certificate and its chain, read again when it changes; without one an own is made.",
        _ABSOLUTE_OR_NONE,
    )
    tls_key: str = key("", "PEM file with the key.", _ABSOLUTE_OR_NONE)
    tls_min_version: str = key("1.2", "The oldest version that is spoken.", one_of("1.2", "1.3"))


@dataclass(frozen=True, slots=True)
class Config:
    server: ServerConfig = field(default_factory=ServerConfig)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    cgroups: CgroupConfig = field(default_factory=CgroupConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    streaming: StreamingConfig = field(default_factory=StreamingConfig)
    stats: StatsConfig = field(default_factory=StatsConfig)

    @property
    def listen(self) -> str:
        return self.server.listen or f"unix://{self.server.state}/cri.sock"

    @property
    def metrics_listen(self) -> str:
        return self.metrics.listen or f"unix://{self.server.state}/metrics.sock"

    @property
    def netns_dir(self) -> str:
        return self.network.netns_dir or f"{self.server.state}/netns"


# ----------------------------------------------------------------- loading


@dataclass(frozen=True, slots=True)
class Loaded:
    """The effective config, and where each value that isn't a default was set, as ``FILE:LINE`` or ``--flag``."""

    config: Config
    sources: Mapping[Path, str]


@dataclass(frozen=True, slots=True)
class Flag:
    """A value from the command line for one key."""

    name: str  # as typed: --root
    value: Any


@dataclass(frozen=True, slots=True)
class _Origin:
    """Something that sets keys: a file's text, or a flag."""

    name: str
    text: str | None = None  # None: a flag

    def place(self, path: Path) -> str:
        if self.text is None:
            return self.name
        line = line_of(self.text, path)
        return f"{self.name}:{line}" if line else self.name


def files_of(main: str) -> list[str]:
    """``main`` and its drop-ins, in the order in which they count; a missing default file is no error."""
    directory = main.removesuffix(".toml") + ".d"
    try:
        drop_ins = sorted(name for name in os.listdir(directory) if name.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        drop_ins = []
    first = [] if main == DEFAULT_FILE and not os.path.exists(main) else [main]
    return first + [os.path.join(directory, name) for name in drop_ins]


def load(files: Sequence[str] = (), flags: Mapping[Path, Flag] | None = None) -> Loaded:
    """Merge ``files`` in their order, then ``flags``, over the defaults.

    Raises ConfigError that names file and line (or flag), key, what is wrong and what would be right.
    """
    merged: dict[str, Any] = {}
    sources: dict[Path, str] = {}
    for file in files:
        text = _read(file)
        _merge(merged, _parse(text, file), _Origin(file, text), sources)
    for path, flag in (flags or {}).items():
        nested: Any = flag.value
        for part in reversed(path):
            nested = {part: nested}
        _merge(merged, nested, _Origin(flag.name), sources)
    return Loaded(_build(Config, merged), sources)


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist", hint="`cri-py config default` prints one to begin with") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1  # "(at end of document)"
        cause = re.sub(r" \(at [^)]*\)$", "", str(error))
        raise ConfigError(f"{file}:{line}: not TOML: {cause}") from error


def _merge(merged: dict[str, Any], table: dict[str, Any], origin: _Origin, sources: dict[Path, str]) -> None:
    """Check ``table`` and lay it over ``merged``; note in ``sources`` where each of its values stands."""

    def lay(over: dict[str, Any], under: dict[str, Any], path: Path) -> None:
        for word, value in over.items():
            here = (*path, word)
            if isinstance(value, dict):
                lay(value, under.setdefault(word, {}), here)
            else:
                under[word] = value
                sources[here] = origin.place(here)

    lay(_check_table(Config, table, (), origin), merged, ())


def _build(cls: Callable[..., _T], table: Mapping[str, Any]) -> _T:
    """Checked tables to dataclasses; what is missing keeps its default."""
    arguments: dict[str, Any] = {}
    for word, kind in _kinds(typing.cast(type, cls)).items():
        if word not in table:
            continue
        if is_dataclass(kind):
            arguments[word] = _build(typing.cast(type, kind), table[word])
        elif typing.get_origin(kind) is Mapping:
            inner = typing.get_args(kind)[1]
            arguments[word] = {name: _build(inner, value) for name, value in table[word].items()}
        else:
            arguments[word] = table[word]
    return cls(**arguments)


# ---------------------------------------------------------------- checking


def _check_table(cls: type, table: object, path: Path, origin: _Origin) -> dict[str, Any]:
    """``table`` with every value checked, and lists made tuples."""
    if not isinstance(table, dict):
        raise ConfigError(
            f"{origin.place(path)}: {spell(path)} is {_shown(table)}", hint=f"it is a table: write [{spell(path)}]"
        )
    kinds = _kinds(cls)
    rules = {f.name: f.metadata.get("rule") for f in fields(cls)}
    checked: dict[str, Any] = {}
    for word, value in table.items():
        here = (*path, word)
        if word not in kinds:
            raise ConfigError(f"{origin.place(here)}: {spell(here)} is no key of cri_py", hint=_suggest(path, word))
        kind = kinds[word]
        if is_dataclass(kind):
            checked[word] = _check_table(typing.cast(type, kind), value, here, origin)
        elif typing.get_origin(kind) is Mapping:
            checked[word] = _check_named_tables(typing.get_args(kind)[1], value, here, origin)
        else:
            checked[word] = _check_value(kind, rules[word], value, here, origin)
    return checked


def _check_named_tables(inner: type, table: object, path: Path, origin: _Origin) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(
            f"{origin.place(path)}: {spell(path)} is {_shown(table)}", hint=f'write [{spell(path)}."NAME"]'
        )
    return {name: _check_table(inner, value, (*path, name), origin) for name, value in table.items()}


def _check_value(kind: object, rule: Rule | None, value: object, path: Path, origin: _Origin) -> object:
    wanted, converted = _CONVERSIONS[kind](value)
    if converted is None:
        raise ConfigError(f"{origin.place(path)}: {spell(path)} is {_shown(value)}", hint=f"it takes {wanted}")
    complaint = rule(converted) if rule else ""
    if complaint:
        raise ConfigError(f"{origin.place(path)}: {spell(path)} is {_shown(value)}", hint=complaint)
    return converted


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # bool is a subclass of int


def _strings(value: object) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    return None


_CONVERSIONS: Final[Mapping[object, Callable[[Any], tuple[str, Any]]]] = {
    str: lambda value: ("a string", value if isinstance(value, str) else None),
    bool: lambda value: ("true or false", value if isinstance(value, bool) else None),
    int: lambda value: ("a whole number", value if _is_int(value) else None),
    float: lambda value: ("a number", float(value) if _is_int(value) or isinstance(value, float) else None),
    tuple[str, ...]: lambda value: ("an array of strings", _strings(value)),
}


def _kinds(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _shown(value: object) -> str:
    return "a table" if isinstance(value, dict) else json.dumps(value, ensure_ascii=False, default=str)


def _suggest(path: Path, word: str) -> str:
    """The nearest key beside it, or else one of the same or nearly the same name in another table."""
    names = [name for name, _ in _keys(Config, ())]
    siblings = {name[len(path)] for name in names if name[: len(path)] == path and len(name) > len(path)}
    if path[:2] == ("images", "registries"):
        siblings = {part.name for part in fields(RegistryConfig)}
    near = difflib.get_close_matches(word, sorted(siblings), n=1)
    if near:
        return f"did you mean {spell((*path, near[0]))}?"
    elsewhere = difflib.get_close_matches(word, [name[-1] for name in names], n=1, cutoff=0.8)
    found = [name for name in names if elsewhere and name[-1] == elsewhere[0]]
    return f"did you mean {spell(found[0])}?" if found else "`cri-py config default` lists all keys"


def spell(path: Path) -> str:
    """A key as TOML writes it: ``images.registries."registry.k8s.io".mirrors``."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in path)


# ------------------------------------------------------------------- lines

_HEADER: Final = re.compile(r"""\s*(?P<array>\[)?\[(?P<key>(?:"[^"]*"|'[^']*'|[^\[\]"'])+)\]\]?\s*(#.*)?""")
_ASSIGNMENT: Final = re.compile(r"""\s*(?P<key>(?:"[^"]*"|'[^']*'|[A-Za-z0-9_.\s-])+?)\s*=""")


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The number of the line of TOML that sets ``path``, or the nearest table around it; 0 if there is none.

    A number in ``path`` counts the tables of an array: ("registry", 1, "prefix") is in the second ``[[registry]]``.
    tomllib tells no lines of what it parsed, so the headers and assignments are looked for again.
    """
    table: tuple[str | int, ...] = ()
    last: dict[tuple[str | int, ...], int] = {}  # the array tables so far, each with its last index
    best, best_depth = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.fullmatch(line):
            table = found = _table_path(_split_key(header["key"]), bool(header["array"]), last)
        elif assignment := _ASSIGNMENT.match(line):
            found = (*table, *_split_key(assignment["key"]))
        else:
            continue
        if found and tuple(path[: len(found)]) == found and len(found) > best_depth:
            best, best_depth = number, len(found)
    return best


def _table_path(key: Path, array: bool, last: dict[tuple[str | int, ...], int]) -> tuple[str | int, ...]:
    """Where a header leads: below the last table of every array that it passes, or to a new one."""
    found: tuple[str | int, ...] = ()
    for depth, part in enumerate(key, 1):
        found = (*found, part)
        if array and depth == len(key):
            last[found] = last.get(found, -1) + 1
        if found in last:
            found = (*found, last[found])
    return found


def _split_key(dotted: str) -> Path:
    """The parts of a dotted key, quotes removed; () for what only looks like one (a line inside a string)."""
    try:
        nested: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    parts = []
    while isinstance(nested, dict):
        ((part, nested),) = nested.items()
        parts.append(part)
    return tuple(parts)


# ---------------------------------------------------------------- printing


def _keys(cls: type, path: Path) -> Iterator[tuple[Path, Field[Any]]]:
    """Every key below ``cls`` with its field, tables that the user names left out."""
    for part in fields(cls):
        kind = _kinds(cls)[part.name]
        if is_dataclass(kind):
            yield from _keys(typing.cast(type, kind), (*path, part.name))
        else:
            yield (*path, part.name), part


def default_text() -> str:
    """A config file with every key at its default, each with what it means."""
    out = ["# All keys of cri_py, at their defaults. Files in config.d/*.toml beside this one override it.", ""]
    for table in fields(Config):
        kind = typing.cast(type, _kinds(Config)[table.name])
        out += [f"# {kind.__doc__}", f"[{table.name}]"]
        named = []
        for part in fields(kind):
            out.append(f"# {part.metadata['comment']}")
            if part.default is MISSING:
                named = _example_table((table.name, part.name), typing.get_args(_kinds(kind)[part.name])[1])
            else:
                out.append(f"{part.name} = {toml(part.default)}")
        out += [*named, ""]
    return "\n".join(out)


def _example_table(path: Path, inner: type) -> list[str]:
    """A commented table of the kind that the user names."""
    lines = ["", f"# {inner.__doc__}", f"# [{spell((*path, 'registry.example.com'))}]"]
    for part in fields(inner):
        lines += [f"#   {part.metadata['comment']}", f"# {part.name} = {toml(part.default)}"]
    return lines


def effective_text(loaded: Loaded) -> str:
    """The effective config as TOML, each value with where it was set."""
    out: list[str] = []
    for table in fields(Config):
        out += _effective_table((table.name,), getattr(loaded.config, table.name), loaded.sources)
    return "\n".join(out)


def _effective_table(path: Path, table: Any, sources: Mapping[Path, str]) -> list[str]:
    lines, named = [f"[{spell(path)}]"], []
    for part in fields(table):
        value, here = getattr(table, part.name), (*path, part.name)
        if isinstance(value, Mapping):
            for name, inner in value.items():
                named += _effective_table((*here, name), inner, sources)
        else:
            lines.append(f"{part.name} = {toml(value)}  # {sources.get(here, 'default')}")
    return [*lines, "", *named]


def toml(value: object) -> str:
    """A string, number, truth value or array of strings as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str):  # a JSON string is a TOML one, but for the one control character that JSON leaves bare
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
