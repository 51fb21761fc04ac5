"""From the values of ``cri_py.model`` to CRI's messages, for statuses and events. Lists are encoded in ``listing``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from cri_py import model
from cri_py.errors import Internal
from cri_py.rpc import signals
from cri_py.rpc.gen import api_pb2 as pb

MAX_UID: Final = 2**32 - 2  # 2**32 - 1 is "no user" (credentials(7))
LOST_EXIT_CODE: Final = 255  # what peers answer where nobody saw the exit

SANDBOX_STATES: Final = {model.Ready: pb.SANDBOX_READY, model.NotReady: pb.SANDBOX_NOTREADY}
CONTAINER_STATES: Final = {
    model.Created: pb.CONTAINER_CREATED,
    model.Running: pb.CONTAINER_RUNNING,
    model.Exited: pb.CONTAINER_EXITED,
    model.Lost: pb.CONTAINER_UNKNOWN,
}
EVENT_KINDS: Final = {
    model.EventKind.CREATED: pb.CONTAINER_CREATED_EVENT,
    model.EventKind.STARTED: pb.CONTAINER_STARTED_EVENT,
    model.EventKind.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    model.EventKind.DELETED: pb.CONTAINER_DELETED_EVENT,
}
CGROUP_DRIVERS: Final = {"systemd": pb.SYSTEMD, "cgroupfs": pb.CGROUPFS}


def asked(kind: type[Message], raw: bytes) -> str:
    """A config as its caller sent it, as JSON with the names of CRI's fields: for ``info``, which people read."""
    return MessageToJson(kind.FromString(raw), preserving_proto_field_name=True)


# ------------------------------------------------------------- sandboxes


def sandbox_metadata(metadata: model.SandboxMetadata) -> pb.PodSandboxMetadata:
    return pb.PodSandboxMetadata(
        name=metadata.name, uid=metadata.uid, namespace=metadata.namespace, attempt=metadata.attempt
    )


def sandbox(value: model.Sandbox) -> pb.PodSandbox:
    return pb.PodSandbox(
        id=value.id,
        metadata=sandbox_metadata(value.config.metadata),
        state=SANDBOX_STATES[type(value.state)],
        created_at=value.created_at,
        labels=value.config.labels,
        annotations=value.config.annotations,
        runtime_handler=value.runtime_handler,
    )


def sandbox_status(value: model.Sandbox) -> pb.PodSandboxStatus:
    return pb.PodSandboxStatus(
        id=value.id,
        metadata=sandbox_metadata(value.config.metadata),
        state=SANDBOX_STATES[type(value.state)],
        created_at=value.created_at,
        network=_network(value.attachment),
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=namespaces(value.config.namespaces))),
        labels=value.config.labels,
        annotations=value.config.annotations,
        runtime_handler=value.runtime_handler,
    )


def _network(attachment: model.Attachment | None) -> pb.PodSandboxNetworkStatus:
    """Empty with the host's network: the kubelet then takes the node's address."""
    first, *others = attachment.ips if attachment and attachment.ips else ("",)
    return pb.PodSandboxNetworkStatus(ip=first, additional_ips=[pb.PodIP(ip=ip) for ip in others])


def namespaces(option: model.NamespaceOption) -> pb.NamespaceOption:
    userns = option.userns
    return pb.NamespaceOption(
        network=option.network.name,
        pid=option.pid.name,
        ipc=option.ipc.name,
        target_id=option.target_id,
        userns_options=None
        if userns is None
        else pb.UserNamespace(mode=userns.mode.name, uids=_id_mappings(userns.uids), gids=_id_mappings(userns.gids)),
    )


# ------------------------------------------------------------ containers


def container(value: model.Container) -> pb.Container:
    return pb.Container(
        id=value.id,
        pod_sandbox_id=value.sandbox_id,
        metadata=_container_metadata(value.config.metadata),
        image=_image_of(value),
        image_ref=value.image_id,
        state=CONTAINER_STATES[type(value.state)],
        created_at=value.created_at,
        labels=value.config.labels,
        annotations=value.config.annotations,
        image_id=value.image_id,
    )


def container_status(value: model.Container) -> pb.ContainerStatus:
    status = pb.ContainerStatus(
        id=value.id,
        metadata=_container_metadata(value.config.metadata),
        state=CONTAINER_STATES[type(value.state)],
        created_at=value.created_at,
        image=_image_of(value),
        image_ref=value.image_id,
        labels=value.config.labels,
        annotations=value.config.annotations,
        mounts=[mount(m, value.volume_images.get(m.container_path, "")) for m in value.config.mounts],
        log_path=value.log_path,
        resources=_resources_of(value),
        image_id=value.image_id,
        user=None if value.user is None else pb.ContainerUser(linux=_user(value.user)),
        stop_signal=signals.cri_name(value.stop_signal),
    )
    _tell_state(status, value.state)
    return status


def _tell_state(status: pb.ContainerStatus, state: model.ContainerState) -> None:
    """Times, exit code and reason, each only where the state has one."""
    match state:
        case model.Created():
            pass
        case model.Running(started_at=started_at):
            status.started_at = started_at
        case model.Exited() | model.Lost():
            status.started_at = state.started_at
            status.finished_at = state.finished_at
            status.exit_code = state.code if isinstance(state, model.Exited) else LOST_EXIT_CODE
            status.reason = state.reason
            status.message = state.message


