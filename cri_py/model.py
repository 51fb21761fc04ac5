"""The nouns: ids, states, sandboxes, containers, images, and what the kubelet asks for.

Frozen values without I/O. The configs mirror CRI v1 (``proto/runtime/v1/api.proto``), with CRI's field names where a
field means the same, so that a reader can look it up; the bytes that the kubelet sent are kept beside them (``raw``),
so that fields which this version does not know survive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

SandboxId = NewType("SandboxId", str)  # 64 lower-case hex digits
ContainerId = NewType("ContainerId", str)  # 64 lower-case hex digits
ImageId = NewType("ImageId", str)  # sha256:… of the image's config
Digest = NewType("Digest", str)  # algorithm:hex of any content
ChainId = NewType("ChainId", str)  # sha256:… of a stack of layers (OCI image-spec, config.md)
Nanos = NewType("Nanos", int)  # Unix time in nanoseconds, as CRI has it


# ------------------------------------------------------------------ states


@dataclass(frozen=True, slots=True)
class Created:
    """Set up, waiting to execute its program."""


@dataclass(frozen=True, slots=True)
class Running:
    """A pid exists only here. ``start_ticks`` (field 22 of /proc/PID/stat) tells a reused pid."""

    pid: int
    start_ticks: int
    started_at: Nanos


@dataclass(frozen=True, slots=True)
class Exited:
    """An exit code exists only here; ``started_at`` is 0 if the program never ran."""

    code: int
    started_at: Nanos
    finished_at: Nanos
    reason: str  # Completed | Error | OOMKilled | StartError
    message: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """CRI's UNKNOWN: its monitor is gone, so nobody saw how it ended; ``reason`` says why."""

    started_at: Nanos
    finished_at: Nanos
    reason: str
    message: str = ""


ContainerState = Created | Running | Exited | Lost


@dataclass(frozen=True, slots=True)
class Ready:
    """The sandbox's namespaces are held and take containers."""

    monitor_pid: int
    holder_pid: int


@dataclass(frozen=True, slots=True)
class NotReady:
    """Stopped, or its monitor or holder died."""

    stopped_at: Nanos
    reason: str


SandboxState = Ready | NotReady


# ----------------------------------------------------- what the kubelet asks


class NamespaceMode(Enum):
    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class MountPropagation(Enum):
    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class ProfileKind(Enum):
    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class GroupsPolicy(Enum):
    MERGE = 0
    STRICT = 1


class TransportProtocol(Enum):
    TCP = 0
    UDP = 1
    SCTP = 2


@dataclass(frozen=True, slots=True)
class SecurityProfile:
    kind: ProfileKind
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True)
class IdMapping:
    host_id: int
    container_id: int
    length: int


@dataclass(frozen=True, slots=True)
class UserNamespace:
    mode: NamespaceMode
    uids: tuple[IdMapping, ...] = ()
    gids: tuple[IdMapping, ...] = ()


@dataclass(frozen=True, slots=True)
class NamespaceOption:
    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns: UserNamespace | None = None


@dataclass(frozen=True, slots=True)
class HugepageLimit:
    page_size: str
    limit: int


