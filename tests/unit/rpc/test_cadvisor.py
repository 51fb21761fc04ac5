"""The series of containers as text, read back by Prometheus' own parsers."""

from __future__ import annotations

import itertools

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from cri_py import model
from cri_py.pods import metrics_series as series
from cri_py.pods.metrics import Metrics, SandboxMetrics
from cri_py.pods.metrics_series import Point
from cri_py.rpc import cadvisor

LABELS = ("main", "/pods/podX/c1", 'registry.test/"image"\\:1', "c1", "default", "web\n2")
POINTS = [
    Point(series.CPU, ("total",), 12_345_000_000),
    Point(series.OF_COUNTERS["failcnt"], (), 3),
    Point(series.OF_COUNTERS["memory"], (), (1 << 53) + 1),
    Point(series.FS_INODES, ("/dev/sda1",), 77),
    Point(series.ULIMITS, ("max_open_files",), -1),
]
NAMES = {
    "container_cpu_usage_seconds_total",
    "container_memory_failcnt",
    "container_memory_usage_bytes",
    "container_fs_inodes_total",
    "container_ulimits_soft",
}


def pods(count: int = 1) -> list[SandboxMetrics]:
    own = Metrics(
        "p", ("POD", "/pods/podX", "", "p", "default", "web"), [Point(series.NETWORK["rx_bytes"], ("eth0",), 5)]
    )
    member = Metrics("c1", LABELS, POINTS)
    return [
        SandboxMetrics(model.Nanos(1), (own,), (member._replace(labels=(str(n), *LABELS[1:])),)) for n in range(count)
    ]


def test_every_sample_is_read_back_with_its_labels() -> None:
    content_type, body = cadvisor.exposition([SandboxMetrics(model.Nanos(1), (), (Metrics("c1", LABELS, POINTS),))], "")
    assert content_type.startswith("text/plain; version=0.0.4")
    samples = {sample.name: sample for family in parse_text(body.decode()) for sample in family.samples}
    assert {line.partition("{")[0] for line in body.decode().splitlines() if line[0] != "#"} == NAMES
    cpu = samples["container_cpu_usage_seconds_total"]
    assert cpu.value == 12.345
    assert cpu.labels == dict(zip(series.BASE_LABELS, LABELS, strict=True)) | {"cpu": "total"}
    assert samples["container_ulimits_soft"].value == -1
    assert samples["container_fs_inodes_total"].value == 77


def test_openmetrics_has_the_same_samples_under_its_own_rules() -> None:
    content_type, body = cadvisor.exposition(pods(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    names = {sample.name for family in families.values() for sample in family.samples}
    assert names == NAMES | {"container_network_receive_bytes_total"}
    assert families["container_cpu_usage_seconds"].type == "counter"
    assert families["container_memory_failcnt"].type == "unknown"  # a counter's sample would have to end in _total
    assert families["container_fs_inodes_total"].type == "gauge"


def test_the_lines_of_a_family_stand_together() -> None:
    _, body = cadvisor.exposition(pods(3), "")
    names = [line.partition("{")[0] for line in body.decode().splitlines() if not line.startswith("#")]
    assert len(names) == 3 * 6
    assert sum(before != after for before, after in itertools.pairwise(names)) == 5
    assert body.decode().count("# TYPE ") == 6


def test_without_pods_the_page_is_empty_and_still_valid() -> None:
    assert cadvisor.exposition([], "") == (cadvisor.TEXT, b"")
    assert cadvisor.exposition([], "application/openmetrics-text")[1] == b"# EOF\n"
