"""In-place resizes: what was asked for holds in the kernel, is reported, survives a restart, or nothing has changed."""

from __future__ import annotations

from typing import Any

import pytest

from cri_py.cgroups import detect
from cri_py.kernel import procfs
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon

MIB = 1 << 20


def limits(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields))


def update(kubelet: Kubelet, container: str, **fields: Any) -> None:
    kubelet.UpdateContainerResources(container_id=container, linux=pb.LinuxContainerResources(**fields))


def reported(kubelet: Kubelet, container: str) -> pb.LinuxContainerResources:
    found = kubelet.ContainerStatus(container_id=container).status.resources.linux
    assert isinstance(found, pb.LinuxContainerResources)
    return found


def kernel(pod: Pod, container: str) -> dict[str, str]:
    """The limits that were planned at creation, as the kernel has them now."""
    path = f"{pod.config.linux.cgroup_parent}/{container}"
    asked = {"memory": {"limit": 1}, "cpu": {"shares": 5, "quota": 1, "period": 1}}
    files = [write.file for write in detect().plan(path, asked)]
    return {file.rpartition("/")[2]: procfs.read(file).decode().strip() for file in files}


SMALL = {"cpu_shares": 512, "cpu_period": 100000, "cpu_quota": 20000, "memory_limit_in_bytes": 64 * MIB}
LARGE = {"cpu_shares": 2048, "cpu_period": 50000, "cpu_quota": 50000, "memory_limit_in_bytes": 128 * MIB}


@pytest.mark.parametrize(("before", "after"), [(SMALL, LARGE), (LARGE, SMALL)], ids=["raised", "lowered"])
def test_a_running_containers_limits_change_as_asked(
    kubelet: Kubelet, pod: Pod, before: dict[str, int], after: dict[str, int]
) -> None:
    changed = kubelet.run(pod, "sleep", "1000", linux=limits(**before))
    wanted = kubelet.run(pod, "sleep", "1000", name="wanted", linux=limits(**after))
    update(kubelet, changed, **after)
    assert kernel(pod, changed) == kernel(pod, wanted)
    assert reported(kubelet, changed) == pb.LinuxContainerResources(**after)


def test_a_created_container_starts_with_its_new_limits(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.create(pod, "sleep", "1000", linux=limits(**SMALL))
    update(kubelet, container, **LARGE)
    kubelet.StartContainer(container_id=container)
    wanted = kubelet.run(pod, "sleep", "1000", name="wanted", linux=limits(**LARGE))
    assert kernel(pod, container) == kernel(pod, wanted)


def test_of_an_ended_container_the_record_changes(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "true", linux=limits(**SMALL))
    kubelet.wait(container)
    update(kubelet, container, **LARGE)
    assert reported(kubelet, container) == pb.LinuxContainerResources(**LARGE)


def test_a_refused_update_changes_nothing(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL))
    before = kernel(pod, container)
    with refused("INVALID_ARGUMENT", "cgroup"):
        update(kubelet, container, **LARGE, cpuset_cpus="4711")
    with refused("INVALID_ARGUMENT", "cpu_quota"):
        update(kubelet, container, cpu_quota=5)
    with refused("NOT_FOUND", "missing"):
        update(kubelet, "missing", **LARGE)
    assert kernel(pod, container) == before
    assert reported(kubelet, container) == pb.LinuxContainerResources(**SMALL)


def test_memory_below_what_is_used_is_refused(kubelet: Kubelet, pod: Pod) -> None:
    script = "dd if=/dev/zero of=/dev/shm/kept bs=1M count=20 && echo ready && exec sleep 1000"
    container = kubelet.run(pod, "sh", "-c", script, linux=limits(**LARGE))
    wait_for(lambda: [line.text for line in kubelet.log(container)], lambda texts: b"ready" in texts)
    with refused("FAILED_PRECONDITION", "memory_limit_in_bytes"):
        update(kubelet, container, memory_limit_in_bytes=8 * MIB)
    assert reported(kubelet, container) == pb.LinuxContainerResources(**LARGE)


def test_new_resources_survive_a_restart(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL))
    update(kubelet, container, **LARGE)
    kubelet.UpdatePodSandboxResources(
        pod_sandbox_id=pod.id, resources=pb.LinuxContainerResources(**LARGE), overhead=pb.LinuxContainerResources()
    )
    fresh_daemon.restart()
    assert reported(kubelet, container) == pb.LinuxContainerResources(**LARGE)


def test_a_missing_sandbox_cannot_be_resized(kubelet: Kubelet) -> None:
    with refused("NOT_FOUND", "missing"):
        kubelet.UpdatePodSandboxResources(pod_sandbox_id="missing")