@dataclass(frozen=True, slots=True)
class LinuxResources:
    """CRI LinuxContainerResources; 0 and "" mean: not asked for."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    unified: Mapping[str, str] = field(default_factory=dict)
    memory_swap_limit_in_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SandboxMetadata:
    name: str
    uid: str
    namespace: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ContainerMetadata:
    name: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class DnsConfig:
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    protocol: TransportProtocol
    container_port: int
    host_port: int
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class SelinuxOption:
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """CRI PodSandboxConfig with its LinuxPodSandboxConfig and LinuxSandboxSecurityContext flattened in."""

    metadata: SandboxMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    namespaces: NamespaceOption = field(default_factory=NamespaceOption)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    overhead: LinuxResources | None = None
    resources: LinuxResources | None = None
    selinux: SelinuxOption | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    # The PodSandboxConfig message as the kubelet sent it. Not compared: a retry may have its maps in another order.
    raw: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """CRI ImageSpec: ``image`` is a ref or an id."""

    image: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    user_specified_image: str = ""
    runtime_handler: str = ""
    image_ref: str = ""


@dataclass(frozen=True, slots=True)
class Mount:
    container_path: str
    host_path: str = ""
    readonly: bool = False
    selinux_relabel: bool = False
    propagation: MountPropagation = MountPropagation.PRIVATE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    recursive_read_only: bool = False
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Device:
    container_path: str
    host_path: str
    permissions: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerSecurity:
    """CRI LinuxContainerSecurityContext."""

    capabilities: Capabilities = field(default_factory=Capabilities)
    privileged: bool = False
    namespaces: NamespaceOption = field(default_factory=NamespaceOption)
    selinux: SelinuxOption | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """CRI ContainerConfig."""

    metadata: ContainerMetadata
    image: ImageSpec
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, bytes], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: LinuxResources | None = None
    security: ContainerSecurity = field(default_factory=ContainerSecurity)
    cdi_devices: tuple[str, ...] = ()
    stop_signal: str = ""  # "" or a name such as SIGTERM, SIGRTMIN+3
    # The ContainerConfig message as the kubelet sent it. Not compared: a retry may have its maps in another order.
    raw: bytes = field(default=b"", compare=False)


# ----------------------------------------------------------- what there is


@dataclass(frozen=True, slots=True)
class Attachment:
    """A network on a sandbox: where its namespace is pinned, and its addresses, the pod's IP first."""

    netns_path: str
    ips: tuple[str, ...]
    interface: str = "eth0"
    host_interface: str = ""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Sandbox:
    id: SandboxId
    config: SandboxConfig
    runtime_handler: str
    created_at: Nanos
    state: SandboxState
    attachment: Attachment | None = None  # None: the host's network
    cgroup: str = ""  # the pod's cgroup, below the root of every hierarchy, with a leading slash
    overhead: LinuxResources | None = None  # as UpdatePodSandboxResources told it last; None: as in the config
    resources: LinuxResources | None = None
    selinux_level: str = ""  # which no other pod has; "" where the node labels none


@dataclass(frozen=True, slots=True)
class User:
    """What the container's first process runs as."""

    uid: int
    gid: int
    supplemental_groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Container:
    id: ContainerId
    sandbox_id: SandboxId
    config: ContainerConfig
    image_id: ImageId
    image_ref: str
    created_at: Nanos
    state: ContainerState
    log_path: str  # absolute, or "" for none
    cgroup: str
    user: User | None = None
    stop_signal: str = "SIGTERM"
    resources: LinuxResources | None = None
    volume_images: Mapping[str, ImageId] = field(default_factory=dict)  # by the container_path of their mount


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The part of an image's config that a container is made from (OCI image-spec, config.md)."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Image:
    id: ImageId
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int  # bytes: compressed layers, config and manifest, as peers count
    config: ImageConfig
    chain_ids: tuple[ChainId, ...]  # one per layer, the base first
    pinned: bool = False
    artifact_type: str = ""  # media type of what is kept as it came and can't be run; "" for a container image


@dataclass(frozen=True, slots=True)
class FilesystemUsage:
    mountpoint: str
    used_bytes: int
    inodes_used: int
    at: Nanos


class EventKind(Enum):
    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a container or, with the sandbox's id, to a sandbox."""

    container_id: str
    kind: EventKind
    at: Nanos
    sandbox: Sandbox | None = None
    containers: tuple[Container, ...] = ()


# ------------------------------------------------------------- what is asked


@dataclass(frozen=True, slots=True)
class SandboxFilter:
    """All that are given must match: an id prefix, ready or not, labels."""

    id: str = ""
    ready: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerFilter:
    """All that are given must match: an id prefix, the state's type, the sandbox's id (a prefix too), labels."""

    id: str = ""
    state: type[Created] | type[Running] | type[Exited] | type[Lost] | None = None
    sandbox_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class StreamKind(Enum):
    """What a streaming session does; the value is the first part of its URL's path."""

    EXEC = "exec"
    ATTACH = "attach"
    PORT_FORWARD = "portforward"


@dataclass(frozen=True, slots=True)
class Stdio:
    """Which streams a client wants of a process, and whether it is to have a terminal."""

    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """What a streaming session may do, as Exec, Attach or PortForward asked for it."""

    kind: StreamKind
    sandbox_id: SandboxId
    container_id: ContainerId | None = None
    command: tuple[str, ...] = ()
    stdio: Stdio = Stdio()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecResult:
    stdout: bytes
    stderr: bytes
    code: int


@dataclass(frozen=True, slots=True)
class RegistryAuth:
    """CRI AuthConfig. Never printed."""

    username: str = ""
    password: str = field(default="", repr=False)
    auth: str = field(default="", repr=False)  # base64 of username:password
    server_address: str = ""
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel can't do, each "" if it can, else why not."""

    no_recursive_read_only: str = ""
    no_user_namespaces: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the node's conditions (CRI RuntimeCondition): RuntimeReady, NetworkReady …"""

    type: str
    status: bool
    reason: str = ""
    message: str = ""
