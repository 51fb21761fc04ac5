"""Limits hold: each is met by a workload that hits it, as it was created and after an in-place update."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri_py.cgroups import detect
from cri_py.cgroups.counters import Numbers, count
from cri_py.cgroups.readings import open_group
from cri_py.cgroups.systemd import OWN, slice_path
from cri_py.cgroups.v1 import V1
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.devices import huge_page_pool, made_loop_device
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon

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
    parent = pod.config.linux.cgroup_parent
    by_systemd = parent.endswith(".slice")
    group = open_group(
        detect(), f"{slice_path(parent)}/cri-py-{container}.scope/{OWN}" if by_systemd else f"{parent}/{container}"
    )
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


def cores_of_late(pod: Pod, container: str) -> float:
    """Over half a second."""
    before, begun = numbers(pod, container).cpu_ns, time.monotonic()
    time.sleep(0.5)
    after = numbers(pod, container).cpu_ns
    assert before is not None
    assert after is not None
    return (after - before) / 1e9 / (time.monotonic() - begun)


def test_a_cpu_quota_is_met_by_throttling(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", BURN, linux=limits(cpu_period=PERIOD, cpu_quota=10_000))
    # Where a guest waits for a processor of its own, it counts that as the container's time: no look shows too little.
    wait_for(lambda: share_used(pod, container), lambda cores: cores < 0.13)
    update(kubelet, container, cpu_quota=2_000)
    wait_for(lambda: share_used(pod, container), lambda cores: cores < 0.04)
    update(kubelet, container, cpu_quota=200_000)
    wait_for(lambda: cores_of_late(pod, container), lambda cores: cores > 0.13)


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


# So long that even a slow machine has ten of them at once; nobody waits for the end of their output.
FORKS = "n=0; while [ $n -lt 30 ]; do sleep 2 </dev/null >/dev/null 2>&1 & n=$((n+1)); done; wait; echo all"


def test_a_limit_of_processes_is_met_by_fork(kubelet: Kubelet, pod: Pod) -> None:
    """CRI has no word for it: version 2 takes it as a unified key, else it is the pod's, which the kubelet sets."""
    unified = detect().leaves_only
    container = kubelet.run(pod, "sleep", "1000", linux=limits(unified={"pids.max": "10"}) if unified else None)

    def limit(number: int) -> None:
        if unified:
            update(kubelet, container, unified={"pids.max": str(number)})
            return
        (group,) = (each for each in detect().directories(pod.config.linux.cgroup_parent) if "/pids/" in each)
        Path(group, "pids.max").write_text(str(number))
        kubelet.UpdatePodSandboxResources(pod_sandbox_id=pod.id)

    def outcome() -> tuple[int, bool, bool]:
        told = kubelet.exec(container, "sh", "-c", FORKS, timeout_s=60)
        return told.exit_code, b"can't fork" in told.stderr, b"all" in told.stdout

    limit(10)
    assert outcome() == (2, True, False)
    limit(100)
    assert outcome() == (0, False, True)
    limit(10)
    assert outcome() == (2, True, False)


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    with made_loop_device(tmp_path) as path:
        yield path


def seconds_to_write(kubelet: Kubelet, container: str) -> float:
    """For 2 MB past every cache; the kernel lets the first slice go at once."""
    begun = time.monotonic()
    kubelet.shell(container, "dd if=/dev/zero of=/dev/disk bs=256k count=8 oflag=direct")
    return time.monotonic() - begun


def test_a_rate_of_io_is_met_by_waiting(kubelet: Kubelet, pod: Pod, loop_device: str) -> None:
    number = Path(f"/sys/class/block/{os.path.basename(loop_device)}/dev").read_text().strip()
    disk = pb.Device(container_path="/dev/disk", host_path=loop_device, permissions="rw")
    slow = limits(unified={"io.max": f"{number} wbps={MIB}"})
    if not detect().leaves_only:  # there CRI has no word for it, and classes are the way
        with refused("INVALID_ARGUMENT", "unified.io.max", "only cgroup v2"):
            kubelet.create(pod, "true", devices=[disk], linux=slow)
        return
    container = kubelet.run(pod, "sleep", "1000", devices=[disk], linux=slow)
    usual = seconds_to_write(kubelet, kubelet.run(pod, "sleep", "1000", name="other", devices=[disk]))
    assert seconds_to_write(kubelet, container) > 1.4
    update(kubelet, container, unified={"io.max": f"{number} wbps={MIB // 2}"})
    assert seconds_to_write(kubelet, container) > 3.2
    update(kubelet, container, unified={"io.max": f"{number} wbps=max"})
    wait_for(lambda: seconds_to_write(kubelet, container), lambda seconds: seconds < 1.4 + usual)


def test_a_class_of_block_io_is_met_by_waiting(make_daemon: Callable[[str], Daemon], loop_device: str) -> None:
    settings = f'[runtime.block_io_classes.slow]\ndevices = ["{loop_device}"]\nwrite_bytes_s = {MIB}\n'
    kubelet = make_daemon(settings).kubelet
    disk = pb.Device(container_path="/dev/disk", host_path=loop_device, permissions="rw")
    of_slow = "blockio.resources.beta.kubernetes.io/container.slow"
    pod = kubelet.run_pod(annotations={of_slow: "slow"})
    slow = kubelet.run(pod, "sleep", "1000", name="slow", devices=[disk])
    other = kubelet.run(pod, "sleep", "1000", name="other", devices=[disk])
    assert seconds_to_write(kubelet, slow) > 1.4
    wait_for(lambda: seconds_to_write(kubelet, other), lambda seconds: seconds < 1.4)
    update(kubelet, slow, cpu_shares=512)
    assert seconds_to_write(kubelet, slow) > 1.4
    unknown = kubelet.run_pod(annotations={of_slow: "quick"})
    with refused("INVALID_ARGUMENT", "'quick'", "its config has slow"):
        kubelet.create(unknown, "true", name="slow")


@pytest.fixture
def huge_pages() -> Iterator[int]:
    with huge_page_pool(8) as size:
        yield size


HUGE = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]) << 21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
for at in range(int(sys.argv[1])):
    memory[at << 21] = 1
print("kept")
"""


def test_huge_pages_are_met_by_mmap(kubelet: Kubelet, pod: Pod, huge_pages: int) -> None:
    def pages(number: int) -> dict[str, Any]:
        return {"hugepage_limits": [pb.HugepageLimit(page_size="2MB", limit=number * huge_pages)]}

    if "hugetlb" not in controllers():
        with refused("INVALID_ARGUMENT", "hugetlb"):
            kubelet.create(pod, "true", linux=limits(**pages(2)))
        return
    places = [pb.Mount(container_path=path, host_path=path, readonly=True) for path in ("/usr", "/lib", "/lib64")]
    container = kubelet.run(pod, "sleep", "1000", mounts=places, linux=limits(**pages(2)))

    def take(number: int) -> str:
        told = kubelet.exec(container, "/usr/bin/python3", "-c", HUGE, str(number), timeout_s=60)
        return (told.stdout + told.stderr).decode().splitlines()[-1]

    refusal = "OSError: [Errno 12] Cannot allocate memory"
    assert (take(2), take(3)) == ("kept", refusal)
    update(kubelet, container, **pages(3))
    assert (take(3), take(4)) == ("kept", refusal)
    update(kubelet, container, **pages(1))
    assert (take(1), take(2)) == ("kept", refusal)
