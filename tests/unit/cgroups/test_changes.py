"""Limits that change under a running container: no step in between breaks one, a failed step leaves none changed."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from cri_py.cgroups.changes import change, in_order, take_back, way_back
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from cri_py.cgroups.writes import Write
from cri_py.errors import KernelError

UNLIMITED = "9223372036854771712"
MIB = 1 << 20


def order(*planned: tuple[str, str], **current: str) -> list[str]:
    now = {f"/x/{file.replace('__', '.')}": text for file, text in current.items()}
    return [
        write.file.removeprefix("/x/") for write in in_order([Write(f"/x/{file}", text) for file, text in planned], now)
    ]


LIMIT, BOTH, PERIOD, QUOTA = (
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (("100", "100"), ("200", "200"), [BOTH, LIMIT]),
        (("200", "200"), ("100", "100"), [LIMIT, BOTH]),
        (("100", "300"), ("200", "250"), [BOTH, LIMIT]),
        ((UNLIMITED, UNLIMITED), ("100", "100"), [LIMIT, BOTH]),
        (("100", "100"), ("-1", "-1"), [BOTH, LIMIT]),
    ],
)
def test_memory_is_never_above_memory_with_swap(
    old: tuple[str, str], new: tuple[str, str], expected: list[str]
) -> None:
    planned = ((LIMIT, new[0]), (BOTH, new[1]))
    assert order(*planned, memory__limit_in_bytes=old[0], memory__memsw__limit_in_bytes=old[1]) == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (("100000", "50000"), ("200000", "100000"), [PERIOD, QUOTA]),
        (("100000", "50000"), ("50000", "25000"), [QUOTA, PERIOD]),
    ],
)
def test_a_share_of_cpu_is_never_above_the_old_and_the_new(
    old: tuple[str, str], new: tuple[str, str], expected: list[str]
) -> None:
    planned = ((PERIOD, new[0]), (QUOTA, new[1]))
    assert order(*planned, cpu__cfs_period_us=old[0], cpu__cfs_quota_us=old[1]) == expected


def test_what_is_so_already_is_not_written() -> None:
    assert order(("cpu.shares", "5"), (QUOTA, "9"), cpu__shares="5", cpu__cfs_quota_us="8") == [QUOTA]


def version1(root: Path, **contents: str) -> V1:
    (root / "c").mkdir()
    for file, text in contents.items():
        (root / "c" / file.replace("__", ".")).write_text(text)
    return V1([Hierarchy(str(root), ("cpu", "memory"))])


def test_a_change_can_be_taken_back(tmp_path: Path) -> None:
    cgroups = version1(tmp_path, cpu__shares="1024\n", cpu__cfs_quota_us="2000\n")
    undo = change(cgroups, "/c", {"cpu": {"shares": 2048, "quota": 3000}})
    files = [tmp_path / "c/cpu.shares", tmp_path / "c/cpu.cfs_quota_us"]
    assert [file.read_text() for file in files] == ["2048\n", "3000\n"]
    take_back(undo)
    assert [file.read_text() for file in files] == ["1024\n", "2000\n"]


def test_a_refused_step_leaves_the_group_as_it_was(tmp_path: Path) -> None:
    cgroups = version1(tmp_path, cpu__shares="1024\n", memory__limit_in_bytes="999\n")
    limit = tmp_path / "c/memory.limit_in_bytes"
    with pytest.MonkeyPatch.context() as patching:
        from cri_py.cgroups import files

        write = files.write

        def refusing(file: str, *texts: str) -> None:
            if file == str(limit):
                raise KernelError(22, "Invalid argument", "write", file)
            write(file, *texts)

        patching.setattr(files, "write", refusing)
        with pytest.raises(KernelError, match="limit_in_bytes"):
            change(cgroups, "/c", {"cpu": {"shares": 5120}, "memory": {"limit": 100}})
    assert (tmp_path / "c/cpu.shares").read_text() == "1024\n"
    assert limit.read_text() == "999\n"


def test_version_2_is_not_asked_to_kill_for_a_limit_below_what_is_used(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/memory.max").write_text("max\n")
    (tmp_path / "c/memory.current").write_text(f"{64 * MIB}\n")
    with pytest.raises(KernelError, match=f"{64 * MIB} bytes are in use"):
        change(V2(str(tmp_path)), "/c", {"memory": {"limit": 32 * MIB}})
    assert (tmp_path / "c/memory.max").read_text() == "max\n"


@pytest.mark.parametrize(("asked", "refused"), [("32M", True), ("64m", False), ("1g", False), ("max", False)])
def test_a_limit_that_is_given_as_the_kernel_reads_it_is_compared_too(
    tmp_path: Path, asked: str, refused: bool
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/memory.max").write_text(f"{2**40}\n")
    (tmp_path / "c/memory.current").write_text(f"{64 * MIB}\n")
    with pytest.raises(KernelError, match="are in use") if refused else nullcontext():
        change(V2(str(tmp_path)), "/c", {"unified": {"memory.max": asked}})
    assert (tmp_path / "c/memory.max").read_text().startswith(str(2**40) if refused else asked)


@pytest.mark.parametrize(
    ("file", "asked", "had", "back"),
    [
        ("io.max", "8:0 wbps=9", "", "8:0 rbps=max wbps=max riops=max wiops=max"),
        ("io.max", "8:0 wbps=9", "7:0 rbps=1\n8:0 rbps=max wbps=5", "8:0 rbps=max wbps=5"),
        ("io.weight", "default 9", "default 100\n8:0 50", "default 100"),
        ("io.weight", "8:16 9", "default 100\n8:0 50", "8:16 default"),
        ("blkio.throttle.write_bps_device", "8:0 9", "8:16 5", "8:0 0"),
        ("blkio.throttle.write_bps_device", "8:0 9", "8:16 5\n8:0 7", "8:0 7"),
        ("rdma.max", "mlx4_0 hca_handle=2", "", "mlx4_0 hca_handle=max hca_object=max"),
        ("cpu.weight", "9", "100", "100"),
    ],
)
def test_of_a_file_with_a_line_for_each_device_the_devices_line_comes_back(
    file: str, asked: str, had: str, back: str
) -> None:
    assert way_back(Write(f"/x/{file}", asked), had) == Write(f"/x/{file}", back)


def test_a_limit_whose_file_the_group_lacks_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(KernelError, match=r"write\(0-1 to .*cpuset\.cpus\)"):
        change(V2(str(tmp_path)), "/c", {"cpu": {"cpus": "0-1"}})
