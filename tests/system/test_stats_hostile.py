"""Numbers still come where containers and time are against them: groups full of groups, groups that go meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cri_py.cgroups import detect
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, namespaces, wait_for

LISTS = ("ListContainerStats", "ListPodSandboxStats", "ListPodSandboxMetrics")
GROUPS = 400


def numbers_of(kubelet: Kubelet, method: str, container: str) -> list[Any]:
    """What a list tells of the container."""
    answer = getattr(kubelet, method)()
    if method == "ListContainerStats":
        return [each for each in answer.stats if each.attributes.id == container and each.cpu.timestamp]
    if method == "ListPodSandboxStats":
        members = [each for pod in answer.stats for each in pod.linux.containers]
        return [each for each in members if each.attributes.id == container and each.memory.timestamp]
    members = [each for pod in answer.pod_metrics for each in pod.container_metrics]
    return [each for each in members if each.container_id == container and len(each.metrics) > 20]


def test_a_container_that_fills_its_group_with_groups_costs_the_others_nothing(kubelet: Kubelet, pod: Pod) -> None:
    other = kubelet.run(pod, "sleep", "1000", name="other")
    security = pb.LinuxSandboxSecurityContext(privileged=True, namespace_options=namespaces())
    privileged = kubelet.run_pod(linux=pb.LinuxPodSandboxConfig(security_context=security))
    script = f"""
    cd /sys/fs/cgroup/memory || cd /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup) || exit 1
    mkdir full && cd full
    n=0; while [ $n -lt {GROUPS} ]; do mkdir $n; n=$((n+1)); done
    echo filled $n; exec sleep 1000"""
    context = pb.LinuxContainerSecurityContext(privileged=True, namespace_options=namespaces())
    full = kubelet.run(privileged, "sh", "-c", script, linux=pb.LinuxContainerConfig(security_context=context))
    wait_for(lambda: [line.text for line in kubelet.log(full)], lambda lines: b"filled %d" % GROUPS in lines, 60)
    group = f"{privileged.config.linux.cgroup_parent}/{full}"
    assert len(detect().children(f"{group}/full")) == GROUPS
    for method in LISTS:
        begun = time.monotonic()
        assert len(numbers_of(kubelet, method, other)) == len(numbers_of(kubelet, method, full)) == 1
        assert time.monotonic() - begun < 4
    kubelet.remove_pod(privileged)
    assert not detect().exists(group)


def test_while_pods_come_and_go_every_list_is_answered_with_those_that_stay(kubelet: Kubelet, pod: Pod) -> None:
    lasting = kubelet.run(pod, "sleep", "1000")
    failures: list[BaseException] = []
    asked = dict.fromkeys(LISTS, 0)
    ended = threading.Event()

    def ask(method: str) -> Callable[[], None]:
        def again_and_again() -> None:
            try:
                while not ended.is_set():
                    assert len(numbers_of(kubelet, method, lasting)) == 1, method
                    asked[method] += 1
            except BaseException as error:
                failures.append(error)

        return again_and_again

    threads = [threading.Thread(target=ask(method)) for method in LISTS]
    for thread in threads:
        thread.start()
    try:
        for _ in range(12):
            other = kubelet.run_pod()
            kubelet.run(other, "sh", "-c", "exit 0", name="brief")
            kubelet.run(other, "sleep", "1000")
            kubelet.remove_pod(other)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert min(asked.values()) > 5


def test_a_group_that_is_removed_behind_our_back_is_left_out(kubelet: Kubelet, pod: Pod) -> None:
    """As a careless clean-up on the node does, once its last process has gone."""
    kept = kubelet.run(pod, "sleep", "1000", name="kept")
    gone = kubelet.run(pod, "true", name="gone")
    kubelet.wait(gone)
    detect().remove(f"{pod.config.linux.cgroup_parent}/{gone}")
    (stats,) = [each for each in kubelet.ListContainerStats().stats if each.attributes.id == gone]
    assert not stats.HasField("cpu")
    assert not stats.HasField("memory")
    for method in LISTS:
        assert len(numbers_of(kubelet, method, kept)) == 1
