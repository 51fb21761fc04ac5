"""All tables and keys: names, types, defaults, what each key means and which values it takes."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, Final

from cri_py.config.rules import (
    ABSOLUTE,
    ABSOLUTE_OR_NONE,
    ADDRESS,
    GIB,
    POSITIVE_S,
    URL,
    Path,
    each,
    ipv4_subnet,
    ipv6_subnet,
    key,
    matching,
    one_of,
    within,
)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The CRI socket and the daemon's directories."""

    root: str = key("/var/lib/cri_py", "What outlives a reboot: images, snapshots, records.", ABSOLUTE)
    state: str = key("/run/cri_py", "What doesn't: sockets, bundles, pinned network namespaces.", ABSOLUTE)
    listen: str = key(
        "",
        'The address of the CRI socket: unix:///path or tcp://host:port (no encryption); "" is STATE/cri.sock.',
        matching(f"({ADDRESS})?", "unix:///absolute/path or tcp://host:port"),
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
        matching(f"({ADDRESS}|off)?", 'unix:///absolute/path, 127.0.0.1:PORT or "off"'),
    )


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How one registry host, as image refs name it, is reached."""

    mirrors: tuple[str, ...] = key((), "Base URLs, tried in order before the host itself.", each(URL))
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
        0,
        "Layers that are unpacked at the same time, over all pulls, those that wait for a slow registry not counted; "
        "0: one for each core, at most 8.",
        within(0, 64),
    )
    discard_unpacked_layers: bool = key(
        False,
        "Whether layers' blobs go once they are unpacked: takes less disk, but nothing can be exported or mended.",
    )
    pull_progress_timeout_s: float = key(300.0, "A pull that receives nothing for so long is given up.", POSITIVE_S)
    pull_minimum_bytes_per_s: int = key(
        1024,
        "A connection that brings less for pull_progress_timeout_s is given up; 0: any byte will do.",
        within(0, GIB),
    )
    pull_attempts: int = key(5, "How often a host is asked that fails in a way that may pass.", within(1, 100))
    pull_retry_wait_s: float = key(0.5, "Before the second attempt; doubled before each further one.", within(0, 60))
    certs_d: tuple[str, ...] = key(
        ("/etc/containerd/certs.d", "/etc/docker/certs.d", "/etc/containers/certs.d"),
        "Directories with HOST/hosts.toml or HOST/*.crt, *.cert, *.key; read at every pull.",
        each(ABSOLUTE),
    )
    registries_conf: str = key(
        "/etc/containers/registries.conf",
        'Read at every pull, with the drop-ins beside it (registries.conf.d/*.conf); "" is none.',
        ABSOLUTE_OR_NONE,
    )
    auth_files: tuple[str, ...] = key(
        ("/etc/cri_py/auth.json",),
        "Credentials for hosts, mirrors and repositories, as in auth.json or Docker's config.json.",
        each(ABSOLUTE),
    )
    credential_helper_timeout_s: float = key(10.0, "How long a docker-credential-… program may take.", POSITIVE_S)
    signature_policy: str = key(
        "/etc/containers/policy.json",
        'Which images may be pulled, as containers-policy.json(5) says; read at every pull; "" is all.',
        ABSOLUTE_OR_NONE,
    )
    image_verifiers: str = key(
        "/opt/containerd/image-verifier/bin",
        'A directory of programs that may refuse what is pulled, called as containerd calls them; "" is none.',
        ABSOLUTE_OR_NONE,
    )
    image_verifier_timeout_s: float = key(10.0, "How long each of them may take.", POSITIVE_S)
    pinned: tuple[str, ...] = key((), "Glob patterns of image refs that the kubelet never collects.")


@dataclass(frozen=True, slots=True)
class CniHandlerConfig:
    """The CNI network of pods of one runtime handler."""

    conf_dir: str = key("", 'Where its CNI configuration is; "" is cni_conf_dir.', ABSOLUTE_OR_NONE)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The pods' network: built in (one bridge), or made by CNI plugins."""

    plugin: str = key("builtin", "Who attaches pods: builtin, or cni.", one_of("builtin", "cni"))
    bridge: str = key("crip0", "The bridge's name, at most 15 bytes.", matching(r"[^\s/:]{1,15}", "1 to 15 characters"))
    subnet: str = key("10.85.0.0/16", "Where pods get their addresses; the bridge takes the first.", ipv4_subnet)
    subnet6: str = key(
        "", 'The same of IPv6, side by side; "" is none. The kubelet\'s pod CIDR overrides both.', ipv6_subnet
    )
    netns_dir: str = key(
        "",
        'Where network namespaces are pinned; "" is STATE/netns, with CNI /var/run/netns, where its agents look.',
        ABSOLUTE_OR_NONE,
    )
    masquerade: bool = key(True, "Whether what pods send beyond the subnet leaves with the node's address (nftables).")
    isolate_pods: bool = key(
        False, "Whether pods are kept from each other: they then reach the node, what is beyond it, and host ports."
    )
    mtu: int = key(1500, "Of the bridge and of the pods' interfaces.", within(68, 65535))
    cni_conf_dir: str = key(
        "/etc/cni/net.d", "Where the CNI configuration is: the first .conf, .conflist or .json by name.", ABSOLUTE
    )
    cni_handlers: Mapping[str, CniHandlerConfig] = key(
        {}, "One table for each runtime handler whose pods have another CNI network, see below."
    )
    cni_bin_dirs: tuple[str, ...] = key(
        ("/opt/cni/bin", "/usr/lib/cni"), "Where CNI plugins are looked for, in this order.", each(ABSOLUTE)
    )
    cni_conf_template: str = key(
        "",
        "A Go template of a CNI configuration, as containerd's conf_template, written into cni_conf_dir with the pod "
        'CIDRs that the kubelet tells, if nothing else is there; "" is none.',
        ABSOLUTE_OR_NONE,
    )
    cni_cache_dir: str = key(
        "", 'What CNI plugins have answered, for DEL after a reboot; "" is ROOT/cni.', ABSOLUTE_OR_NONE
    )
    cni_timeout_s: float = key(60.0, "How long one call of a plugin may take; then it is killed.", POSITIVE_S)
    cni_status_period_s: float = key(10.0, "How often plugins are asked for STATUS (CNI 1.1).", POSITIVE_S)
    cni_gc_period_s: float = key(3600.0, "How often what crashed pods left is taken back (DEL, GC).", POSITIVE_S)
    cni_ip_preference: str = key(
        "cni",
        "Which of a pod's addresses comes first: the first of CNI's, or ipv4, or ipv6.",
        one_of("cni", "ipv4", "ipv6"),
    )


