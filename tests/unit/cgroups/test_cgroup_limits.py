"""Which files are read of a group, on version 1, on 2, and where only a part of the hierarchy is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_py.cgroups import limits
from cri_py.cgroups.limits import Above
from cri_py.kernel.procfs import Membership, MountPoint


def mounted(path: Path, fstype: str, *controllers: str, root: str = "/") -> MountPoint:
    return MountPoint(1, 0, "0:1", root, str(path), ("rw",), (), fstype, fstype, ("rw", *controllers))


def group(path: Path, **contents: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (path / name.replace("__", ".")).write_text(f"{text}\n")
    return path


def test_version_1_has_a_directory_for_each_hierarchy(tmp_path: Path) -> None:
    cpu = group(tmp_path / "cpu,cpuacct/pods/c", cpu__shares="102", cpu__cfs_quota_us="-1")
    pids = group(tmp_path / "pids/pods/c", pids__max="max", pids__current="3")
    group(tmp_path / "systemd/pods/c")
    memberships = [
        Membership(3, ("cpu", "cpuacct"), "/pods/c"),
        Membership(2, ("pids",), "/pods/c"),
        Membership(1, ("name=systemd",), "/pods/c"),
    ]
    mounts = [
        mounted(tmp_path / "cpu,cpuacct", "cgroup", "cpu", "cpuacct"),
        mounted(tmp_path / "pids", "cgroup", "pids"),
        mounted(tmp_path / "systemd", "cgroup", "name=systemd"),
    ]
    found = {reading.file: reading for reading in limits.readings(memberships, mounts)}
    assert sorted(found) == ["cpu.cfs_quota_us", "cpu.shares", "pids.max"]
    assert (found["cpu.shares"].value, found["cpu.shares"].directory) == ("102", str(cpu))
    assert (found["pids.max"].used, found["pids.max"].directory) == ("3", str(pids))


def test_version_2_has_one_and_files_that_are_asked_for_by_name(tmp_path: Path) -> None:
    group(tmp_path / "pods", memory__max="1000", cpu__max="max 100000")
    group(tmp_path / "pods/c", memory__max="max", memory__current="5", cpu__max="max 100000", io__weight="default 50")
    group(tmp_path / "pods/c", hugetlb__2MB__max="0", hugetlb__2MB__rsvd__max="0")
    asked = [Membership(0, (), "/pods/c")]
    mounts = [mounted(tmp_path, "cgroup2")]
    found = {reading.file: reading for reading in limits.readings(asked, mounts, ["io.weight", "../x"])}
    assert sorted(found) == ["cpu.max", "hugetlb.2MB.max", "io.weight", "memory.max"]
    assert found["memory.max"].above == (Above(str(tmp_path / "pods"), "1000"),)
    assert found["cpu.max"].above == ()
    assert found["io.weight"].value == "default 50"


def test_the_nearest_limit_above_is_the_first(tmp_path: Path) -> None:
    for path, value in (("a", "3"), ("a/b", "max"), ("a/b/c", "2"), ("a/b/c/d", "max")):
        group(tmp_path / path, pids__max=value)
    (reading,) = limits.readings([Membership(4, ("pids",), "/a/b/c/d")], [mounted(tmp_path, "cgroup", "pids")])
    assert [above.value for above in reading.above] == ["2", "3"]


@pytest.mark.parametrize(("path", "count"), [("/outer/pods/c", 1), ("/elsewhere/pods/c", 0), ("/outerpods/c", 0)])
def test_where_a_part_is_seen_paths_are_below_that_part(tmp_path: Path, path: str, count: int) -> None:
    group(tmp_path / "pods/c", pids__max="1")
    mounts = [mounted(tmp_path, "cgroup", "pids", root="/outer")]
    assert len(limits.readings([Membership(4, ("pids",), path)], mounts)) == count


@pytest.mark.parametrize(
    ("value", "unlimited"),
    [("max", True), ("max 100000", True), ("-1", True), ("9223372036854771712", True), ("", True), ("0", False)],
)
def test_no_limit_has_many_words(value: str, unlimited: bool) -> None:
    assert limits.is_unlimited(value) is unlimited


def test_what_a_groups_files_say_is_told_by_file(tmp_path: Path) -> None:
    group(tmp_path / "cpu/c", cpu__shares="102", cpu__stat="nr_periods 0")
    group(tmp_path / "pids/c", pids__max="max", pids__current="3")
    told = limits.values([f"{tmp_path}/cpu/c", f"{tmp_path}/pids/c", f"{tmp_path}/gone/c"])
    assert told == {"cpu.shares": "102", "pids.current": "3", "pids.max": "max"}