def _container_metadata(metadata: model.ContainerMetadata) -> pb.ContainerMetadata:
    return pb.ContainerMetadata(name=metadata.name, attempt=metadata.attempt)


def _image_of(value: model.Container) -> pb.ImageSpec:
    """As the kubelet named it, but for an id: people look at this field, and a ref tells them more."""
    spec = image_spec(value.config.image)
    if value.image_ref:
        spec.image = value.image_ref
    return spec


def _resources_of(value: model.Container) -> pb.ContainerResources | None:
    current = value.resources if value.resources is not None else value.config.resources
    return None if current is None else pb.ContainerResources(linux=resources(current))


def _user(user: model.User) -> pb.LinuxContainerUser:
    return pb.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.supplemental_groups)


def mount(value: model.Mount, image_id: str = "") -> pb.Mount:
    """``image_id``: of an image volume, what the ref meant when the container was made (KEP-5365)."""
    image = None if value.image is None else image_spec(value.image)
    if image is not None and image_id:
        image.image_ref = image_id
    return pb.Mount(
        container_path=value.container_path,
        host_path=value.host_path,
        readonly=value.readonly,
        selinux_relabel=value.selinux_relabel,
        propagation=f"PROPAGATION_{value.propagation.name}",
        uidMappings=_id_mappings(value.uid_mappings),
        gidMappings=_id_mappings(value.gid_mappings),
        recursive_read_only=value.recursive_read_only,
        image=image,
        image_sub_path=value.image_sub_path,
        mount_options=value.mount_options,
    )


def _id_mappings(values: Iterable[model.IdMapping]) -> list[pb.IDMapping]:
    return [pb.IDMapping(host_id=v.host_id, container_id=v.container_id, length=v.length) for v in values]


def resources(value: model.LinuxResources) -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit_in_bytes,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=[pb.HugepageLimit(page_size=h.page_size, limit=h.limit) for h in value.hugepage_limits],
        unified=value.unified,
        memory_swap_limit_in_bytes=value.memory_swap_limit_in_bytes,
    )


def event(value: model.Event) -> pb.ContainerEventResponse:
    return pb.ContainerEventResponse(
        container_id=value.container_id,
        container_event_type=EVENT_KINDS[value.kind],
        created_at=value.at,
        pod_sandbox_status=None if value.sandbox is None else sandbox_status(value.sandbox),
        containers_statuses=[container_status(c) for c in value.containers],
    )


# ---------------------------------------------------------------- images


def image_spec(value: model.ImageSpec) -> pb.ImageSpec:
    return pb.ImageSpec(
        image=value.image,
        annotations=value.annotations,
        user_specified_image=value.user_specified_image,
        runtime_handler=value.runtime_handler,
        image_ref=value.image_ref,
    )


def image(value: model.Image) -> pb.Image:
    """Either uid or username is set: the kubelet checks runAsNonRoot by them. No USER means root."""
    uid, username = _uid_or_name(value.config.user.partition(":")[0])
    return pb.Image(
        id=value.id,
        repo_tags=value.repo_tags,
        repo_digests=value.repo_digests,
        size=value.size,
        uid=None if uid is None else pb.Int64Value(value=uid),
        username=username,
        pinned=value.pinned,
    )


def _uid_or_name(user: str) -> tuple[int | None, str]:
    if not user:
        return 0, ""
    if user.isascii() and user.isdigit() and int(user) <= MAX_UID:
        return int(user), ""
    return None, user


def filesystem(value: model.FilesystemUsage) -> pb.FilesystemUsage:
    return pb.FilesystemUsage(
        timestamp=value.at,
        fs_id=pb.FilesystemIdentifier(mountpoint=value.mountpoint),
        used_bytes=pb.UInt64Value(value=value.used_bytes),
        inodes_used=pb.UInt64Value(value=value.inodes_used),
    )


# ------------------------------------------------------------------ node


def condition(value: model.Condition) -> pb.RuntimeCondition:
    return pb.RuntimeCondition(type=value.type, status=value.status, reason=value.reason, message=value.message)


def handler_features(features: model.Features) -> pb.RuntimeHandlerFeatures:
    """What the kubelet asks for before it admits a pod that needs it."""
    return pb.RuntimeHandlerFeatures(
        recursive_read_only_mounts=not features.no_recursive_read_only,
        user_namespaces=not features.no_user_namespaces,
    )


def runtime_features(features: model.Features) -> pb.RuntimeFeatures:
    """The same for all handlers; options of mounts hold for what is mounted below, too, as read-only does."""
    return pb.RuntimeFeatures(
        supplemental_groups_policy=True,
        user_namespaces_host_network=not (features.no_user_namespaces or features.no_recursive_read_only),
        mount_options=not features.no_recursive_read_only,
    )


def runtime_configuration(driver: str) -> pb.LinuxRuntimeConfiguration:
    if driver not in CGROUP_DRIVERS:
        raise Internal(f"the cgroup driver {driver!r} has no word in CRI")
    return pb.LinuxRuntimeConfiguration(cgroup_driver=CGROUP_DRIVERS[driver])
