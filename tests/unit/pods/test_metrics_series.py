"""The names by which dashboards and rules know containers."""

from __future__ import annotations

from cri_py.cgroups.counters import Numbers
from cri_py.pods import metrics_series as series
from cri_py.pods.metrics_series import BASE_LABELS, Kind
from cri_py.pods.stats_network import Interface

# What the kubelet serves from cAdvisor, and critest asks of a runtime (pkg/validate/pod.go of cri-tools 1.36).
EXPECTED = """
blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total
fs_limit_bytes fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total
hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total
memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes
memory_working_set_bytes network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total network_transmit_bytes_total
network_transmit_errors_total network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total
pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes
sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes spec_memory_reservation_limit_bytes
spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft
"""


def test_the_names_are_those_that_monitoring_knows() -> None:
    assert [each.name for each in series.ALL] == sorted(f"container_{name}" for name in EXPECTED.split())
    assert len(series.ALL) == 56


def test_what_only_grows_is_a_counter() -> None:
    growing = {each.name for each in series.ALL if each.kind is Kind.COUNTER}
    totals = {each.name for each in series.ALL if each.name.endswith("_total")}
    assert growing == totals - {"container_fs_inodes_total"} | {"container_memory_failcnt"}


def test_no_series_has_a_label_twice() -> None:
    for each in series.ALL:
        labels = (*BASE_LABELS, *each.labels)
        assert len(set(labels)) == len(labels)


def test_each_series_of_a_counter_has_its_field() -> None:
    own = {"cpu_ns", "own_faults", "own_major_faults", "faults", "major_faults"}
    assert set(series.OF_COUNTERS) == set(Numbers._fields) - own
    assert set(series.NETWORK) == set(Interface._fields) - {"name"}
