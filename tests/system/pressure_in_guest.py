"""Pressure for real: only in a guest, whose kernel has it (cgroup v2), so pytest finds this file by its name only.

What the daemon tells is left for the host, where Prometheus answers the dashboard's queries from it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from cri_py.cgroups import detect
from cri_py.kernel import procfs
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod
from tests.system.daemon import Daemon

RECORDED = Path("/run/host/scrapes")
SCRAPES = 8
EVERY_S = 4.0
HELD = pb.LinuxContainerConfig(
    resources=pb.LinuxContainerResources(
        cpu_period=100_000, cpu_quota=5_000, memory_limit_in_bytes=64 << 20, unified={"memory.high": str(8 << 20)}
    )
)
# Held back by its quota, by memory.high as it fills a file's cache, and by its disk as it waits for each write.
WORK = (
    "cd /disk; while :; do dd if=/dev/zero of=file bs=64k count=256 conv=fsync; cat file >/dev/null; done 2>/dev/null"
)


def stall_us(group: str, resource: str) -> int:
    """Of some process, in all, as the kernel has it."""
    (some,) = [line for line in procfs.read(f"{group}/{resource}.pressure").decode().splitlines() if line[:4] == "some"]
    return int(some.rpartition("=")[2])


def test_pressure_is_told_as_the_kernel_counts_it(daemon: Daemon, kubelet: Kubelet, pod: Pod) -> None:
    # The layers lie on /tmp, which need not be a disk.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as on_disk:
        volume = pb.Mount(container_path="/disk", host_path=on_disk)
        container = kubelet.run(pod, "sh", "-c", WORK, name="held", linux=HELD, mounts=[volume])
        record(daemon)
        compare(kubelet, pod, container)
        kubelet.stop(container)


def record(daemon: Daemon) -> None:
    RECORDED.mkdir(exist_ok=True)
    for number in range(SCRAPES):
        text = daemon.metrics("/metrics/cadvisor")
        (RECORDED / f"{number}.{time.time():.3f}").write_text(text)
        time.sleep(EVERY_S)


def compare(kubelet: Kubelet, pod: Pod, container: str) -> None:
    (group,) = detect().directories(f"{pod.config.linux.cgroup_parent}/{container}")
    for resource in ("cpu", "memory", "io"):
        before = stall_us(group, resource)
        stats = kubelet.ContainerStats(container_id=container).stats
        after = stall_us(group, resource)
        assert 0 < before * 1000 <= getattr(stats, resource).psi.Some.Total <= after * 1000, resource
    assert stats.cpu.psi.Some.Avg10 == pytest.approx(100, abs=60)
