"""Limits hold: each is met by a workload that hits it, as it was created and after an in-place update."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cri_py.cgroups import detect
from cri_py.cgroups.counters import Numbers, count
from cri_py.cgroups.readings import open_group
from cri_py.cgroups.v1 import V1
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for

MIB = 1 << 20
PERIOD = 100_000
PERIODS = 12  # so many, that one more or less at the ends counts little
BURN = "while :; do :; done"


def limits(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields))


def update(kubelet: Kubelet, container: str, **fields: Any) -> None:
    kubelet.UpdateContainerResources(container_id=container, linux=pb.LinuxContainerResources(**fields))


def controllers() -> set[str]:
    node = detect()
    if isinstance(node, V1):
        return {name for hierarchy in node.hierarchies for name in hierarchy.controllers}
    return set(Path(node.mounts[0], "cgroup.controllers").read_text().split())


def numbers(pod: Pod, container: str) -> Numbers:
    group = open_group(detect(), f"{pod.config.linux.cgroup_parent}/{container}")
    try:
        return count(group).numbers
    finally:
        group.close()


def share_used(pod: Pod, container: str) -> float:
    """Cores that it used while the quota held it back for some periods."""
    begun, before = time.monotonic(), numbers(pod, container)
    after = wait_for(
        lambda: numbers(pod, container),
        lambda now: (now.throttled_periods or 0) > (before.throttled_periods or 0) + PERIODS,
    )
    assert before.cpu_ns is not None
    assert after.cpu_ns is not None
    return float(after.cpu_ns - before.cpu_ns) / 1e9 / (time.monotonic() - begun)


def test_a_cpu_quota_is_met_by_throttling(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", BURN, linux=limits(cpu_period=PERIOD, cpu_quota=10_000))
    assert share_used(pod, container) < 0.13
    update(kubelet, container, cpu_quota=2_000)
    assert share_used(pod, container) < 0.04


# Of a shell that doubles a string up to 16 MB: anonymous memory, which without swap can't be reclaimed.
GROW = "s=x; for i in $(seq 24); do s=$s$s; done; echo kept; exec sleep 1000"
GROW_WHEN_TOLD = f"while [ ! -e /go ]; do sleep 0.05; done; {GROW}"
ROOMY = {"memory_limit_in_bytes": 256 * MIB, "memory_swap_limit_in_bytes": 256 * MIB}
TIGHT = {"memory_limit_in_bytes": 12 * MIB, "memory_swap_limit_in_bytes": 12 * MIB}


def test_memory_is_met_by_the_oom_killer(kubelet: Kubelet, pod: Pod) -> None:
    status = kubelet.wait(kubelet.run(pod, "sh", "-c", GROW, linux=limits(**TIGHT)))
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


def test_a_lowered_memory_limit_is_met_by_the_oom_killer(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", GROW_WHEN_TOLD, linux=limits(**ROOMY))
    update(kubelet, container, **TIGHT)
    kubelet.shell(container, "touch /go")
    assert kubelet.wait(container).reason == "OOMKilled"


def test_a_raised_memory_limit_lets_a_container_live(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", GROW_WHEN_TOLD, linux=limits(**TIGHT))
    update(kubelet, container, **ROOMY)
    kubelet.shell(container, "touch /go")
    wait_for(lambda: [line.text for line in kubelet.log(container)], lambda lines: lines == [b"kept"])


def test_a_cpuset_is_met_by_affinity_or_refused_by_name(kubelet: Kubelet, pod: Pod) -> None:
    first, last = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    if "cpuset" not in controllers():  # user-mode Linux
        with refused("INVALID_ARGUMENT", "cpuset.cpus"):
            kubelet.create(pod, "true", linux=limits(cpuset_cpus=str(first)))
        return
    container = kubelet.run(pod, "sleep", "1000", linux=limits(cpuset_cpus=str(first)))
    allowed = "sed -n 's/^Cpus_allowed_list:\\t//p' /proc/self/status"
    assert kubelet.shell(container, allowed).strip() == str(first)
    update(kubelet, container, cpuset_cpus=str(last))
    assert kubelet.shell(container, allowed).strip() == str(last)
