"""What pods and containers use, beside what the kernel says and what was done in them."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from cri_py.cgroups import detect
from cri_py.cgroups.readings import open_group
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, wait_for

BURN = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
MIB = 1 << 20


def stats_of(kubelet: Kubelet, container: str) -> pb.ContainerStats:
    found = kubelet.ContainerStats(container_id=container).stats
    assert isinstance(found, pb.ContainerStats)
    return found


def pod_stats(kubelet: Kubelet, pod: Pod) -> pb.PodSandboxStats:
    found = kubelet.PodSandboxStats(pod_sandbox_id=pod.id).stats
    assert isinstance(found, pb.PodSandboxStats)
    return found


def test_a_running_container_has_its_numbers_from_the_first_call_on(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", f"{BURN}; exec sleep 1000")
    stats = wait_for(lambda: stats_of(kubelet, container), lambda s: s.HasField("writable_layer"))
    assert stats.attributes.id == container
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert stats.cpu.usage_nano_cores.value > 0
    assert stats.memory.usage_bytes.value >= stats.memory.working_set_bytes.value > 0
    assert stats.memory.rss_bytes.value > 0
    assert stats.memory.page_faults.value > 0
    now = time.time_ns()
    for each in (stats.cpu, stats.memory, stats.writable_layer):
        assert now - 30e9 < each.timestamp <= now


def test_cpu_time_and_memory_are_the_kernels(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", f"{BURN}; dd if=/dev/zero of=/tmp-file bs=1M count=8; exec sleep 1000")
    wait_for(lambda: kubelet.exec(container, "pidof", "sleep").exit_code, lambda code: code == 0)
    kubelet.exec(container, "sync")
    group = open_group(detect(), f"{pod.config.linux.cgroup_parent}/{container}")
    # Between two looks the kernel may take back pages that it charged ahead for each CPU.
    before, stats, after = wait_for(
        lambda: (group.usage(), stats_of(kubelet, container), group.usage()),
        lambda seen: seen[0].memory == seen[2].memory,
    )
    group.close()
    assert before.cpu_ns is not None
    assert after.cpu_ns is not None
    assert before.cpu_ns <= stats.cpu.usage_core_nano_seconds.value <= after.cpu_ns
    assert before.memory is not None
    # Each processor may have 64 pages of a group charged ahead, and gives them back when it likes (mm/memcontrol.c).
    ahead = 64 * mmap.PAGESIZE * (os.cpu_count() or 1)
    assert stats.memory.usage_bytes.value == pytest.approx(before.memory.usage, rel=0.01, abs=ahead)
    assert stats.memory.working_set_bytes.value == pytest.approx(before.memory.working_set, rel=0.01, abs=ahead)


def test_available_memory_is_what_the_limit_leaves(kubelet: Kubelet, pod: Pod) -> None:
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB)
    limited = kubelet.run(pod, "sleep", "1000", linux=pb.LinuxContainerConfig(resources=resources))
    memory = stats_of(kubelet, limited).memory
    assert memory.available_bytes.value == 64 * MIB - memory.working_set_bytes.value
    assert not stats_of(kubelet, kubelet.run(pod, "sleep", "1000", name="free")).memory.HasField("available_bytes")


def test_what_a_container_wrote_is_in_its_layer(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=3; touch /a /b; sync; exit 0")
    kubelet.wait(container)
    layer = wait_for(
        lambda: stats_of(kubelet, container).writable_layer, lambda found: found.used_bytes.value >= 3 * MIB
    )
    assert 3 * MIB <= layer.used_bytes.value < 3 * MIB + 256 * 1024
    assert layer.inodes_used.value >= 4
    assert Path(layer.fs_id.mountpoint).is_dir()


def test_created_and_ended_containers_are_told_too(kubelet: Kubelet, pod: Pod) -> None:
    created = kubelet.create(pod, "true")
    ended = kubelet.run(pod, "sh", "-c", BURN, name="ended")
    kubelet.wait(ended)
    told = {each.attributes.id: each for each in kubelet.ListContainerStats().stats}
    assert told[created].cpu.timestamp > 0
    assert told[created].memory.timestamp > 0
    assert told[ended].cpu.usage_core_nano_seconds.value > 1_000_000
    assert told[ended].cpu.usage_nano_cores.value == 0


def test_filters_are_those_of_the_lists(kubelet: Kubelet, pod: Pod) -> None:
    mine = kubelet.run(pod, "sleep", "1000", labels={"app": "web"})
    other = kubelet.run(pod, "sleep", "1000", name="other")

    def ids(**fields: object) -> set[str]:
        wanted = pb.ContainerStatsFilter(**fields)  # type: ignore[arg-type]
        listed = {each.attributes.id for each in kubelet.ListContainerStats(filter=wanted).stats}
        parts = kubelet.StreamContainerStats(filter=wanted)
        assert {each.attributes.id for part in parts for each in part.container_stats} == listed
        return listed

    assert ids() >= {mine, other}
    assert ids(id=mine) == {mine}
    assert ids(pod_sandbox_id=pod.id) == {mine, other}
    assert ids(pod_sandbox_id=pod.id, label_selector={"app": "web"}) == {mine}
    assert ids(label_selector={"app": "none"}) == set()


def test_a_pods_numbers_cover_its_containers(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", f"{BURN}; exec sleep 1000")
    kubelet.exec(container, "ping", "-c", "1", "-W", "1", "10.255.255.1")
    stats = pod_stats(kubelet, pod)
    (member,) = stats.linux.containers
    assert member.attributes.id == container
    assert stats.linux.cpu.usage_core_nano_seconds.value >= member.cpu.usage_core_nano_seconds.value
    assert stats.linux.memory.usage_bytes.value >= member.memory.usage_bytes.value
    assert stats.linux.process.process_count.value >= 2
    assert stats.linux.network.default_interface.name == "eth0"
    assert stats.linux.network.default_interface.tx_bytes.value > 0
    assert [each.name for each in stats.linux.network.interfaces] == []
    assert pod.id in {each.attributes.id for each in kubelet.ListPodSandboxStats().stats}


def test_a_stopped_pod_is_not_listed_and_told_without_numbers(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.StopPodSandbox(pod_sandbox_id=pod.id)
    assert pod.id not in {each.attributes.id for each in kubelet.ListPodSandboxStats().stats}
    assert not pod_stats(kubelet, pod).linux.HasField("cpu")
