"""OCI resources as the files and values of both versions."""

from __future__ import annotations

from typing import Any

import pytest

from cri_py.cgroups.io_plans import io_weight
from cri_py.cgroups.plans import cpu_weight, ignored, v1_writes, v2_writes
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from cri_py.cgroups.writes import Write
from cri_py.errors import InvalidArgument, KernelError

FULL: dict[str, Any] = {
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1", "mems": "0"},
    "memory": {"limit": 67108864, "swap": 100663296, "reservation": 33554432},
    "pids": {"limit": 100},
    "devices": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": True, "type": "c", "major": 136, "access": "rw"},
    ],
}


def test_v1_has_this_golden_plan() -> None:
    assert v1_writes(FULL) == (
        Write("cpu.shares", "512"),
        Write("cpu.cfs_period_us", "100000"),
        Write("cpu.cfs_quota_us", "50000"),
        Write("cpuset.cpus", "0-1"),
        Write("cpuset.mems", "0"),
        Write("memory.limit_in_bytes", "67108864"),
        Write("memory.memsw.limit_in_bytes", "100663296", optional=True),
        Write("memory.soft_limit_in_bytes", "33554432"),
        Write("pids.max", "100"),
        Write("devices.deny", "a"),
        Write("devices.allow", "c 1:3 rwm"),
        Write("devices.allow", "c 136:* rw"),
    )


def test_v2_has_this_golden_plan() -> None:
    assert v2_writes(FULL | {"unified": {"memory.high": "60000000"}}) == (
        Write("cpu.weight", "59"),
        Write("cpu.max", "50000 100000"),
        Write("cpuset.cpus", "0-1"),
        Write("cpuset.mems", "0"),
        Write("memory.max", "67108864"),
        Write("memory.swap.max", "33554432", optional=True),
        Write("memory.low", "33554432"),
        Write("pids.max", "100"),
        Write("memory.high", "60000000"),
    )


def test_unlimited_is_said_in_each_versions_words() -> None:
    unlimited = {"cpu": {"quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}
    assert [write[:2] for write in v1_writes(unlimited)] == [
        ("cpu.cfs_quota_us", "-1"),
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("pids.max", "max"),
    ]
    assert [write[:2] for write in v2_writes(unlimited)] == [
        ("cpu.max", "max 100000"),
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("pids.max", "max"),
    ]


def test_swap_equal_to_the_limit_leaves_none_on_v2() -> None:
    assert Write("memory.swap.max", "0", optional=True) in v2_writes({"memory": {"limit": 4096, "swap": 4096}})


@pytest.mark.parametrize("resources", [{}, {"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": None}}])
def test_what_is_not_asked_for_is_not_written(resources: dict[str, Any]) -> None:
    assert v1_writes(resources) == v2_writes(resources) == ()


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 1), (2, 1), (3, 2), (10, 4), (100, 17), (256, 35), (1024, 100), (2048, 174), (262144, 10000), (999999, 10000)],
)
def test_shares_become_weight_on_the_curve_of_crun_and_runc(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


def test_weight_never_falls_while_shares_rise() -> None:
    weights = [cpu_weight(shares) for shares in range(2, 262145, 97)]
    assert weights == sorted(weights)


@pytest.mark.parametrize("memory", [{"limit": 8192, "swap": 4096}, {"swap": 4096}, {"limit": -1, "swap": 4096}])
def test_swap_that_contradicts_the_limit_is_refused_by_name(memory: dict[str, int]) -> None:
    for writes in (v1_writes, v2_writes):
        with pytest.raises(InvalidArgument, match=r"memory\.swap 4096"):
            writes({"memory": memory})


def test_unified_on_v1_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"unified\.memory\.high .* only cgroup v2"):
        v1_writes({"unified": {"memory.high": "1"}})


@pytest.mark.parametrize("file", ["../memory.max", "cgroup.procs", "memory", "a/b.c"])
def test_unified_keys_stay_files_of_controllers(file: str) -> None:
    with pytest.raises(InvalidArgument, match="not a controller's file"):
        v2_writes({"unified": {file: "1"}})


def test_a_unified_key_for_several_devices_is_written_a_line_at_a_time() -> None:
    lines = ["8:0 wbps=1", "8:16 wbps=2"]
    assert v2_writes({"unified": {"io.max": "\n".join(lines)}}) == tuple(Write("io.max", line) for line in lines)


def test_resources_that_are_not_applied_are_named() -> None:
    asked = {"cpu": {"shares": 2, "realtimePeriod": 3}, "blockIO": {"weight": 10, "leafWeight": 5}, "devices": []}
    assert ignored({**asked, "rdma": {}, "intelRdt": {"closID": "a"}}) == (
        "blockIO.leafWeight",
        "cpu.realtimePeriod",
        "intelRdt",
    )


IO = {
    "weight": 500,
    "weightDevice": [{"major": 8, "minor": 16, "weight": 10}],
    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
    "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}],
}


