"""All counters of both versions as the same values, read from directories laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_py.cgroups.counters import Counters, DeviceIo, HugePages, Numbers, count, huge_page_sizes
from cri_py.cgroups.plans import cpu_weight
from cri_py.cgroups.readings import Group, V1Group, V2Group
from cri_py.cgroups.v1 import V1, Hierarchy

V1_FILES = {
    "cpu/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 5000\nnr_bursts 0\nburst_time 0\n",
    "cpu/cpu.shares": "512\n",
    "cpu/cpu.cfs_period_us": "100000\n",
    "cpu/cpu.cfs_quota_us": "20000\n",
    "cpuacct/cpuacct.usage": "300\n",
    "cpuacct/cpuacct.usage_user": "100\n",
    "cpuacct/cpuacct.usage_sys": "200\n",
    "memory/memory.stat": "cache 1\npgfault 7\npgmajfault 2\ntotal_cache 40\ntotal_rss 50\ntotal_mapped_file 60\n"
    "total_swap 70\ntotal_pgfault 17\ntotal_pgmajfault 12\ntotal_inactive_file 30\n",
    "memory/memory.usage_in_bytes": "1000\n",
    "memory/memory.max_usage_in_bytes": "2000\n",
    "memory/memory.kmem.usage_in_bytes": "80\n",
    "memory/memory.failcnt": "3\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "memory/memory.limit_in_bytes": "4096\n",
    "memory/memory.soft_limit_in_bytes": "9223372036854771712\n",
    "memory/memory.memsw.limit_in_bytes": "8192\n",
    "memory/cgroup.procs": "11\n12\n",
    "pids/pids.current": "5\n",
    "pids/pids.max": "max\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 100\n8:0 Write 200\n8:0 Discard 0\n"
    "8:0 Total 300\nTotal 300\n",
    "blkio/blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    "hugetlb/hugetlb.2MB.usage_in_bytes": "4194304\n",
    "hugetlb/hugetlb.2MB.max_usage_in_bytes": "6291456\n",
}
PSI = "some avg10=0.00 avg60=0.00 avg300=0.00 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
V2_FILES = {
    "cpu.stat": "usage_usec 3\nuser_usec 1\nsystem_usec 2\nnr_periods 9\nnr_throttled 4\nthrottled_usec 5\n",
    "cpu.weight": f"{cpu_weight(512)}\n",
    "cpu.max": "20000 100000\n",
    "memory.stat": "anon 50\nfile 40\nkernel 80\nfile_mapped 60\ninactive_file 30\npgfault 17\npgmajfault 12\n",
    "memory.current": "1000\n",
    "memory.peak": "2000\n",
    "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\noom_group_kill 0\n",
    "memory.max": "4096\n",
    "memory.low": "0\n",
    "memory.swap.max": "8192\n",
    "memory.swap.current": "70\n",
    "cgroup.procs": "11\n12\n",
    "pids.current": "5\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n",
    "cpu.pressure": PSI.format(1, 2),
    "memory.pressure": PSI.format(3, 4),
    "io.pressure": PSI.format(5, 6),
    "hugetlb.2MB.current": "4194304\n",
}
NUMBERS = Numbers(
    cpu_ns=300,
    cpu_user_ns=100,
    cpu_system_ns=200,
    periods=9,
    throttled_periods=4,
    throttled_ns=5000,
    shares=512,
    period_us=100_000,
    quota_us=20_000,
    memory=1000,
    working_set=970,
    max_memory=2000,
    rss=50,
    cache=40,
    mapped_file=60,
    kernel=80,
    swap=70,
    failcnt=3,
    own_faults=7,
    own_major_faults=2,
    faults=17,
    major_faults=12,
    oom_kills=2,
    memory_limit=4096,
    reservation=0,
    swap_limit=8192,
    threads=5,
    threads_max=0,
)
# Version 2 counts up its tree, and knows microseconds and pressure; several shares become one weight.
V2_NUMBERS = NUMBERS._replace(
    shares=511,
    **{"cpu_ns": 3000, "cpu_user_ns": 1000, "cpu_system_ns": 2000, "own_faults": 17, "own_major_faults": 12},
    **{"cpu_waiting_ns": 1000, "cpu_stalled_ns": 2000, "memory_waiting_ns": 3000, "memory_stalled_ns": 4000},
    **{"io_waiting_ns": 5000, "io_stalled_ns": 6000},
)


def version1(root: Path, **changes: str) -> V1Group:
    controllers = ("cpu", "cpuacct", "memory", "pids", "blkio", "hugetlb")
    for place, text in V1_FILES.items():
        controller, _, file = place.partition("/")
        (root / controller / "pod").mkdir(parents=True, exist_ok=True)
        (root / controller / "pod" / file).write_text(changes.get(file.replace(".", "_"), text))
    return V1Group(V1([Hierarchy(str(root / name), (name,)) for name in controllers]), "/pod")


def version2(root: Path, **changes: str) -> V2Group:
    (root / "pod").mkdir()
    for file, text in V2_FILES.items():
        (root / "pod" / file).write_text(changes.get(file.replace(".", "_"), text))
    return V2Group(str(root), "/pod")


def counted(group: Group) -> Counters:
    found = count(group, ["64KB", "2MB"])
    group.close()
    return found


def test_version_1_is_told_in_full(tmp_path: Path) -> None:
    io = (("Read", 100), ("Write", 200), ("Discard", 0), ("Total", 300))
    assert counted(version1(tmp_path)) == Counters(
        NUMBERS, (DeviceIo("8:0", 100, 200, 1, 2, io),), (HugePages("2MB", 4 << 20, 6 << 20),)
    )


def test_version_2_tells_the_same_and_pressure(tmp_path: Path) -> None:
    io = (("Read", 100), ("Write", 200), ("Discard", 0))
    assert counted(version2(tmp_path)) == Counters(
        V2_NUMBERS, (DeviceIo("8:0", 100, 200, 1, 2, io),), (HugePages("2MB", 4 << 20, None),)
    )


@pytest.mark.parametrize("make", [version1, version2])
def test_without_a_quota_nothing_is_told_of_throttling(make: type[V1Group], tmp_path: Path) -> None:
    group = make(tmp_path, cpu_cfs_quota_us="-1\n", cpu_max="max 100000\n")  # type: ignore[call-arg]
    numbers = counted(group).numbers
    assert (numbers.quota_us, numbers.periods, numbers.throttled_periods, numbers.throttled_ns) == (None,) * 4
    assert numbers.period_us == 100_000


def test_a_group_that_did_no_io_has_no_devices_on_either_version(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first = version1(tmp_path / "one", blkio_throttle_io_service_bytes_recursive="Total 0\n")
    assert counted(first).io == ()
    assert counted(version2(tmp_path / "two", io_stat="")).io == ()


def test_what_the_kernel_does_not_count_is_missing_and_not_zero(tmp_path: Path) -> None:
    (tmp_path / "pod").mkdir()
    assert counted(V2Group(str(tmp_path), "/pod")) == Counters(Numbers())


@pytest.mark.parametrize("shares", [2, 10, 102, 512, 1024, 2048, 262144])
def test_shares_come_back_from_the_weight_that_they_became(shares: int, tmp_path: Path) -> None:
    told = counted(version2(tmp_path, cpu_weight=f"{cpu_weight(shares)}\n")).numbers.shares
    assert told is not None
    assert cpu_weight(told) == cpu_weight(shares)
    assert told <= shares


def test_the_processes_of_execs_are_the_containers_too(tmp_path: Path) -> None:
    group = version2(tmp_path)
    assert group.members() == (11, 12)
    (tmp_path / "pod/exec-1").mkdir()
    (tmp_path / "pod/exec-1/cgroup.procs").write_text("13\n")
    assert group.members() == (11, 12, 13)
    group.close()
    one = version1(tmp_path / "one")
    assert one.members() == (11, 12)
    one.close()


def test_a_container_that_fills_its_group_with_children_costs_no_walk(tmp_path: Path) -> None:
    group = version2(tmp_path)
    for number in range(65):
        (tmp_path / f"pod/child-{number}").mkdir()  # without cgroup.procs: a look into one would fail
    assert group.members() is None
    group.close()


def test_a_list_of_processes_too_long_to_read_is_told_as_unknown(tmp_path: Path) -> None:
    group = version2(tmp_path, cgroup_procs="1234567\n" * 3000)
    assert group.members() is None
    group.close()


def test_sizes_of_huge_pages_are_written_as_the_controller_does(tmp_path: Path) -> None:
    for kilobytes in (64, 2048, 1 << 20):
        (tmp_path / f"hugepages-{kilobytes}kB").mkdir()
    assert huge_page_sizes(str(tmp_path)) == ("64KB", "2MB", "1GB")
    assert huge_page_sizes(str(tmp_path / "none")) == ()
