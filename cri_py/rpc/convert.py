"""From the kubelet's messages to the values of ``cri_py.model``.

What a message lacks or contradicts is refused here, by the field's name in CRI, so that the layers below see whole
values. Each config keeps the message's bytes: fields that this version does not know survive in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from cri_py import model
from cri_py.errors import DataLoss, InvalidArgument
from cri_py.rpc import signals
from cri_py.rpc.gen import api_pb2 as pb

E = TypeVar("E", bound=Enum)

CONTAINER_STATES: Final[dict[int, type[model.Created | model.Running | model.Exited | model.Lost]]] = {
    pb.CONTAINER_CREATED: model.Created,
    pb.CONTAINER_RUNNING: model.Running,
    pb.CONTAINER_EXITED: model.Exited,
    pb.CONTAINER_UNKNOWN: model.Lost,
}


# ------------------------------------------------------- from the store


def decode_sandbox_config(raw: bytes) -> model.SandboxConfig:
    """Read a PodSandboxConfig as it was kept. Raises DataLoss if the bytes are not one, InvalidArgument as ever."""
    try:
        return sandbox_config(pb.PodSandboxConfig.FromString(raw))
    except DecodeError as error:
        raise DataLoss(f"a stored PodSandboxConfig can't be decoded: {error}") from error


def decode_container_config(raw: bytes) -> model.ContainerConfig:
    """Read a ContainerConfig as it was kept. Raises DataLoss if the bytes are not one, InvalidArgument as ever."""
    try:
        return container_config(pb.ContainerConfig.FromString(raw))
    except DecodeError as error:
        raise DataLoss(f"a stored ContainerConfig can't be decoded: {error}") from error


# ------------------------------------------------------------- sandboxes


def sandbox_config(message: pb.PodSandboxConfig) -> model.SandboxConfig:
    """Read a PodSandboxConfig. ``metadata`` needs name and namespace; crictl's users often leave out the uid."""
    _refuse_windows(message)
    linux, security = message.linux, message.linux.security_context
    return model.SandboxConfig(
        metadata=_sandbox_metadata(message),
        hostname=message.hostname,
        log_directory=message.log_directory,
        dns=_dns(message.dns_config) if message.HasField("dns_config") else None,
        port_mappings=tuple(_port_mapping(mapping) for mapping in message.port_mappings),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        cgroup_parent=linux.cgroup_parent,
        namespaces=_namespaces(security.namespace_options, "linux.security_context.namespace_options"),
        sysctls=dict(linux.sysctls),
        overhead=resources(linux.overhead) if linux.HasField("overhead") else None,
        resources=resources(linux.resources) if linux.HasField("resources") else None,
        selinux=_selinux(security.selinux_options) if security.HasField("selinux_options") else None,
        run_as_user=_optional(security, "run_as_user"),
        run_as_group=_optional(security, "run_as_group"),
        readonly_rootfs=security.readonly_rootfs,
        supplemental_groups=tuple(security.supplemental_groups),
        groups_policy=_groups_policy(security),
        privileged=security.privileged,
        seccomp=_profile(security, "seccomp", security.seccomp_profile_path),
        apparmor=_profile(security, "apparmor", ""),
        raw=message.SerializeToString(),
    )


def _refuse_windows(message: pb.PodSandboxConfig | pb.ContainerConfig) -> None:
    if message.HasField("windows"):
        raise InvalidArgument("windows is set, this node runs Linux", hint="send the fields of linux")


def _sandbox_metadata(message: pb.PodSandboxConfig) -> model.SandboxMetadata:
    if not message.HasField("metadata"):
        raise _missing("metadata", "PodSandboxConfig")
    metadata = message.metadata
    for field in ("name", "namespace"):
        if not getattr(metadata, field):
            raise _missing(f"metadata.{field}", "PodSandboxConfig")
    return model.SandboxMetadata(metadata.name, metadata.uid, metadata.namespace, metadata.attempt)


def _dns(message: pb.DNSConfig) -> model.DnsConfig:
    return model.DnsConfig(tuple(message.servers), tuple(message.searches), tuple(message.options))


def _port_mapping(message: pb.PortMapping) -> model.PortMapping:
    protocol = _enum(model.TransportProtocol, message.protocol, "port_mappings.protocol")
    for field, port in (("container_port", message.container_port), ("host_port", message.host_port)):
        if not 0 <= port <= 65535:
            raise InvalidArgument(f"port_mappings.{field} is {port}, a port is at most 65535")
    return model.PortMapping(protocol, message.container_port, message.host_port, message.host_ip)


# ------------------------------------------------------------ containers


