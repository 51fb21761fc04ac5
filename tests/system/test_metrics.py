"""CRI's metrics of real pods, beside what the kernel says and what was done in them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from cri_py.cgroups import detect
from cri_py.pods import metrics_series as series
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, wait_for

MIB = 1 << 20
LIMITS = pb.LinuxContainerResources(
    cpu_period=100_000, cpu_quota=20_000, cpu_shares=512, memory_limit_in_bytes=64 * MIB
)
BURN = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
# A kernel has no huge pages, or no controller of them; version 1 has no pressure.
MAY_LACK = {each.name for each in series.ALL if "hugetlb" in each.name or "pressure" in each.name}
MAY_LACK |= {"container_blkio_device_usage_total", "container_memory_kernel_usage"}

Told = dict[tuple[str, ...], int]


def metrics_of(kubelet: Kubelet, pod: Pod) -> pb.PodSandboxMetrics:
    (found,) = [each for each in kubelet.ListPodSandboxMetrics().pod_metrics if each.pod_sandbox_id == pod.id]
    assert isinstance(found, pb.PodSandboxMetrics)
    return found


def told(metrics: Iterable[pb.Metric]) -> Told:
    """Numbers by name and the series' own labels, which follow the six common ones."""
    return {(each.name.removeprefix("container_"), *each.label_values[6:]): each.value.value for each in metrics}


def of_container(kubelet: Kubelet, pod: Pod) -> Told:
    (container,) = metrics_of(kubelet, pod).container_metrics
    return told(container.metrics)


@pytest.fixture
def on_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


def test_a_limited_container_has_every_series_that_this_kernel_can_fill(
    kubelet: Kubelet, pod: Pod, on_disk: Path
) -> None:
    # Version 2 tells of a device only to who has used it, and /tmp, where layers are here, may be none.
    busy = f"{BURN}; dd if=/dev/zero of=/disk/file bs=64k count=1 conv=fsync; exec sleep 1000"
    volume = pb.Mount(container_path="/disk", host_path=str(on_disk))
    kubelet.run(pod, "sh", "-c", busy, mounts=[volume], linux=pb.LinuxContainerConfig(resources=LIMITS))

    def missing() -> set[str]:
        found = metrics_of(kubelet, pod)
        names = {each.name for each in (*found.metrics, *found.container_metrics[0].metrics)}
        return {each.name for each in series.ALL} - names

    wait_for(missing, lambda names: names <= MAY_LACK)


def test_limits_are_told_as_they_were_set(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.run(pod, "sleep", "1000", linux=pb.LinuxContainerConfig(resources=LIMITS))
    found = of_container(kubelet, pod)
    assert found["spec_cpu_quota",] == 20_000
    assert found["spec_cpu_period",] == 100_000
    assert 500 <= found["spec_cpu_shares",] <= 512
    assert found["spec_memory_limit_bytes",] == 64 * MIB
    assert found["threads_max",] >= 0


def test_cpu_time_and_throttling_are_counted(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.run(pod, "sh", "-c", "while :; do :; done", linux=pb.LinuxContainerConfig(resources=LIMITS))
    found = wait_for(
        lambda: of_container(kubelet, pod), lambda told: told["cpu_cfs_throttled_periods_total",] > 3, timeout_s=20
    )
    assert found["cpu_cfs_periods_total",] >= found["cpu_cfs_throttled_periods_total",]
    assert ("cpu_usage_seconds_total", "total") in found


def test_processes_descriptors_and_sockets_are_the_containers(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "sleep 1000 & nc -l -p 9 & exec sleep 1000")
    found = wait_for(lambda: of_container(kubelet, pod), lambda told: told["sockets",] >= 1)
    assert found["processes",] == 3
    assert found["threads",] == 3
    assert found["file_descriptors",] >= 9
    assert found["ulimits_soft", "max_open_files"] > 0
    assert len(detect().processes(f"{pod.config.linux.cgroup_parent}/{container}")) == 3


def test_what_goes_through_the_network_is_counted_by_interface(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    before = told(metrics_of(kubelet, pod).metrics)
    kubelet.exec(container, "ping", "-c", "1", "-W", "1", "10.255.255.1")
    after = told(metrics_of(kubelet, pod).metrics)
    assert after["network_transmit_bytes_total", "eth0"] > before["network_transmit_bytes_total", "eth0"]
    assert after["network_transmit_packets_total", "eth0"] > before["network_transmit_packets_total", "eth0"]


def test_labels_say_whose_a_number_is(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", name="web")
    found = metrics_of(kubelet, pod)
    group = pod.config.linux.cgroup_parent
    keys = {each.name: list(each.label_keys) for each in kubelet.ListMetricDescriptors().descriptors}
    (metric,) = [each for each in found.container_metrics[0].metrics if each.name == "container_memory_rss"]
    assert dict(zip(keys[metric.name], metric.label_values, strict=True)) == {
        "container": "web",
        "id": f"{group}/{container}",
        "image": kubelet.ContainerStatus(container_id=container).status.image.user_specified_image,
        "name": container,
        "namespace": pod.config.metadata.namespace,
        "pod": pod.config.metadata.name,
    }
    (metric,) = [each for each in found.metrics if each.name == "container_memory_rss"]
    assert metric.label_values[:4] == ["", group, "", ""]
    assert {each.label_values[0] for each in found.metrics if "network" in each.name} == {"POD"}


def test_what_has_ended_is_not_told_any_more(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "true")
    kubelet.wait(container)
    assert not metrics_of(kubelet, pod).container_metrics
    kubelet.StopPodSandbox(pod_sandbox_id=pod.id)
    assert pod.id not in {each.pod_sandbox_id for each in kubelet.ListPodSandboxMetrics().pod_metrics}


def test_the_stream_tells_what_the_list_tells(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.run(pod, "sleep", "1000")
    streamed = [each for part in kubelet.StreamPodSandboxMetrics() for each in part.pod_sandbox_metrics]
    listed = kubelet.ListPodSandboxMetrics().pod_metrics
    assert [each.pod_sandbox_id for each in streamed] == [each.pod_sandbox_id for each in listed]
    assert abs(time.time_ns() - streamed[0].metrics[0].timestamp) < 30e9
