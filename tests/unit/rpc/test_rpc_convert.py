"""Messages become values, whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from cri_py import model
from cri_py.errors import DataLoss, InvalidArgument
from cri_py.rpc import answers, convert, signals
from cri_py.rpc.gen import api_pb2 as pb


def full_sandbox() -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", uid="u-1", namespace="default", attempt=3),
        hostname="web",
        log_directory="/var/log/pods/default_web_u-1",
        dns_config=pb.DNSConfig(servers=["10.0.0.10"], searches=["svc.local"], options=["ndots:5"]),
        port_mappings=[pb.PortMapping(protocol=pb.UDP, container_port=53, host_port=5353, host_ip="127.0.0.1")],
        labels={"a": "b"},
        annotations={"c": "d"},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/pod1",
            sysctls={"net.ipv4.ip_forward": "1"},
            overhead=full_resources(),
            resources=pb.LinuxContainerResources(cpu_shares=2),
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=full_namespaces(),
                selinux_options=pb.SELinuxOption(user="u", role="r", type="t", level="l"),
                run_as_user=pb.Int64Value(value=0),
                run_as_group=pb.Int64Value(value=5),
                readonly_rootfs=True,
                supplemental_groups=[7, 8],
                supplemental_groups_policy=pb.Strict,
                privileged=True,
                seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="/p.json"),
                apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
            ),
        ),
    )


def full_namespaces() -> pb.NamespaceOption:
    mapping = pb.IDMapping(host_id=65536, container_id=0, length=65536)
    return pb.NamespaceOption(
        network=pb.NODE,
        pid=pb.TARGET,
        ipc=pb.CONTAINER,
        target_id="abc",
        userns_options=pb.UserNamespace(mode=pb.POD, uids=[mapping], gids=[mapping]),
    )


def full_resources() -> pb.LinuxContainerResources:
    return pb.LinuxContainerResources(
        cpu_period=100000,
        cpu_quota=-1,
        cpu_shares=1024,
        memory_limit_in_bytes=1 << 40,
        oom_score_adj=-998,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        hugepage_limits=[pb.HugepageLimit(page_size="2MB", limit=1 << 21)],
        unified={"memory.high": "1000"},
        memory_swap_limit_in_bytes=1 << 41,
    )


def full_mount() -> pb.Mount:
    mapping = pb.IDMapping(host_id=1, container_id=2, length=3)
    return pb.Mount(
        container_path="/data",
        host_path="/srv/data",
        readonly=True,
        selinux_relabel=True,
        propagation=pb.PROPAGATION_BIDIRECTIONAL,
        uidMappings=[mapping],
        gidMappings=[mapping],
        recursive_read_only=True,
        image=full_image_spec(),
        image_sub_path="etc",
        mount_options=["noexec"],
    )


def full_image_spec() -> pb.ImageSpec:
    return pb.ImageSpec(
        image="sha256:1", annotations={"k": "v"}, user_specified_image="busybox", runtime_handler="h", image_ref="r"
    )


def full_container() -> pb.ContainerConfig:
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main", attempt=4),
        image=full_image_spec(),
        command=["/bin/sh"],
        args=["-c", "true"],
        working_dir="/tmp",
        envs=[pb.KeyValue(key="BINARY", value=b"\xff\x00".replace(b"\x00", b"\xfe")), pb.KeyValue(key="EMPTY")],
        mounts=[full_mount()],
        devices=[pb.Device(container_path="/dev/fuse", host_path="/dev/fuse", permissions="rwm")],
        labels={"a": "b"},
        annotations={"c": "d"},
        log_path="main/0.log",
        stdin=True,
        stdin_once=True,
        tty=True,
        CDI_devices=[pb.CDIDevice(name="vendor.com/gpu=0")],
        stop_signal=pb.SIGNAL_SIGRTMINPLUS3,
        linux=pb.LinuxContainerConfig(
            resources=full_resources(),
            security_context=pb.LinuxContainerSecurityContext(
                capabilities=pb.Capability(
                    add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"], add_ambient_capabilities=["CHOWN"]
                ),
                privileged=True,
                namespace_options=full_namespaces(),
                selinux_options=pb.SELinuxOption(type="t"),
                run_as_user=pb.Int64Value(value=1000),
                run_as_group=pb.Int64Value(value=0),
                run_as_username="nobody",
                readonly_rootfs=True,
                supplemental_groups=[1],
                supplemental_groups_policy=pb.Strict,
                no_new_privs=True,
                masked_paths=["/proc/kcore"],
                readonly_paths=["/proc/sys"],
                seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined),
                apparmor=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
            ),
        ),
    )


def values_of(value: Any) -> list[Any]:
    return [getattr(value, name) for name in type(value).__slots__]


def test_every_field_of_a_sandbox_config_arrives() -> None:
    config = convert.sandbox_config(full_sandbox())
    empty = convert.sandbox_config(pb.PodSandboxConfig(metadata=full_sandbox().metadata))
    for name in model.SandboxConfig.__slots__:
        if name != "metadata":
            assert getattr(config, name) != getattr(empty, name), f"{name} was not read"
    assert config.metadata == model.SandboxMetadata("web", "u-1", "default", 3)
    assert config.run_as_user == 0
    assert config.port_mappings == (model.PortMapping(model.TransportProtocol.UDP, 53, 5353, "127.0.0.1"),)
    assert config.seccomp == model.SecurityProfile(model.ProfileKind.LOCALHOST, "/p.json")
    assert config.namespaces.network is model.NamespaceMode.NODE


def test_every_field_of_a_container_config_arrives() -> None:
    message = full_container()
    config = convert.container_config(message)
    bare = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="x"), image=pb.ImageSpec(image="y"))
    empty = convert.container_config(bare)
    for name in model.ContainerConfig.__slots__:
        assert getattr(config, name) != getattr(empty, name), f"{name} was not read"
    for name in model.ContainerSecurity.__slots__:
        assert getattr(config.security, name) != getattr(empty.security, name), f"security.{name} was not read"
    assert config.stop_signal == "SIGRTMIN+3"
    assert config.cdi_devices == ("vendor.com/gpu=0",)
    assert config.security.run_as_group == 0


def test_what_a_status_repeats_is_what_the_config_said() -> None:
    message = full_container()
    config = convert.container_config(message)
    assert answers.mount(config.mounts[0]) == message.mounts[0]
    assert answers.image_spec(config.image) == message.image
    assert config.resources is not None
    assert answers.resources(config.resources) == message.linux.resources
    assert answers.namespaces(config.security.namespaces) == message.linux.security_context.namespace_options


def test_environment_values_need_not_be_utf8() -> None:
    config = convert.container_config(full_container())
    assert config.envs == (("BINARY", b"\xff\xfe"), ("EMPTY", b""))


def test_a_stored_config_reads_as_it_did_when_it_came() -> None:
    sandbox, container = convert.sandbox_config(full_sandbox()), convert.container_config(full_container())
    assert convert.decode_sandbox_config(sandbox.raw) == sandbox
    assert convert.decode_container_config(container.raw) == container


def test_fields_of_a_newer_kubelet_survive_in_raw() -> None:
    unknown = b"\xfa\x3f\x05hello"  # field 1023, a string
    message = pb.PodSandboxConfig.FromString(full_sandbox().SerializeToString() + unknown)
    assert unknown in convert.sandbox_config(message).raw
    container = pb.ContainerConfig.FromString(full_container().SerializeToString() + unknown)
    assert unknown in convert.container_config(container).raw


@pytest.mark.parametrize("decode", [convert.decode_sandbox_config, convert.decode_container_config])
def test_damaged_bytes_in_the_store_are_data_loss(decode: Any) -> None:
    with pytest.raises(DataLoss, match="can't be decoded"):
        decode(b"\x0a\xff")


@pytest.mark.parametrize("field", ["metadata", "metadata.name", "metadata.namespace"])
def test_a_sandbox_config_without_a_name_is_refused_by_field(field: str) -> None:
    message = full_sandbox()
    owner, _, last = field.rpartition(".")
    (getattr(message, owner) if owner else message).ClearField(last)
    with pytest.raises(InvalidArgument, match=f"^{field} is missing"):
        convert.sandbox_config(message)


@pytest.mark.parametrize("field", ["metadata", "metadata.name", "image.image"])
def test_a_container_config_without_name_or_image_is_refused_by_field(field: str) -> None:
    message = full_container()
    owner, _, last = field.rpartition(".")
    (getattr(message, owner) if owner else message).ClearField(last)
    with pytest.raises(InvalidArgument, match=f"^{field} is missing"):
        convert.container_config(message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pb.ContainerConfig(envs=[pb.KeyValue(key="A=B")]), "A=B"),
        (pb.ContainerConfig(envs=[pb.KeyValue(key="A", value=b"x\0y")]), "NUL"),
        (pb.ContainerConfig(envs=[pb.KeyValue()]), "envs"),
        (pb.ContainerConfig(mounts=[pb.Mount(host_path="/x")]), "mounts.container_path"),
        (pb.ContainerConfig(mounts=[pb.Mount(container_path="/x")]), "mounts.host_path"),
        (pb.ContainerConfig(mounts=[pb.Mount(container_path="/x", host_path="/y", propagation=9)]), "propagation is 9"),  # type: ignore[arg-type]
        (pb.ContainerConfig(stop_signal=99), "stop_signal is 99"),  # type: ignore[arg-type]
    ],
)
def test_a_container_config_that_no_node_can_serve_is_refused(change: pb.ContainerConfig, words: str) -> None:
    message = full_container()
    message.MergeFrom(change)
    with pytest.raises(InvalidArgument, match=words):
        convert.container_config(message)


@pytest.mark.parametrize(
    ("path", "kind", "ref"),
    [
        ("runtime/default", model.ProfileKind.RUNTIME_DEFAULT, ""),
        ("unconfined", model.ProfileKind.UNCONFINED, ""),
        ("localhost/mine", model.ProfileKind.LOCALHOST, "mine"),
    ],
)
def test_profiles_in_deprecated_fields_count_where_the_new_one_is_absent(
    path: str, kind: model.ProfileKind, ref: str
) -> None:
    message = full_container()
    security = message.linux.security_context
    security.ClearField("apparmor")
    security.apparmor_profile = path
    security.seccomp_profile_path = "localhost/ignored"
    config = convert.container_config(message)
    assert config.security.apparmor == model.SecurityProfile(kind, ref)
    assert config.security.seccomp == model.SecurityProfile(model.ProfileKind.UNCONFINED)


def test_every_signal_of_cri_has_a_common_name_and_comes_back() -> None:
    for name, number in pb.Signal.items():
        assert signals.cri_name(signals.word(number)) == name
    assert signals.word(pb.SIGNAL_SIGRTMAXMINUS14) == "SIGRTMAX-14"
    assert signals.cri_name("term") == "SIGNAL_SIGTERM"
    assert signals.cri_name("SIGSTKSZ") == "SIGNAL_RUNTIME_DEFAULT"


def test_a_filter_without_state_wants_every_state() -> None:
    assert convert.sandbox_filter(pb.PodSandboxFilter()).ready is None
    assert convert.container_filter(pb.ContainerFilter()).state is None


def test_a_filter_for_the_state_numbered_zero_wants_that_state() -> None:
    ready = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
    created = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_CREATED), pod_sandbox_id="ab")
    assert convert.sandbox_filter(ready).ready is True
    assert convert.container_filter(created) == model.ContainerFilter(state=model.Created, sandbox_id="ab")
