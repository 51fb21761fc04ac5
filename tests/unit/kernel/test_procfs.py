"""/proc as bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri_py.errors import KernelError
from cri_py.kernel import procfs

STAT = b"42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 12 34\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "42/task/42").mkdir(parents=True)
    (tmp_path / "42/stat").write_bytes(STAT)
    (tmp_path / "42/task/42/children").write_bytes(b"43 99 ")
    (tmp_path / "42/status").write_bytes(b"Name:\tx\nVmRSS:\t    2048 kB\n")
    (tmp_path / "42/smaps_rollup").write_bytes(
        b"aa-bb ---p 0 00:00 0 [rollup]\nRss:  10 kB\nPss:  7 kB\nPss_Dirty: 1 kB\n"
    )
    (tmp_path / "42/cgroup").write_bytes(b"8:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/c\n")
    return tmp_path


def test_a_name_with_brackets_and_blanks_does_not_shift_the_fields(proc: Path) -> None:
    assert procfs.start_ticks(42, str(proc)) == 987654
    assert procfs.state(42, str(proc)) == "S"


@pytest.mark.parametrize(
    ("state", "flags", "pending", "ending"),
    [
        ("S", 0x400100, 0, False),
        ("S", 0x400100, 1 << 14, False),  # SIGTERM, which it may catch
        ("D", 0x400100, 1 << 8, True),
        ("S", 0x400104, 0, True),
        ("R", 0x400500, 0, True),
        ("Z", 0x400100, 0, True),
    ],
    ids=["lives", "asked to end", "to be killed", "exits", "dies", "zombie"],
)
def test_a_process_that_can_only_end_is_told_apart(
    tmp_path: Path, state: str, flags: int, pending: int, ending: bool
) -> None:
    (tmp_path / "42").mkdir()
    fields = f"1 42 42 0 -1 {flags} {' '.join(['0'] * 21)} {pending} 0 0 0 0 0 0\n"
    (tmp_path / "42/stat").write_text(f"42 (a) {state} {fields}")
    assert procfs.is_ending(42, str(tmp_path)) == ending
    assert procfs.is_ending(7, str(tmp_path))


def test_what_a_process_has_is_read(proc: Path) -> None:
    assert procfs.children(42, str(proc)) == (43, 99)
    assert procfs.status(42, str(proc)) == {"Name": "x", "VmRSS": "2048 kB"}
    assert procfs.pss(42, str(proc)) == 7 * 1024
    assert procfs.cgroup(42, str(proc)) == (
        procfs.Membership(8, ("cpu", "cpuacct"), "/a:b"),
        procfs.Membership(1, ("name=systemd",), "/"),
        procfs.Membership(0, (), "/c"),
    )


def test_a_process_that_is_gone_answers_none(proc: Path) -> None:
    for ask in (procfs.start_ticks, procfs.state, procfs.children, procfs.status, procfs.pss, procfs.cgroup):
        assert ask(7, str(proc)) is None


def test_another_failure_names_the_file(proc: Path) -> None:
    (proc / "42/stat").unlink()
    (proc / "42/stat").mkdir()
    with pytest.raises(KernelError, match="42/stat"):
        procfs.state(42, str(proc))


def test_mountinfo_is_read_with_escapes_and_optional_fields() -> None:
    raw = b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime master:1 shared:5 - ext3 /dev/root rw,errors=continue\n"
    assert procfs.parse_mountinfo(raw) == (
        procfs.MountPoint(
            id=36,
            parent=35,
            device="98:0",
            root="/mnt1",
            path="/mnt 2\\x",
            options=("rw", "noatime"),
            propagation=("master:1", "shared:5"),
            fstype="ext3",
            source="/dev/root",
            super_options=("rw", "errors=continue"),
        ),
    )
    assert procfs.parse_mountinfo(raw.replace(b" master:1 shared:5", b""))[0].propagation == ()
