"""Which version is used, from mountinfo alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cri_py.cgroups import detect
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from cri_py.errors import FailedPrecondition

TMPFS = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755"
CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
PIDS = "39 31 0:36 / /sys/fs/cgroup/pids rw shared:4 - cgroup cgroup rw,xattr,pids"
NAMED = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd"
EMPTY_V2 = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
V2_ALONE = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self").mkdir()
    return tmp_path


def found(proc: Path, *lines: str) -> V1 | V2:
    (proc / "self/mountinfo").write_text("\n".join(lines) + "\n")
    groups = detect(proc=str(proc))
    assert isinstance(groups, (V1, V2))
    return groups


def test_a_hybrid_node_is_v1_with_what_is_mounted(proc: Path) -> None:
    groups = found(proc, TMPFS, CPU, PIDS, NAMED, EMPTY_V2)
    assert isinstance(groups, V1)
    assert groups.hierarchies == (
        Hierarchy("/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct")),
        Hierarchy("/sys/fs/cgroup/pids", ("pids",)),
    )


def test_the_unified_hierarchy_alone_is_v2(proc: Path) -> None:
    groups = found(proc, V2_ALONE)
    assert isinstance(groups, V2)
    assert groups.mount == "/sys/fs/cgroup"


def test_a_named_hierarchy_without_controllers_does_not_make_v1(proc: Path) -> None:
    assert isinstance(found(proc, TMPFS, NAMED, EMPTY_V2), V2)


def test_paths_are_below_the_mount_where_it_shows_a_part_only(proc: Path) -> None:
    groups = found(proc, PIDS.replace(" / ", " /docker/abc "))
    assert groups.directories("/pods/a") == ("/sys/fs/cgroup/pids/pods/a",)


def test_a_hierarchy_that_is_mounted_twice_or_elsewhere_counts_once(proc: Path) -> None:
    again = PIDS.replace("/pids", "/pids2").replace("39", "50")
    elsewhere = PIDS.replace("/sys/fs/cgroup", "/var/lib/other")
    assert found(proc, elsewhere, PIDS, again).mounts == ("/sys/fs/cgroup/pids",)


def test_a_node_without_cgroups_is_told_what_to_mount(proc: Path) -> None:
    with pytest.raises(FailedPrecondition, match="mount -t cgroup2"):
        found(proc, TMPFS)


def test_v1_enters_by_tasks_in_each_hierarchy_and_v2_by_its_one_file(proc: Path) -> None:
    assert found(proc, CPU, PIDS).enter_plan("/a") == (
        "/sys/fs/cgroup/cpu,cpuacct/a/tasks",
        "/sys/fs/cgroup/pids/a/tasks",
    )
    assert found(proc, V2_ALONE).enter_plan("/a") == ("/sys/fs/cgroup/a/cgroup.procs",)


def test_the_room_loads_no_heavy_module() -> None:
    """It is loaded into the process from which every monitor is forked."""
    heavy = ["asyncio", "dataclasses", "inspect", "json", "pathlib", "subprocess", "threading", "socket", "logging"]
    program = f"import sys, cri_py.cgroups; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True,
                         env={"PYTHONPATH": str(Path(__file__).parents[3])})  # fmt: skip
    assert run.stdout.strip() == "[]"
