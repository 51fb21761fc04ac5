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


def test_an_oom_score_holds_for_all_processes_but_those_that_have_chosen_their_own(kubelet: Kubelet, pod: Pod) -> None:
    script = "(echo 700 > /proc/self/oom_score_adj; exec sleep 1000) & sleep 1000 & echo ready; wait"
    container = kubelet.run(pod, "sh", "-c", script, linux=limits(oom_score_adj=300))
    wait_for(lambda: kubelet.log(container), bool)
    scores = "for pid in 1 $(pidof sleep); do cat /proc/$pid/oom_score_adj; done | sort"
    wait_for(lambda: kubelet.shell(container, scores).split(), lambda found: found == ["300", "300", "700"])
    update(kubelet, container, oom_score_adj=600)
    assert kubelet.shell(container, scores).split() == ["600", "600", "700"]
    assert kubelet.shell(container, "cat /proc/self/oom_score_adj").strip() == "600"
    assert reported(kubelet, container).oom_score_adj == 600


def test_of_an_ended_container_the_record_changes(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "true", linux=limits(**SMALL))
    kubelet.wait(container)
    update(kubelet, container, **LARGE)
    assert reported(kubelet, container) == pb.LinuxContainerResources(**LARGE)


def test_a_refused_update_changes_nothing(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL))
    before = kernel(pod, container)
    with refused("INVALID_ARGUMENT", "cpuset_cpus is '4711'", "this node has"):
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


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"cpu_quota": 999}, "cpu_quota is 999"),
    ({"cpu_period": 999}, "cpu_period is 999"),
    ({"cpu_shares": 1}, "cpu_shares is 1"),
    ({"cpu_shares": 262145}, "cpu_shares is 262145"),
    ({"cpu_quota": 2**62}, str(2**62)),
    ({"memory_limit_in_bytes": 64 * MIB, "memory_swap_limit_in_bytes": 32 * MIB}, "memory_swap_limit_in_bytes"),
    ({"cpuset_cpus": "0-4711"}, "cpuset_cpus is '0-4711'"),
    ({"cpuset_mems": "4711"}, "cpuset_mems is '4711'"),
    ({"hugepage_limits": [pb.HugepageLimit(page_size="3MB", limit=3 * MIB)]}, "hugetlb"),
    ({"cpu_period": 2**62}, "cpu_period is 4611686018427387904"),
    ({"cpuset_cpus": "1-0"}, "cpuset_cpus is '1-0'"),
    ({"cpuset_cpus": f"0-{10**30}"}, f"cpuset_cpus is '0-{10**30}'"),
    ({"oom_score_adj": 2**40}, "oom_score_adj is 1099511627776"),
    ({"memory_limit_in_bytes": -5}, "memory_limit_in_bytes is -5"),
    ({"unified": {"memory.high": "much"}}, "memory.high"),
    ({"unified": {"memory.\0high": "1"}}, "unified"),
    ({"unified": {"memory.none": "1"}}, "memory.none"),
    ({"unified": {"cgroup.procs": "0"}}, "cgroup.procs"),
]


@pytest.mark.parametrize(("fields", "named"), CONTRADICTIONS, ids=[named for _, named in CONTRADICTIONS])
def test_resources_that_contradict_are_refused_by_name_and_leave_nothing(
    kubelet: Kubelet, pod: Pod, fields: dict[str, Any], named: str
) -> None:
    with refused("INVALID_ARGUMENT", named):
        kubelet.create(pod, "true", linux=limits(**fields))
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL))
    before = kernel(pod, container)
    with refused("INVALID_ARGUMENT", named):
        update(kubelet, container, **fields)
    assert kernel(pod, container) == before
    assert reported(kubelet, container) == pb.LinuxContainerResources(**SMALL)


def test_to_forbid_huge_pages_is_fine_with_any_kernel(kubelet: Kubelet, pod: Pod) -> None:
    none = [pb.HugepageLimit(page_size="2MB", limit=0), pb.HugepageLimit(page_size="1GB", limit=0)]
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL, hugepage_limits=none))
    assert list(reported(kubelet, container).hugepage_limits) == none
    update(kubelet, container, **LARGE)


def test_unified_keys_are_files_of_the_group_and_version_1_says_that_it_has_none(kubelet: Kubelet, pod: Pod) -> None:
    asked = {"memory.high": str(32 * MIB), "memory.oom.group": "1"}
    if not detect().leaves_only:
        with refused("INVALID_ARGUMENT", "unified.memory.high", "only cgroup v2"):
            kubelet.create(pod, "true", linux=limits(unified=asked))
        return
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL, unified=asked))
    group = detect().directories(f"{pod.config.linux.cgroup_parent}/{container}")[0]
    assert {name: procfs.read(f"{group}/{name}").decode().strip() for name in asked} == asked
    update(kubelet, container, unified={"memory.high": str(16 * MIB)})
    assert procfs.read(f"{group}/memory.high").decode().strip() == str(16 * MIB)
    assert reported(kubelet, container).unified == {**asked, "memory.high": str(16 * MIB)}
