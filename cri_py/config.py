"""TOML, drop-ins and flags become one frozen Config; an error names the file, the key and the line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServerConfig:
    root: str = "/var/lib/cri_py"  # what outlives a reboot: images, snapshots, the image database
    state: str = "/run/cri_py"  # what doesn't: sockets, bundles, the runtime database
    listen: str = ""  # unix:///path of the CRI socket; "" is STATE/cri.sock
    socket_group: str = ""  # name or number of the group that may use the socket, mode 0660; "" is root's
    max_message_bytes: int = 64 << 20
    shutdown_grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: str = "info"  # debug | info | warning | error
    format: str = "auto"  # auto: text on a terminal, json elsewhere | text | json


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    listen: str = ""  # unix:///path or 127.0.0.1:PORT; "" is unix://STATE/metrics.sock; "off"


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """How one registry host, as image refs name it, is reached."""

    mirrors: tuple[str, ...] = ()  # base URLs, tried in order before the host itself
    insecure: bool = False  # plain HTTP to the host itself


@dataclass(frozen=True, slots=True)
class ImagesConfig:
    registries: Mapping[str, RegistryConfig] = field(default_factory=dict)
    max_parallel_downloads: int = 3
    max_parallel_unpacks: int = 2
    pull_progress_timeout_s: float = 300.0
    pinned: tuple[str, ...] = ()  # glob patterns of image refs


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    bridge: str = "crip0"
    subnet: str = "10.85.0.0/16"
    netns_dir: str = ""  # "" is STATE/netns
    masquerade: bool = True
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class CgroupConfig:
    driver: str = "cgroupfs"
    parent: str = "/cri_py"  # for pods that name no cgroup_parent


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    handlers: tuple[str, ...] = ("cri_py",)  # names that RuntimeClasses may use beside ""
    seccomp: bool = True  # whether containers that name no profile get the default one
    log_line_bytes: int = 16384
    exec_output_bytes: int = 16 << 20  # a stream of ExecSync
    exec_drain_s: float = 2.0  # how long output is awaited after an ExecSync's process ended
    monitor_timeout_s: float = 30.0  # for one answer of a monitor
    nofile: int = 1048576  # RLIMIT_NOFILE of containers


@dataclass(frozen=True, slots=True)
class Config:
    server: ServerConfig = field(default_factory=ServerConfig)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    cgroups: CgroupConfig = field(default_factory=CgroupConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def listen(self) -> str:
        return self.server.listen or f"unix://{self.server.state}/cri.sock"

    @property
    def metrics_listen(self) -> str:
        return self.metrics.listen or f"unix://{self.server.state}/metrics.sock"

    @property
    def netns_dir(self) -> str:
        return self.network.netns_dir or f"{self.server.state}/netns"
