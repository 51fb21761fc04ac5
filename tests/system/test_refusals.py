"""What is wrong is refused with the right code, in words that name it, and nothing of it is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused
from tests.system.daemon import Daemon

UNKNOWN = "0" * 64


@pytest.mark.parametrize(
    "method",
    ["ContainerStatus", "StartContainer", "StopContainer", "RemoveContainer", "ReopenContainerLog", "ExecSync"],
)
def test_a_call_about_a_container_needs_its_id(kubelet: Kubelet, method: str) -> None:
    with refused("INVALID_ARGUMENT", "container_id"):
        getattr(kubelet, method)()


@pytest.mark.parametrize("method", ["PodSandboxStatus", "StopPodSandbox", "RemovePodSandbox"])
def test_a_call_about_a_sandbox_needs_its_id(kubelet: Kubelet, method: str) -> None:
    with refused("INVALID_ARGUMENT", "pod_sandbox_id"):
        getattr(kubelet, method)()


@pytest.mark.parametrize("method", ["ContainerStatus", "StartContainer", "ReopenContainerLog", "ExecSync"])
def test_an_unknown_container_is_not_found(kubelet: Kubelet, method: str) -> None:
    with refused("NOT_FOUND", UNKNOWN):
        getattr(kubelet, method)(container_id=UNKNOWN, **({"cmd": ["true"]} if method == "ExecSync" else {}))


def test_an_unknown_sandbox_is_not_found(kubelet: Kubelet) -> None:
    with refused("NOT_FOUND", UNKNOWN):
        kubelet.PodSandboxStatus(pod_sandbox_id=UNKNOWN)
    with refused("NOT_FOUND", UNKNOWN):
        kubelet.CreateContainer(pod_sandbox_id=UNKNOWN, config=kubelet.container_config("true"))


def test_a_prefix_that_fits_several_is_refused(kubelet: Kubelet) -> None:
    """With 17 pods two begin with the same digit."""
    pods = [kubelet.run_pod().id for _ in range(17)]
    first = next(digit for digit in "0123456789abcdef" if sum(pod.startswith(digit) for pod in pods) > 1)
    with refused("INVALID_ARGUMENT", first):
        kubelet.PodSandboxStatus(pod_sandbox_id=first)


# -------------------------------------------------------------------- pods


def without_metadata(config: pb.PodSandboxConfig) -> None:
    config.ClearField("metadata")


def without_name(config: pb.PodSandboxConfig) -> None:
    config.metadata.name = ""


def parent_outside(config: pb.PodSandboxConfig) -> None:
    config.linux.cgroup_parent = "/kubepods/../../system"


def relative_logs(config: pb.PodSandboxConfig) -> None:
    config.log_directory = "/var/log/../../etc"


def bad_hostname(config: pb.PodSandboxConfig) -> None:
    config.hostname = "not a name"


def unknown_sysctl(config: pb.PodSandboxConfig) -> None:
    config.linux.sysctls["net.ipv4.no_such_thing"] = "1"


def sysctl_out_of_range(config: pb.PodSandboxConfig) -> None:
    config.linux.sysctls["net.ipv4.ip_forward"] = "x" * 1000


def foreign_sysctl(config: pb.PodSandboxConfig) -> None:
    config.linux.sysctls["kernel.panic"] = "1"


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (without_metadata, "metadata"),
        (without_name, "metadata.name"),
        (parent_outside, "cgroup_parent"),
        (relative_logs, "log_directory"),
        (bad_hostname, "hostname"),
        (foreign_sysctl, "kernel.panic"),
        (unknown_sysctl, "net.ipv4.no_such_thing"),
        (sysctl_out_of_range, "net.ipv4.ip_forward"),
    ],
)
def test_a_pod_that_no_node_can_run_is_refused(
    kubelet: Kubelet, spoil: Callable[[pb.PodSandboxConfig], None], word: str
) -> None:
    config = kubelet.pod_config()
    spoil(config)
    with refused("INVALID_ARGUMENT", word):
        kubelet.run_pod(config)
    assert not kubelet.ListPodSandbox().items


def test_a_pod_without_config_is_refused(kubelet: Kubelet) -> None:
    with refused("INVALID_ARGUMENT", "PodSandboxConfig"):
        kubelet.RunPodSandbox()


def test_an_unknown_runtime_handler_is_not_found(kubelet: Kubelet) -> None:
    with refused("NOT_FOUND", "gvisor", "cri_py"):
        kubelet.run_pod(handler="gvisor")
    assert not kubelet.ListPodSandbox().items


# -------------------------------------------------------------- containers

Spoil = Callable[[pb.ContainerConfig], None]


def no_metadata(config: pb.ContainerConfig) -> None:
    config.ClearField("metadata")


def no_name(config: pb.ContainerConfig) -> None:
    config.metadata.name = ""


def no_image(config: pb.ContainerConfig) -> None:
    config.ClearField("image")


def unknown_image(config: pb.ContainerConfig) -> None:
    config.image.image = "registry.test/never-pulled:1"


def log_outside(config: pb.ContainerConfig) -> None:
    config.log_path = "../../0.log"


def nul_in_argument(config: pb.ContainerConfig) -> None:
    config.command.append("a\0b")


def too_long_argument(config: pb.ContainerConfig) -> None:
    config.command.append("x" * (128 << 10))


def relative_directory(config: pb.ContainerConfig) -> None:
    config.working_dir = "tmp"


def mount_outside(config: pb.ContainerConfig) -> None:
    config.mounts.add(container_path="/a/../../b", host_path="/tmp")


def missing_device(config: pb.ContainerConfig) -> None:
    config.devices.add(host_path="/dev/missing", container_path="/dev/missing", permissions="r")


def no_path_to_a_device(config: pb.ContainerConfig) -> None:
    config.devices.add(host_path="/dev/\0", container_path="/dev/x", permissions="r")


def unknown_capability(config: pb.ContainerConfig) -> None:
    config.linux.security_context.capabilities.add_capabilities.append("FLY")


def two_users(config: pb.ContainerConfig) -> None:
    config.linux.security_context.run_as_user.value = 1
    config.linux.security_context.run_as_username = "alice"


def privileged(config: pb.ContainerConfig) -> None:
    config.linux.security_context.privileged = True


def unknown_target(config: pb.ContainerConfig) -> None:
    config.linux.security_context.namespace_options.pid = pb.TARGET
    config.linux.security_context.namespace_options.target_id = UNKNOWN


@pytest.mark.parametrize(
    ("spoil", "code", "word"),
    [
        (no_metadata, "INVALID_ARGUMENT", "metadata"),
        (no_name, "INVALID_ARGUMENT", "metadata.name"),
        (no_image, "INVALID_ARGUMENT", "image"),
        (unknown_image, "NOT_FOUND", "registry.test/never-pulled:1"),
        (log_outside, "INVALID_ARGUMENT", "log_path"),
        (nul_in_argument, "INVALID_ARGUMENT", "command"),
        (too_long_argument, "INVALID_ARGUMENT", "command"),
        (relative_directory, "INVALID_ARGUMENT", "working_dir"),
        (mount_outside, "INVALID_ARGUMENT", "/a/../../b"),
        (missing_device, "NOT_FOUND", "/dev/missing"),
        (no_path_to_a_device, "INVALID_ARGUMENT", "/dev/"),
        (unknown_capability, "INVALID_ARGUMENT", "FLY"),
        (two_users, "INVALID_ARGUMENT", "run_as_username"),
        (privileged, "INVALID_ARGUMENT", "privileged"),
        (unknown_target, "NOT_FOUND", UNKNOWN),
    ],
)
def test_a_container_that_no_node_can_run_is_refused(
    kubelet: Kubelet, pod: Pod, spoil: Spoil, code: str, word: str
) -> None:
    config = kubelet.container_config("true")
    spoil(config)
    with refused(code, word):
        kubelet.create(pod, config=config)
    assert not kubelet.ListContainers().containers
    assert kubelet.outcome(pod, "echo", "ok")[1] == "ok\n"


def test_a_container_without_config_is_refused(kubelet: Kubelet, pod: Pod) -> None:
    with refused("INVALID_ARGUMENT", "ContainerConfig"):
        kubelet.CreateContainer(pod_sandbox_id=pod.id)


def test_a_volume_whose_host_path_is_missing_is_refused_by_name(
    kubelet: Kubelet, pod: Pod, daemon: Daemon, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    before = set(daemon.processes()), daemon.cgroups()
    with refused("FAILED_PRECONDITION", "/data", str(missing), "No such file"):
        kubelet.create(pod, "true", mounts=[pb.Mount(container_path="/data", host_path=str(missing))])
    assert (set(daemon.processes()), daemon.cgroups()) == before
    assert not missing.exists()
    missing.mkdir()
    kubelet.create(pod, "true", mounts=[pb.Mount(container_path="/data", host_path=str(missing))])


def test_a_limit_too_low_to_start_with_is_told_as_such(kubelet: Kubelet, pod: Pod) -> None:
    config = kubelet.container_config("true")
    config.linux.resources.memory_limit_in_bytes = 4096
    with refused("FAILED_PRECONDITION", "memory", "limit"):
        kubelet.create(pod, config=config)
    assert not kubelet.ListContainers().containers


@pytest.mark.parametrize("command", [[""], ["true", "a\0b"], ["echo", "x" * 200_000]])
def test_a_command_that_execve_can_t_take_is_refused(kubelet: Kubelet, pod: Pod, command: list[str]) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with refused("INVALID_ARGUMENT"):
        kubelet.ExecSync(container_id=container, cmd=command)


def test_a_working_directory_may_be_as_deep_as_a_path_goes(kubelet: Kubelet, pod: Pod) -> None:
    deep = "/d" * 1500
    assert kubelet.outcome(pod, "pwd", working_dir=deep)[1] == f"{deep}\n"


@pytest.mark.parametrize("number", range(3, 10))
def test_a_working_directory_behind_a_descriptor_is_refused(kubelet: Kubelet, pod: Pod, number: int) -> None:
    """CVE-2024-21626: one that leads to the host's tree, or anything that init left open."""
    container = kubelet.create(pod, "pwd", working_dir=f"/proc/self/fd/{number}")
    with refused("UNKNOWN", "working directory"):
        kubelet.StartContainer(container_id=container)


