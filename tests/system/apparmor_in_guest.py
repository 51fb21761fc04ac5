"""AppArmor for real: only in the guest, whose kernel has it, so pytest finds this file only by its name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused

Profile = pb.SecurityProfile
DENY = "cri-py-test-deny-write"
DEAF = "cri-py-test-no-signals"
DEFAULT = "cri-py-default (enforce)"


@pytest.fixture(scope="module", autouse=True)
def strict() -> Iterator[None]:
    """A profile that forbids to write below /tmp."""
    text = f"profile {DENY} flags=(attach_disconnected) {{ file, capability, network, signal, deny /tmp/** w, }}\n"
    text += f"profile {DEAF} flags=(attach_disconnected) {{ file, capability, network, }}\n"
    subprocess.run(["apparmor_parser", "-r"], input=text, text=True, check=True)
    yield
    subprocess.run(["apparmor_parser", "-R"], input=text, text=True, check=True)


def secure(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


def named(name: str) -> Profile:
    return Profile(profile_type=Profile.Localhost, localhost_ref=name)


def label(kubelet: Kubelet, container: str, pid: str = "1") -> str:
    return kubelet.shell(container, f"cat /proc/{pid}/attr/current").strip()


@pytest.mark.parametrize("asked", [{}, {"apparmor": Profile()}, {"apparmor_profile": "runtime/default"}])
def test_the_default_profile_confines_the_program_and_its_execs(
    kubelet: Kubelet, pod: Pod, asked: dict[str, Any]
) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=secure(**asked))
    assert label(kubelet, container) == label(kubelet, container, "self") == DEFAULT


@pytest.mark.parametrize("asked", [{"apparmor": Profile(profile_type=1)}, {"apparmor_profile": "unconfined"}])
def test_unconfined_is(kubelet: Kubelet, pod: Pod, asked: dict[str, Any]) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=secure(**asked))
    assert label(kubelet, container) == "unconfined"


def test_the_default_profile_lets_a_program_work_and_keeps_it_from_the_node(kubelet: Kubelet, pod: Pod) -> None:
    admin = pb.Capability(add_capabilities=["SYS_ADMIN"])
    asked = kubelet.container_config("sleep", "1000", linux=secure(capabilities=admin))
    for field in ("masked_paths", "readonly_paths"):
        asked.linux.security_context.ClearField(field)
    container = kubelet.run(pod, config=asked)
    works = "echo x > /tmp/x; mkdir /d; echo 0 > /proc/self/oom_score_adj; kill -0 1; ls /proc/1 >/dev/null"
    kubelet.shell(container, f"set -e; {works}; sleep 100 & kill $!")
    for attempt in (
        *("mount -t tmpfs x /d", "mount -o bind /tmp /d", "mount -o remount,rw /sys", "umount /proc/x"),
        *("echo x > /proc/sys/kernel/core_pattern", "echo h > /proc/sysrq-trigger", "head -c 1 /proc/kcore"),
    ):
        assert kubelet.exec(container, "sh", "-c", attempt).exit_code != 0, attempt
    kubelet.stop(container, 5)


@pytest.mark.parametrize(
    "asked",
    [
        *(
            {"apparmor": named(DENY)},
            {"apparmor": named(f"localhost/{DENY}")},
            {"apparmor_profile": f"localhost/{DENY}"},
        ),
        {"apparmor": named(DENY), "apparmor_profile": "localhost/not-there"},  # the new field counts
        {"apparmor": named(DENY), "no_new_privs": True, "run_as_user": pb.Int64Value(value=1000)},
    ],
)
def test_a_profile_of_the_nodes_is_enforced(kubelet: Kubelet, pod: Pod, asked: dict[str, Any]) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=secure(**asked))
    assert label(kubelet, container) == label(kubelet, container, "self") == f"{DENY} (enforce)"
    assert "Permission denied" in kubelet.shell(container, "touch /tmp/x 2>&1; true")


def test_a_profile_that_is_not_loaded_is_refused(kubelet: Kubelet, pod: Pod) -> None:
    for asked in ({"apparmor": named("not-there")}, {"apparmor_profile": "localhost/not-there"}):
        with refused("FAILED_PRECONDITION", "not-there", "not loaded"):
            kubelet.create(pod, "true", linux=secure(**asked))
    assert not kubelet.ListContainers().containers


def test_a_volume_at_proc_is_no_way_around(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    """CVE-2019-16884: the profile was written to a file that the image or a volume had put there."""
    (tmp_path / "self" / "attr" / "apparmor").mkdir(parents=True)
    for name in ("exec", "apparmor/exec"):
        (tmp_path / "self" / "attr" / name).touch()
    asked = kubelet.container_config(
        *("sh", "-c", "touch /tmp/x || echo denied"),
        linux=secure(apparmor=named(DENY)),
        mounts=[pb.Mount(container_path="/proc", host_path=str(tmp_path))],
    )
    for field in ("masked_paths", "readonly_paths"):
        asked.linux.security_context.ClearField(field)
    container = kubelet.run(pod, config=asked)
    kubelet.wait(container)
    assert [line.text for line in kubelet.log(container) if line.stream == "stdout"] == [b"denied"]


def test_a_privileged_container_is_confined_only_by_a_profile_of_its_own(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    pod = kubelet.run_pod(config)
    for name, asked, wanted in (("a", {}, "unconfined"), ("b", {"apparmor": named(DENY)}, f"{DENY} (enforce)")):
        container = kubelet.run(pod, "sleep", "1000", name=name, linux=secure(privileged=True, **asked))
        assert label(kubelet, container) == wanted


def test_a_profile_that_lets_no_signal_in_keeps_nobody_from_stopping(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=secure(apparmor=named(DEAF)))
    kubelet.stop(container, 1)
    assert kubelet.status(container).exit_code == 137