def container_config(message: pb.ContainerConfig) -> model.ContainerConfig:
    """Read a ContainerConfig. ``metadata.name`` and ``image.image`` must be there, and every mount's two ends."""
    if not message.HasField("metadata"):
        raise _missing("metadata", "ContainerConfig")
    if not message.metadata.name:
        raise _missing("metadata.name", "ContainerConfig")
    if not message.image.image:
        raise _missing("image.image", "ContainerConfig")
    _refuse_windows(message)
    linux = message.linux
    return model.ContainerConfig(
        metadata=model.ContainerMetadata(message.metadata.name, message.metadata.attempt),
        image=image_spec(message.image),
        command=tuple(message.command),
        args=tuple(message.args),
        working_dir=message.working_dir,
        envs=tuple(_env(variable) for variable in message.envs),
        mounts=tuple(_mount(mount) for mount in message.mounts),
        devices=tuple(model.Device(d.container_path, d.host_path, d.permissions) for d in message.devices),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        log_path=message.log_path,
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=resources(linux.resources) if linux.HasField("resources") else None,
        security=_container_security(linux.security_context),
        cdi_devices=tuple(device.name for device in message.CDI_devices),
        stop_signal=signals.word(message.stop_signal),
        raw=message.SerializeToString(),
    )


def _env(message: pb.KeyValue) -> tuple[str, bytes]:
    if not message.key or "=" in message.key or "\0" in message.key or b"\0" in message.value:
        raise InvalidArgument(
            f"envs has the variable {message.key!r}, which execve can't pass",
            hint="a name is not empty and holds no '=', neither name nor value a NUL",
        )
    return message.key, message.value


def _mount(message: pb.Mount) -> model.Mount:
    with_image = message.HasField("image")
    if not message.container_path:
        raise _missing("mounts.container_path", "ContainerConfig")
    if not message.host_path and not with_image:
        raise InvalidArgument(f"the mount at {message.container_path} has neither mounts.host_path nor mounts.image")
    return model.Mount(
        container_path=message.container_path,
        host_path=message.host_path,
        readonly=message.readonly,
        selinux_relabel=message.selinux_relabel,
        propagation=_enum(model.MountPropagation, message.propagation, "mounts.propagation"),
        uid_mappings=_id_mappings(message.uidMappings),
        gid_mappings=_id_mappings(message.gidMappings),
        recursive_read_only=message.recursive_read_only,
        image=image_spec(message.image) if with_image else None,
        image_sub_path=message.image_sub_path,
        mount_options=tuple(message.mount_options),
    )


def _container_security(message: pb.LinuxContainerSecurityContext) -> model.ContainerSecurity:
    added = message.capabilities
    return model.ContainerSecurity(
        capabilities=model.Capabilities(
            add=tuple(added.add_capabilities),
            drop=tuple(added.drop_capabilities),
            add_ambient=tuple(added.add_ambient_capabilities),
        ),
        privileged=message.privileged,
        namespaces=_namespaces(message.namespace_options, "linux.security_context.namespace_options"),
        selinux=_selinux(message.selinux_options) if message.HasField("selinux_options") else None,
        run_as_user=_optional(message, "run_as_user"),
        run_as_group=_optional(message, "run_as_group"),
        run_as_username=message.run_as_username,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=tuple(message.supplemental_groups),
        groups_policy=_groups_policy(message),
        no_new_privs=message.no_new_privs,
        masked_paths=tuple(message.masked_paths),
        readonly_paths=tuple(message.readonly_paths),
        seccomp=_profile(message, "seccomp", message.seccomp_profile_path),
        apparmor=_profile(message, "apparmor", message.apparmor_profile),
    )


# -------------------------------------------------------- shared by both


def resources(message: pb.LinuxContainerResources) -> model.LinuxResources:
    return model.LinuxResources(
        cpu_period=message.cpu_period,
        cpu_quota=message.cpu_quota,
        cpu_shares=message.cpu_shares,
        memory_limit_in_bytes=message.memory_limit_in_bytes,
        oom_score_adj=message.oom_score_adj,
        cpuset_cpus=message.cpuset_cpus,
        cpuset_mems=message.cpuset_mems,
        hugepage_limits=tuple(model.HugepageLimit(h.page_size, h.limit) for h in message.hugepage_limits),
        unified=dict(message.unified),
        memory_swap_limit_in_bytes=message.memory_swap_limit_in_bytes,
    )


def image_spec(message: pb.ImageSpec) -> model.ImageSpec:
    return model.ImageSpec(
        image=message.image,
        annotations=dict(message.annotations),
        user_specified_image=message.user_specified_image,
        runtime_handler=message.runtime_handler,
        image_ref=message.image_ref,
    )


