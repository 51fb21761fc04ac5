"""Counters of both versions as the same values, read from directories laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cri_py.cgroups import Cgroups
from cri_py.cgroups.readings import Memory, Pressure, Room, Stall, Swap, Usage, field, open_group, pressure
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from tests.leaks import open_descriptors

GIB = 1 << 30
V1_UNLIMITED = "9223372036854771712\n"
V1_MEMORY = "cache 7\nrss 1\nhierarchical_memory_limit 5\ntotal_cache 40960\ntotal_rss 8192\ntotal_swap 12288\n" + (
    "total_pgfault 30\ntotal_pgmajfault 2\ntotal_inactive_file 4096\n"
)
V2_MEMORY = "anon 8192\nfile 40960\ninactive_file 4096\npgfault 30\npgmajfault 2\n"
PSI = "some avg10=1.50 avg60=0.25 avg300=0.00 total=4321\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=17\n"
PRESSURE = Pressure(Stall(4_321_000, 1.5, 0.25, 0.0), Stall(17_000, 0.5, 0.0, 0.0))
MEMORY = Memory(usage=65536, working_set=61440, limit=GIB, rss=8192, faults=30, major_faults=2)


def write(directory: Path, **contents: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (directory / name.replace("__", ".")).write_text(text)


def version1(root: Path, memsw: str = f"{3 * GIB}\n", limit: str = f"{GIB}\n") -> Cgroups:
    write(root / "cpuacct/pod", cpuacct__usage="123456789\n")
    write(
        root / "memory/pod",
        memory__usage_in_bytes="65536\n",
        memory__stat=V1_MEMORY,
        memory__limit_in_bytes=limit,
        memory__memsw__limit_in_bytes=memsw,
    )
    write(root / "pids/pod", pids__current="5\n")
    return V1([Hierarchy(str(root / name), (name,)) for name in ("cpuacct", "memory", "pids")])


def version2(root: Path) -> Cgroups:
    write(
        root / "pod",
        cpu__stat="usage_usec 123456\nuser_usec 1\n",
        memory__current="65536\n",
        memory__stat=V2_MEMORY,
        memory__max=f"{GIB}\n",
        memory__swap__current="12288\n",
        memory__swap__max="max\n",
        pids__current="5\n",
        cpu__pressure=PSI,
        memory__pressure=PSI,
        io__pressure=PSI,
    )
    return V2(str(root))


def usage(cgroups: Cgroups) -> Usage:
    group = open_group(cgroups, "/pod")
    try:
        return group.usage()
    finally:
        group.close()


def test_version_1_counts_what_lies_below_too_and_has_no_psi(tmp_path: Path) -> None:
    assert usage(version1(tmp_path)) == Usage(123456789, MEMORY, Swap(12288, 2 * GIB))


def test_version_2_tells_the_same_and_psi(tmp_path: Path) -> None:
    assert usage(version2(tmp_path)) == Usage(123456000, MEMORY, Swap(12288, None), PRESSURE, PRESSURE, PRESSURE)


def test_no_limit_is_told_as_none(tmp_path: Path) -> None:
    read = usage(version1(tmp_path, memsw=V1_UNLIMITED, limit=V1_UNLIMITED))
    assert read.memory == MEMORY._replace(limit=None)
    assert read.swap == Swap(12288, None)


def test_a_working_set_is_never_negative(tmp_path: Path) -> None:
    """The two files are read one after the other."""
    cgroups = version1(tmp_path)
    (tmp_path / "memory/pod/memory.usage_in_bytes").write_text("1\n")
    memory = usage(cgroups).memory
    assert memory is not None
    assert memory.working_set == 0


def test_a_group_that_is_gone_has_no_counters(tmp_path: Path) -> None:
    assert usage(V2(str(tmp_path))) == Usage()
    assert usage(V1([Hierarchy(str(tmp_path), ("cpuacct", "memory"))])) == Usage()


def test_a_controller_that_the_node_lacks_is_left_out(tmp_path: Path) -> None:
    version1(tmp_path)
    alone = V1([Hierarchy(str(tmp_path / "cpuacct"), ("cpuacct",))])
    assert usage(alone) == Usage(cpu_ns=123456789)


def test_swap_is_left_out_where_the_kernel_does_not_count_it(tmp_path: Path) -> None:
    cgroups = version2(tmp_path)
    (tmp_path / "pod/memory.swap.current").unlink()
    assert usage(cgroups).swap is None


def test_files_are_kept_open_and_tell_the_newest_counts(tmp_path: Path) -> None:
    cgroups = version1(tmp_path)
    group = open_group(cgroups, "/pod")
    before = set(open_descriptors())
    assert group.cpu_ns() == 123456789
    opened = set(open_descriptors()) - before
    (tmp_path / "cpuacct/pod/cpuacct.usage").write_text("200000000\n")
    assert group.cpu_ns() == 200000000
    assert group.processes() == 5
    assert len(opened) == 1
    group.close()
    assert set(open_descriptors()) == before


@pytest.mark.parametrize("version", [version1, version2])
def test_without_room_for_open_files_all_is_told_the_same(tmp_path: Path, version: Any) -> None:
    cgroups, room = version(tmp_path), Room(3)
    before = set(open_descriptors())
    scarce, alone = open_group(cgroups, "/pod", room), open_group(cgroups, "/pod")
    wanted = alone.usage()
    alone.close()
    assert scarce.usage() == wanted == scarce.usage()
    assert len(set(open_descriptors()) - before) == 3
    assert (scarce.processes(), scarce.has("pids.current"), scarce.has("pids.none")) == (5, True, False)
    scarce.close()
    assert set(open_descriptors()) == before
    assert room.left == 3


def test_a_field_is_found_by_its_whole_name() -> None:
    assert field(b"rss 1\ntotal_rss 2\nrss_huge 3", b"total_rss") == 2
    assert field(b"rss 1\ntotal_rss 2\nrss_huge 3", b"rss") == 1
    assert field(b"rss 1\ntotal_rss 2\nrss_huge 3", b"rss_huge") == 3
    assert field(b"rss 1\n", b"ss") == 0


def test_a_pressure_file_without_full_says_that_never_all_waited() -> None:
    assert pressure(b"") is None
    assert pressure(PSI.splitlines()[0].encode()) == PRESSURE._replace(full=Stall(0, 0.0, 0.0, 0.0))