def test_io_has_these_golden_plans() -> None:
    assert v1_writes({"blockIO": IO}) == (
        Write("blkio.bfq.weight", "500", optional=True),
        Write("blkio.bfq.weight_device", "8:16 10", optional=True),
        Write("blkio.throttle.read_bps_device", "8:0 1048576"),
        Write("blkio.throttle.write_iops_device", "8:0 0"),
    )
    assert v2_writes({"blockIO": IO}) == (
        Write("io.bfq.weight", "default 500", optional=True),
        Write("io.weight", "default 4950", optional=True),
        Write("io.bfq.weight", "8:16 10", optional=True),
        Write("io.weight", "8:16 1", optional=True),
        Write("io.max", "8:0 rbps=1048576"),
        Write("io.max", "8:0 wiops=max"),
    )
    assert io_weight(1000) == 10000


@pytest.mark.parametrize("weight", [1, 9, 1001, -5])
def test_a_weight_out_of_range_is_refused_by_name(weight: int) -> None:
    for writes in (v1_writes, v2_writes):
        with pytest.raises(InvalidArgument, match=f"blockIO.weight is {weight}"):
            writes({"blockIO": {"weight": weight}})


def test_huge_pages_are_limited_by_size_and_their_reservations_too() -> None:
    asked = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"pageSize": "1GB", "limit": 0}]}
    assert v1_writes(asked) == (
        Write("hugetlb.2MB.limit_in_bytes", "4194304"),
        Write("hugetlb.2MB.rsvd.limit_in_bytes", "4194304", optional=True),
        Write("hugetlb.1GB.limit_in_bytes", "0", optional=True),
        Write("hugetlb.1GB.rsvd.limit_in_bytes", "0", optional=True),
    )
    assert [write.file for write in v2_writes(asked)][:2] == ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"]


def test_rdma_is_the_same_in_both_versions() -> None:
    asked = {"rdma": {"mlx5_0": {"hcaHandles": 2, "hcaObjects": 2000}, "mlx5_1": {"hcaObjects": 0}, "none": {}}}
    assert v1_writes(asked) == v2_writes(asked)
    assert [write.text for write in v1_writes(asked)] == ["mlx5_0 hca_handle=2 hca_object=2000", "mlx5_1 hca_object=0"]


def test_classes_and_priorities_of_packets_are_version_1s_alone() -> None:
    asked = {"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]}}
    assert v1_writes(asked) == (Write("net_cls.classid", "1048577"), Write("net_prio.ifpriomap", "eth0 5"))
    with pytest.raises(InvalidArgument, match=r"network\.classID .* only cgroup v1"):
        v2_writes(asked)


def test_a_burst_follows_the_quota_that_bounds_it() -> None:
    asked = {"cpu": {"quota": 20000, "period": 100000, "burst": 10000, "idle": 1}}
    assert [write.file for write in v1_writes(asked)] == [
        "cpu.cfs_period_us",
        "cpu.cfs_quota_us",
        "cpu.cfs_burst_us",
        "cpu.idle",
    ]
    assert [write.file for write in v2_writes(asked)] == ["cpu.max", "cpu.max.burst", "cpu.idle"]


def test_what_may_be_missing_needs_no_controller_either() -> None:
    v1 = V1([Hierarchy("/cg/cpu", ("cpu",))])
    forbidden = {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}
    assert all(write.optional for write in v1.plan("/pods/a", forbidden))
    with pytest.raises(KernelError, match="no controller hugetlb on this node"):
        v1.plan("/pods/a", {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 << 20}]})


def test_plans_name_full_paths_and_the_right_hierarchy() -> None:
    v1 = V1([Hierarchy("/cg/cpu,cpuacct", ("cpu", "cpuacct")), Hierarchy("/cg/pids", ("pids",))])
    asked = {"cpu": {"shares": 2}, "pids": {"limit": 5}}
    assert v1.plan("/pods/a", asked) == (
        Write("/cg/cpu,cpuacct/pods/a/cpu.shares", "2"),
        Write("/cg/pids/pods/a/pids.max", "5"),
    )
    assert V2("/cg").plan("/pods/a", asked) == (
        Write("/cg/pods/a/cpu.weight", "1"),
        Write("/cg/pods/a/pids.max", "5"),
    )


def test_a_limit_without_its_controller_is_an_error_that_names_it() -> None:
    v1 = V1([Hierarchy("/cg/cpu", ("cpu",))])
    with pytest.raises(KernelError, match=r"write\(memory.limit_in_bytes 4096\): no controller memory on this node"):
        v1.plan("/pods/a", {"memory": {"limit": 4096}})


@pytest.mark.parametrize("path", ["", "/", "a", "a/b", "/a/../b", "/a/./b", "/a//b", "/a/", "/..", "/a\0", "/a\nb"])
def test_a_path_that_could_leave_its_place_is_refused(path: str) -> None:
    for groups in (V1([Hierarchy("/nowhere", ("cpu",))]), V2("/nowhere")):
        for act in (groups.enter, groups.processes, groups.remove, groups.oom_kills, groups.enter_plan):
            with pytest.raises(InvalidArgument, match="is not the path of a cgroup"):
                act(path)
        with pytest.raises(InvalidArgument, match="is not the path of a cgroup"):
            groups.create(path, {})