def _namespaces(message: pb.NamespaceOption, where: str) -> model.NamespaceOption:
    userns = message.userns_options
    return model.NamespaceOption(
        network=_enum(model.NamespaceMode, message.network, f"{where}.network"),
        pid=_enum(model.NamespaceMode, message.pid, f"{where}.pid"),
        ipc=_enum(model.NamespaceMode, message.ipc, f"{where}.ipc"),
        target_id=message.target_id,
        userns=model.UserNamespace(
            mode=_enum(model.NamespaceMode, userns.mode, f"{where}.userns_options.mode"),
            uids=_id_mappings(userns.uids),
            gids=_id_mappings(userns.gids),
        )
        if message.HasField("userns_options")
        else None,
    )


def _id_mappings(messages: Iterable[pb.IDMapping]) -> tuple[model.IdMapping, ...]:
    return tuple(model.IdMapping(m.host_id, m.container_id, m.length) for m in messages)


def _selinux(message: pb.SELinuxOption) -> model.SelinuxOption:
    return model.SelinuxOption(message.user, message.role, message.type, message.level)


Security = pb.LinuxSandboxSecurityContext | pb.LinuxContainerSecurityContext


def _groups_policy(message: Security) -> model.GroupsPolicy:
    where = "linux.security_context.supplemental_groups_policy"
    return _enum(model.GroupsPolicy, message.supplemental_groups_policy, where)


def _profile(message: Security, field: str, deprecated: str) -> model.SecurityProfile | None:
    """The profile in ``field``, else the one that older clients name by a word in a field that is deprecated now."""
    if message.HasField(field):
        profile: pb.SecurityProfile = getattr(message, field)
        where = f"linux.security_context.{field}.profile_type"
        return model.SecurityProfile(_enum(model.ProfileKind, profile.profile_type, where), profile.localhost_ref)
    if deprecated in {"runtime/default", "docker/default"}:
        return model.SecurityProfile(model.ProfileKind.RUNTIME_DEFAULT)
    if deprecated == "unconfined":
        return model.SecurityProfile(model.ProfileKind.UNCONFINED)
    if deprecated.startswith("localhost/"):
        return model.SecurityProfile(model.ProfileKind.LOCALHOST, deprecated.removeprefix("localhost/"))
    if deprecated:
        raise InvalidArgument(
            f"the {field} profile {deprecated!r} is none", hint="use runtime/default, unconfined or localhost/NAME"
        )
    return None


def _optional(message: Security, field: str) -> int | None:
    if not message.HasField(field):
        return None
    value: int = getattr(message, field).value
    return value


def _enum(kind: type[E], number: int, where: str) -> E:
    """proto3 enums are open: a newer client may send a number that has no name here."""
    try:
        return kind(number)
    except ValueError:
        raise InvalidArgument(f"{where} is {number}, which CRI v1 does not name") from None


def _missing(field: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"{field} is missing in the {message}")


# --------------------------------------------------------------- requests


def object_id(value: str, field: str) -> str:
    """An id from a request; "" would be a prefix of every id."""
    if not value:
        raise InvalidArgument(f"{field} is empty")
    return value


def sandbox_filter(message: pb.PodSandboxFilter) -> model.SandboxFilter:
    ready = None
    if message.HasField("state"):
        ready = message.state.state == pb.SANDBOX_READY
    return model.SandboxFilter(message.id, ready, dict(message.label_selector))


def container_filter(message: pb.ContainerFilter) -> model.ContainerFilter:
    state = None
    if message.HasField("state"):
        state = CONTAINER_STATES.get(message.state.state)
        if state is None:
            raise InvalidArgument(f"filter.state is {message.state.state}, which CRI v1 does not name")
    return model.ContainerFilter(message.id, state, message.pod_sandbox_id, dict(message.label_selector))


def container_stats_filter(message: pb.ContainerStatsFilter) -> model.ContainerFilter:
    return model.ContainerFilter(message.id, None, message.pod_sandbox_id, dict(message.label_selector))


def sandbox_stats_filter(message: pb.PodSandboxStatsFilter) -> model.SandboxFilter:
    return model.SandboxFilter(message.id, None, dict(message.label_selector))


def stdio(request: pb.ExecRequest | pb.AttachRequest) -> model.Stdio:
    return model.Stdio(request.tty, request.stdin, request.stdout, request.stderr)


def registry_auth(request: pb.PullImageRequest) -> model.RegistryAuth | None:
    if not request.HasField("auth"):
        return None
    auth = request.auth
    return model.RegistryAuth(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