@dataclass(frozen=True, slots=True)
class CgroupConfig:
    """Control groups."""

    driver: str = key(
        "auto",
        "What makes cgroups; the kubelet asks for it (RuntimeConfig). auto: systemd if it is init, on cgroup v2.",
        one_of("auto", "systemd", "cgroupfs"),
    )
    parent: str = key(
        "/cri_py",
        "For pods that name no cgroup_parent: a path below the root of every hierarchy; to systemd /a/b is a-b.slice.",
        matching(r"(/(?!\.\.?(/|$))[^/\s]+)+", "a path that begins with /, without .."),
    )


@dataclass(frozen=True, slots=True)
class BlockIoClass:
    """How containers may use disks whose pods name this class by annotation blockio.resources.beta.kubernetes.io."""

    devices: tuple[str, ...] = key((), "The disks, as files in /dev; of a partition its disk.", each(ABSOLUTE))
    weight: int = key(
        0, "Share of a busy disk, 10 to 1000; of all disks if none is named; 0 is the usual.", within(0, 1000)
    )
    read_bytes_s: int = key(0, "How many bytes may be read from each in a second; 0 is no limit.", within(0, 1 << 62))
    write_bytes_s: int = key(0, "The same for writes.", within(0, 1 << 62))
    read_ops_s: int = key(0, "How many reads each may do in a second; 0 is no limit.", within(0, 1 << 32))
    write_ops_s: int = key(0, "The same for writes.", within(0, 1 << 32))


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Running containers."""

    handlers: tuple[str, ...] = key(("cri_py",), 'Names that RuntimeClasses may use; "" always works.')
    seccomp: bool = key(False, "Whether containers that name no seccomp profile get the default one (CRI: none).")
    log_line_bytes: int = key(16384, "A longer line of a container is logged in parts.", within(256, 1 << 20))
    exec_output_bytes: int = key(16 << 20, "What ExecSync returns of each stream, at most.", within(1024, 1 << 30))
    exec_drain_s: float = key(2.0, "How long output is awaited after an ExecSync's process ended.", within(0, 3600))
    monitor_timeout_s: float = key(
        30.0, "How long one answer of a monitor may take; a mount that hangs for so long is given up.", POSITIVE_S
    )
    missing_host_paths: str = key(
        "refuse",
        "What becomes of a volume whose host_path is not there: refuse, as CRI asks, or make, a directory.",
        one_of("refuse", "make"),
    )
    shm_bytes: int = key(
        64 << 20,
        "How much a pod's /dev/shm may hold, in bytes, if the annotation shm-size.crio.io names no other size.",
        within(4096, 1 << 40),
    )
    apparmor_profile: str = key(
        "cri-py-default",
        'What containers get that name no AppArmor profile, loaded at the start where the kernel has it; "" is none.',
        matching(r"[A-Za-z0-9_.-]*", "letters, digits, '_', '.' and '-'"),
    )
    selinux: bool = key(
        True, "Whether containers get SELinux labels, where the kernel has it and container-selinux is there."
    )
    cdi_spec_dirs: tuple[str, ...] = key(
        ("/etc/cdi", "/var/run/cdi"),
        "Directories with CDI files (*.json, *.yaml), read when a container asks for such a device; later ones win.",
        each(ABSOLUTE),
    )
    device_ownership_from_security_context: bool = key(
        False, "Whether devices that are root's belong to run_as_user and run_as_group in the container."
    )
    block_io_classes: Mapping[str, BlockIoClass] = key({}, "One table for each class of block I/O, see below.")
    nofile: int = key(1048576, "RLIMIT_NOFILE of containers.", within(64, 1 << 30))
    stats_period_s: float = key(10.0, "How often CPU time is noted for rates, and layers are counted.", within(1, 600))


@dataclass(frozen=True, slots=True)
class StreamingConfig:
    """Exec, attach and port-forward: where clients (the kubelet, as a proxy) connect to."""

    host: str = key("127.0.0.1", "The address to listen on.", matching(r"[0-9A-Fa-f:.]+", "an IP address"))
    port: int = key(0, "The port; 0 is any that is free.", within(0, 65535))
    head_timeout_s: float = key(10.0, "How long a client may take for its request's head.", POSITIVE_S)
    max_waiting_connections: int = key(
        256, "Connections that have made no right request yet, at most; beyond it the oldest goes.", within(1, 1 << 16)
    )
    idle_timeout_s: float = key(
        14400.0, "A session without a byte for so long is ended (the kubelet has 4 h).", POSITIVE_S
    )
    tls: bool = key(False, "Whether to speak TLS: sessions then pass through the daemon and end with it.")
    tls_certificate: str = key(
        "",
        "PEM file with the certificate and its chain, read again when it changes; without one an own is made.",
        ABSOLUTE_OR_NONE,
    )
    tls_key: str = key("", "PEM file with the key.", ABSOLUTE_OR_NONE)
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

    @property
    def listen(self) -> str:
        return self.server.listen or f"unix://{self.server.state}/cri.sock"

    @property
    def metrics_listen(self) -> str:
        return self.metrics.listen or f"unix://{self.server.state}/metrics.sock"

    @property
    def netns_dir(self) -> str:
        own = "/var/run/netns" if self.network.plugin == "cni" else f"{self.server.state}/netns"
        return self.network.netns_dir or own

    @property
    def cni_cache_dir(self) -> str:
        return self.network.cni_cache_dir or f"{self.server.root}/cni"


EXAMPLES: Final[Mapping[type, str]] = {
    RegistryConfig: "registry.example.com",
    CniHandlerConfig: "handler",
    BlockIoClass: "slow",
}
"""What a table that the user names is called in ``cri-py config default``."""


def kinds(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def keys(cls: type, path: Path) -> Iterator[tuple[Path, Field[Any]]]:
    """Every key below ``cls`` with its field, tables that the user names left out."""
    for part in fields(cls):
        kind = kinds(cls)[part.name]
        if is_dataclass(kind):
            yield from keys(typing.cast(type, kind), (*path, part.name))
        else:
            yield (*path, part.name), part
