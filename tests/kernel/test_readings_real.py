"""Readings of groups that this kernel has: what is counted is there, and open files hold no group."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cri_py.cgroups import Cgroups, detect
from cri_py.cgroups.changes import change, take_back
from cri_py.cgroups.readings import Usage, open_group
from cri_py.cgroups.v1 import V1
from cri_py.cgroups.v2 import V2
from cri_py.kernel import procfs

pytestmark = pytest.mark.root

NODE = detect()
MIB = 1 << 20
NAME = f"/cri_py-readings-{os.getpid()}"


@pytest.fixture(params=["v1", "v2"] if isinstance(NODE, V1) else ["v2"])
def groups(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    """The node's cgroups, with a group made; on a hybrid node v2 has no controllers, but counts CPU time and PSI."""
    unified = next(mount.path for mount in procfs.mountinfo() if mount.fstype == "cgroup2")
    cgroups: Cgroups = NODE if request.param == "v1" or isinstance(NODE, V2) else V2(unified)
    cgroups.create(NAME, {})
    yield cgroups
    cgroups.remove(NAME)


def burn_in(cgroups: Cgroups) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            cgroups.enter(NAME)
            sum(range(2_000_000))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_cpu_time_of_processes_that_have_ended_is_counted(groups: Cgroups) -> None:
    group = open_group(groups, NAME)
    assert group.cpu_ns() == group.usage().cpu_ns
    before = group.cpu_ns() or 0
    burn_in(groups)
    after = group.cpu_ns() or 0
    group.close()
    assert after - before > 5_000_000


def test_pressure_is_told_where_the_kernel_has_it(groups: Cgroups) -> None:
    group = open_group(groups, NAME)
    usage = group.usage()
    group.close()
    wanted = isinstance(groups, V2) and os.path.exists(f"{groups.mount}{NAME}/cpu.pressure")
    assert (usage.cpu_pressure is not None) == wanted


def test_open_files_do_not_keep_a_group_and_then_tell_nothing(groups: Cgroups) -> None:
    group = open_group(groups, NAME)
    assert group.usage() != Usage()
    groups.remove(NAME)
    assert not groups.exists(NAME)
    assert group.usage() == Usage()
    assert group.processes() is None
    group.close()


def test_limits_go_up_and_down_and_back_without_a_step_that_the_kernel_refuses() -> None:
    NODE.create(NAME, {"memory": {"limit": 64 * MIB, "swap": 64 * MIB}, "cpu": {"period": 100000, "quota": 50000}})
    try:
        group = open_group(NODE, NAME)
        for limit, period, quota in ((256, 20000, 20000), (32, 1_000_000, 10000), (64, 1000, 1000)):
            resources = {
                "memory": {"limit": limit * MIB, "swap": limit * MIB},
                "cpu": {"period": period, "quota": quota},
            }
            before = group.usage().memory
            take_back(change(NODE, NAME, resources))
            assert group.usage().memory == before
            change(NODE, NAME, resources)
            memory = group.usage().memory
            assert memory is not None
            assert memory.limit == limit * MIB
        group.close()
    finally:
        NODE.remove(NAME)
