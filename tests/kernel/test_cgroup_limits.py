"""Limits that the kernel holds: each is set on a group, and met by a process in it.

On version 1 and 2, where the node has controllers.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cri_py.cgroups import Cgroups, read_oom
from cri_py.cgroups.changes import change, take_back
from cri_py.errors import KernelError
from tests.kernel.node import WITH_HUGE_PAGES, WITH_LIMITS, MakeMember
from tests.simulators.devices import huge_page_pool, made_loop_device

pytestmark = pytest.mark.root
MAP_HUGETLB = 0x40000


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    with made_loop_device(tmp_path) as path:
        yield path


@pytest.fixture
def huge_pages() -> Iterator[int]:
    with huge_page_pool(8) as size:
        yield size


@pytest.mark.parametrize("groups", WITH_LIMITS, indirect=True)
def test_the_kernel_took_the_limits(groups: Cgroups, top: str) -> None:
    resources = {
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
        "pids": {"limit": 77},
    }
    made = groups.create(f"{top}/ctr", resources)
    assert all("swap" in note or "memsw" in note for note in made.notes)
    left_out = {note.split()[0] for note in made.notes}
    for file, text, _ in groups.plan(f"{top}/ctr", resources):
        if os.path.basename(file) not in left_out:
            assert Path(file).read_text().strip() == text


@pytest.mark.parametrize("groups", WITH_LIMITS, indirect=True)
def test_an_oom_kill_is_counted_and_can_be_read_after_the_process(
    groups: Cgroups, top: str, member: MakeMember
) -> None:
    groups.create(f"{top}/ctr", {"memory": {"limit": 24 << 20, "swap": 24 << 20}})
    fd = groups.open_oom(f"{top}/ctr")
    assert fd is not None
    assert read_oom(fd) == 0
    pid = member(lambda: groups.enter(f"{top}/ctr"), lambda: bytearray(b"1") * (256 << 20))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert groups.oom_kills(f"{top}/ctr") == read_oom(fd) == 1
    os.close(fd)
    groups.remove(f"{top}/ctr")
    assert groups.oom_kills(f"{top}/ctr") == 0


@pytest.mark.parametrize("groups", WITH_LIMITS, indirect=True)
def test_a_fork_beyond_the_pids_limit_fails(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {"pids": {"limit": 1}})

    def fork() -> None:
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError as error:
            os._exit(error.errno or 0)

    pid = member(lambda: groups.enter(f"{top}/ctr"), fork)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EAGAIN


@pytest.mark.parametrize("groups", WITH_LIMITS, indirect=True)
def test_a_disk_is_written_no_faster_than_allowed_before_and_after_a_change(
    groups: Cgroups, top: str, member: MakeMember, loop_device: str
) -> None:
    major, minor = map(int, Path(f"/sys/class/block/{os.path.basename(loop_device)}/dev").read_text().split(":"))

    def rate(bytes_a_second: int) -> dict[str, object]:
        wanted = {"major": major, "minor": minor, "rate": bytes_a_second}
        return {"blockIO": {"throttleWriteBpsDevice": [wanted]}}

    def write() -> None:
        fd = os.open(loop_device, os.O_WRONLY | os.O_DIRECT)
        with mmap.mmap(-1, 1 << 18) as block:  # O_DIRECT wants aligned memory
            for _ in range(6):
                os.write(fd, block)
        os._exit(0)

    def seconds() -> float:
        begun = time.monotonic()
        pid = member(lambda: groups.enter(f"{top}/ctr"), write)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return time.monotonic() - begun

    def quickest(below: float) -> float:
        return next((took for took in (seconds() for _ in range(20)) if took < below), math.inf)

    # How long it takes at least: on a busy machine all takes longer. 1.5 MB, of which the first slice is free.
    groups.create(f"{top}/ctr", rate(1 << 20))
    assert seconds() > 1.0
    before = change(groups, f"{top}/ctr", rate(512 << 10))
    assert (slower := seconds()) > 2.0
    take_back(before)
    assert 1.0 < (usual := quickest(below=slower)) < slower
    change(groups, f"{top}/ctr", rate(0))
    assert quickest(below=usual) < usual


@pytest.mark.parametrize("groups", WITH_HUGE_PAGES, indirect=True)
def test_huge_pages_are_mapped_up_to_the_limit_before_and_after_a_change(
    groups: Cgroups, top: str, member: MakeMember, huge_pages: int
) -> None:
    def limit(pages: int) -> dict[str, object]:
        return {"hugepageLimits": [{"pageSize": "2MB", "limit": pages * huge_pages}]}

    def take(pages: int) -> int:
        def act() -> None:
            with mmap.mmap(-1, pages * huge_pages, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB) as memory:
                for at in range(pages):
                    memory[at * huge_pages] = 1
            os._exit(0)

        def tried() -> None:
            try:
                act()
            except OSError as error:
                os._exit(error.errno or 0)

        pid = member(lambda: groups.enter(f"{top}/ctr"), tried)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    groups.create(f"{top}/ctr", limit(2))
    assert (take(2), take(3)) == (0, errno.ENOMEM)
    before = change(groups, f"{top}/ctr", limit(3))
    assert (take(3), take(4)) == (0, errno.ENOMEM)
    take_back(before)
    assert (take(2), take(3)) == (0, errno.ENOMEM)


@pytest.mark.parametrize("groups", WITH_LIMITS, indirect=True)
def test_a_burst_is_set_after_the_quota_that_it_may_not_exceed(groups: Cgroups, top: str) -> None:
    resources = {"cpu": {"quota": 50000, "period": 100000, "burst": 20000}}
    groups.create(f"{top}/ctr", resources)
    file = groups.plan(f"{top}/ctr", resources)[-1].file
    assert Path(file).read_text().strip() == "20000"
    with pytest.raises(KernelError, match="burst"):
        groups.create(f"{top}/more", {"cpu": {"quota": 50000, "period": 100000, "burst": 60000}})


@pytest.mark.parametrize("groups", WITH_LIMITS, indirect=True)
def test_a_kill_ends_a_fork_bomb_that_fills_its_group(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {"pids": {"limit": 60}})

    def bomb() -> None:
        while True:
            with suppress(OSError):
                os.fork()
            time.sleep(0.002)

    pid = member(lambda: groups.enter(f"{top}/ctr"), bomb)
    groups.kill(f"{top}/ctr", 60)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    groups.remove(f"{top}/ctr")
