"""CRI's metrics: what is encoded by hand is what protobuf would have encoded."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cri_py import model
from cri_py.pods import metrics_series as series
from cri_py.pods.metrics import Metrics, SandboxMetrics
from cri_py.pods.metrics_series import BASE_LABELS, Point
from cri_py.rpc import pod_metrics
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.listing import BATCH

AT = model.Nanos(1_700_000_000_123_456_789)
LABELS = ("main", "/pods/podX/c1", "registry.test/image:1", "c1", "default", "Grüße")


def sandbox(*points: Point, name: str = "p1") -> SandboxMetrics:
    own = Metrics(name, ("", "/pods/podX", "", "", "default", "web"), [Point(series.STARTED, (), 7_900_000_000)])
    return SandboxMetrics(AT, (own,), (Metrics("c1", LABELS, list(points)),))


def decoded(*found: SandboxMetrics) -> list[pb.PodSandboxMetrics]:
    return list(pb.ListPodSandboxMetricsResponse.FromString(pod_metrics.whole(found)).pod_metrics)


def test_a_message_has_every_part_in_its_field() -> None:
    (pod,) = decoded(sandbox(Point(series.CPU, ("total",), 12_345_000_000)))
    assert pod == pb.PodSandboxMetrics(
        pod_sandbox_id="p1",
        metrics=[
            pb.Metric(
                name="container_start_time_seconds",
                timestamp=AT,
                metric_type=pb.GAUGE,
                label_values=["", "/pods/podX", "", "", "default", "web"],
                value={"value": 7},
            )
        ],
        container_metrics=[
            pb.ContainerMetrics(
                container_id="c1",
                metrics=[
                    pb.Metric(
                        name="container_cpu_usage_seconds_total",
                        timestamp=AT,
                        metric_type=pb.COUNTER,
                        label_values=[*LABELS, "total"],
                        value={"value": 12},
                    )
                ],
            )
        ],
    )


@settings(max_examples=60, deadline=None)
@given(number=st.integers(min_value=0, max_value=(1 << 64) - 1), image=st.text(max_size=300))
def test_any_number_and_text_comes_back(number: int, image: str) -> None:
    image = image.encode("utf-8", "replace").decode()
    labels = (*LABELS[:2], image, *LABELS[3:])
    found = SandboxMetrics(AT, (Metrics("p", labels, [Point(series.READS, ("/dev/sda",), number)]),), ())
    (metric,) = decoded(found)[0].metrics
    assert metric.value.value == number
    assert metric.HasField("value")
    assert list(metric.label_values) == [*labels, "/dev/sda"]


def test_no_limit_is_the_kernels_largest_number() -> None:
    (pod,) = decoded(sandbox(Point(series.ULIMITS, ("max_open_files",), -1)))
    assert pod.container_metrics[0].metrics[0].value.value == (1 << 64) - 1


async def test_every_series_is_described_with_its_labels(world: Any) -> None:
    told = (await world.runtime.ListMetricDescriptors(pb.ListMetricDescriptorsRequest())).descriptors
    assert {each.name: tuple(each.label_keys) for each in told} == {
        each.name: (*BASE_LABELS, *each.labels) for each in series.ALL
    }
    assert all(each.help for each in told)


async def test_list_and_stream_tell_the_same_in_parts_of_limited_size(world: Any) -> None:
    world.metrics.found = [sandbox(name=f"p{number}") for number in range(BATCH + 1)]
    listed = (await world.runtime.ListPodSandboxMetrics(pb.ListPodSandboxMetricsRequest())).pod_metrics
    parts = [part async for part in world.runtime.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest())]
    assert [len(part.pod_sandbox_metrics) for part in parts] == [BATCH, 1]
    assert [each for part in parts for each in part.pod_sandbox_metrics] == list(listed)


async def test_a_stream_without_pods_ends_without_a_message(world: Any) -> None:
    assert [part async for part in world.runtime.StreamPodSandboxMetrics(pb.StreamPodSandboxMetricsRequest())] == []