def test_a_container_in_a_stopped_sandbox_is_refused(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.stop_pod(pod)
    with refused("FAILED_PRECONDITION", pod.id, "not ready"):
        kubelet.create(pod, "true")


@pytest.mark.parametrize("method", ["StartContainer", "ExecSync", "ReopenContainerLog"])
def test_a_container_that_has_ended_does_nothing_more(kubelet: Kubelet, pod: Pod, method: str) -> None:
    container = kubelet.run(pod, "true")
    kubelet.wait(container)
    with refused("FAILED_PRECONDITION", container, "exited"):
        getattr(kubelet, method)(container_id=container, **({"cmd": ["true"]} if method == "ExecSync" else {}))


def test_a_running_container_is_not_started_again(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with refused("FAILED_PRECONDITION", container, "running"):
        kubelet.start(container)
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING


def test_negative_timeouts_are_refused(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with refused("INVALID_ARGUMENT", "timeout"):
        kubelet.stop(container, timeout_s=-1)
    with refused("INVALID_ARGUMENT", "timeout"):
        kubelet.exec(container, "true", timeout_s=-1)
    with refused("INVALID_ARGUMENT", "cmd"):
        kubelet.exec(container)


def test_what_this_version_lacks_is_unimplemented_by_name(kubelet: Kubelet) -> None:
    with refused("UNIMPLEMENTED", "CheckpointContainer"):
        kubelet.CheckpointContainer()
