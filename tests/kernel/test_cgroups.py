"""Both versions of cgroups as this kernel has them.

On a hybrid node v2 runs in a group of its own in the unified hierarchy, without controllers; the limits of v2 are
tested where v2 has them, in test_cgroup_limits.py. Each test has a top group of its own.
"""

from __future__ import annotations

import errno
import itertools
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cri_py.cgroups import Cgroups, Made
from cri_py.cgroups.devices import v2_program
from cri_py.cgroups.readings import open_group
from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from cri_py.errors import InvalidArgument, KernelError
from cri_py.kernel import bpf, procfs, syscalls
from cri_py.kernel.constants import CLONE_INTO_CGROUP
from tests.kernel.node import NODE, UNIFIED, MakeMember, own_name

pytestmark = pytest.mark.root


def on_disk(groups: Cgroups, path: str) -> list[bool]:
    return [os.path.isdir(directory) for directory in groups.directories(path)]


# ------------------------------------------------------------- made and undone


def test_create_makes_the_missing_parents_and_undo_removes_just_those(groups: Cgroups, top: str) -> None:
    made = groups.create(f"{top}/pod/ctr", {})
    assert all(on_disk(groups, f"{top}/pod/ctr"))
    groups.undo(made)
    assert not any(on_disk(groups, f"{top}/pod"))
    assert all(on_disk(groups, top))


def test_create_of_what_is_there_makes_nothing(groups: Cgroups, top: str) -> None:
    groups.create(f"{top}/ctr", {})
    assert groups.create(f"{top}/ctr", {}).directories == ()


def test_a_create_that_fails_leaves_nothing(groups: Cgroups, top: str) -> None:
    with pytest.raises(KernelError, match=r"write\(1 to .*/pod/ctr/cpu.cfs_period_us\)|write\(max 1 to .*cpu.max\)"):
        groups.create(f"{top}/pod/ctr", {"cpu": {"period": 1}})
    assert not any(on_disk(groups, f"{top}/pod"))


def test_each_failing_act_of_create_leaves_nothing(groups: Cgroups, top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Nth act fails, for every N, until none is left to fail."""
    left = [0]

    def fail(syscall: str, subject: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KernelError(errno.EIO, "injected", syscall, subject)

    rules = [{"allow": True, "type": "c", "major": 1, "minor": 3}]
    for number in itertools.count(1):
        left[0] = number
        monkeypatch.setattr(syscalls, "failpoint", fail)
        try:
            groups.create(f"{top}/pod/ctr", {"devices": rules})
        except KernelError:
            monkeypatch.setattr(syscalls, "failpoint", None)
            assert not any(on_disk(groups, f"{top}/pod")), f"after failure {number}"
        else:
            break
    assert number > 3


def test_children_are_listed(groups: Cgroups, top: str) -> None:
    for name in ("b", "a", "a/inner"):
        groups.create(f"{top}/{name}", {})
    assert groups.children(top) == (f"{top}/a", f"{top}/b")
    assert top in groups.children("/")
    assert groups.children(f"{top}/missing") == ()


def test_empty_parents_go_up_to_the_stop(groups: Cgroups, top: str) -> None:
    groups.create(f"{top}/a/b/c", {})
    groups.create(f"{top}/x/y", {})
    groups.remove(f"{top}/a/b/c")
    groups.remove_empty_parents(f"{top}/a/b/c", top)
    assert groups.children(top) == (f"{top}/x",)
    groups.create(f"{top}/x/z", {})
    groups.remove(f"{top}/x/z")
    groups.remove_empty_parents(f"{top}/x/z", top)
    assert groups.children(f"{top}/x") == (f"{top}/x/y",)


# --------------------------------------------------------------------- entered


def test_a_process_that_enters_is_in_the_group_in_every_hierarchy(
    groups: Cgroups, top: str, member: MakeMember
) -> None:
    groups.create(f"{top}/ctr", {})
    pid = member(lambda: groups.enter(f"{top}/ctr"))
    assert groups.processes(f"{top}/ctr") == groups.processes(top) == [pid]
    for directory in groups.directories(f"{top}/ctr"):
        assert Path(directory, "cgroup.procs").read_text() == f"{pid}\n"


def test_opened_early_the_files_of_the_plan_are_a_way_in(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})
    opened = [os.open(file, os.O_WRONLY | os.O_CLOEXEC) for file in groups.enter_plan(f"{top}/ctr")]
    pid = member(lambda: [os.write(fd, b"0") for fd in opened])
    for fd in opened:
        os.close(fd)
    assert groups.processes(f"{top}/ctr") == [pid]


def test_v2_is_entered_by_clone3_and_v1_has_no_directory_for_it(groups: Cgroups, top: str) -> None:
    groups.create(f"{top}/ctr", {})
    fd = groups.directory_fd(f"{top}/ctr")
    if isinstance(groups, V1):
        assert fd is None
        return
    assert fd is not None
    pid = syscalls.clone3(CLONE_INTO_CGROUP, cgroup=fd)
    if pid == 0:
        signal.pause()
        os._exit(3)
    os.close(fd)
    assert groups.processes(f"{top}/ctr") == [pid]
    groups.kill(f"{top}/ctr", 5)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_v1_copies_cpus_and_memory_nodes_even_over_a_parent_without_any(member: MakeMember) -> None:
    if not isinstance(NODE, V1):
        assert isinstance(NODE, V2)  # which inherits by itself
        return
    mount = next(h.mount for h in NODE.hierarchies if "cpuset" in h.controllers)
    path = f"/{own_name()}"
    os.mkdir(mount + path)  # by somebody who copied nothing
    try:
        NODE.create(f"{path}/ctr", {})
        pid = member(lambda: NODE.enter(f"{path}/ctr"))
        assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
    finally:
        NODE.kill(path, 5)
        NODE.remove(path)


def test_all_processes_of_a_group_are_listed_however_many(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})

    def fork_many() -> None:
        """By a shell: a fork of all that the tests have in memory takes long."""
        reading, writing = os.pipe()
        os.set_inheritable(writing, True)  # so that nobody reads its end
        os.dup2(reading, 0)
        script = "exec 3<&0; for number in $(seq 799); do (read line <&3) & done; read line"
        os.execv("/bin/sh", ["sh", "-c", script])

    member(lambda: groups.enter(f"{top}/ctr"), fork_many)
    group = open_group(groups, f"{top}/ctr")
    deadline = time.monotonic() + 100
    while len(groups.processes(f"{top}/ctr")) < 800:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert group.members() == tuple(groups.processes(f"{top}/ctr"))
    group.close()


# ----------------------------------------------------------------------- ended


def test_what_is_missing_is_killed_and_removed_with_success(groups: Cgroups, top: str) -> None:
    groups.kill(f"{top}/missing", 1)
    groups.remove(f"{top}/missing")
    groups.remove_empty_parents(f"{top}/missing/ctr", top)
    assert groups.processes(f"{top}/missing") == []


def test_kill_ends_everything_below(groups: Cgroups, top: str, member: MakeMember) -> None:
    names = ("ctr/one", "ctr/two/inner")  # on v2 a group that hands controllers down holds no process itself
    for name in names:
        groups.create(f"{top}/{name}", {})
    pids = [member(lambda name=name: groups.enter(f"{top}/{name}")) for name in names]
    groups.kill(f"{top}/ctr", 5)
    assert [os.WTERMSIG(os.waitpid(pid, 0)[1]) for pid in pids] == [signal.SIGKILL] * 2
    groups.remove(f"{top}/ctr")
    assert not any(on_disk(groups, f"{top}/ctr"))


def flee() -> None:
    """Fork and exit for ever: no process lives long enough to be killed by a pid that was read before."""
    while os.fork() == 0:
        pass
    os._exit(0)


@pytest.fixture
def subreaper() -> Iterator[None]:
    """What loses its parent in a test becomes ours, and is reaped."""
    syscalls.prctl(36, 1)
    yield
    syscalls.prctl(36, 0)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.mark.usefixtures("subreaper")
def test_kill_ends_processes_that_fork_away(groups: Cgroups, top: str, member: MakeMember) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        groups.create(f"{top}/ctr", {})
        for _ in range(4):
            member(lambda: groups.enter(f"{top}/ctr"), flee)
        groups.kill(f"{top}/ctr", 60)
        assert groups.processes(f"{top}/ctr") == []
        groups.remove(f"{top}/ctr")
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def test_without_a_freezer_kill_still_ends_a_plain_group(member: MakeMember) -> None:
    if not isinstance(NODE, V1):
        assert isinstance(NODE, V2)  # which always has its freezer
        return
    alone = V1([hierarchy for hierarchy in NODE.hierarchies if hierarchy.controllers == ("pids",)])
    path = f"/{own_name()}"
    alone.create(path, {})
    try:
        pid = member(lambda: alone.enter(path))
        alone.kill(path, 5)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        with pytest.raises(KernelError, match="no controller freezer"):
            alone.freeze(path)
    finally:
        alone.remove(path)


def test_a_frozen_group_is_killed_too(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr/inner", {})
    pid = member(lambda: groups.enter(f"{top}/ctr/inner"))
    groups.freeze(f"{top}/ctr/inner")
    groups.kill(f"{top}/ctr", 5)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


def test_a_frozen_process_stands_still_until_it_is_thawed(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})
    reading, writing = os.pipe2(os.O_NONBLOCK)

    def beat() -> None:
        while True:
            with suppress(BlockingIOError):
                os.write(writing, b".")
            time.sleep(0.001)

    member(lambda: groups.enter(f"{top}/ctr"), beat)
    groups.freeze(f"{top}/ctr")
    with suppress(BlockingIOError):
        while os.read(reading, 65536):
            pass
    assert not select.select([reading], [], [], 0.05)[0]
    groups.thaw(f"{top}/ctr")
    assert select.select([reading], [], [], 60)[0]
    os.close(reading)
    os.close(writing)


def test_remove_of_a_group_in_use_names_the_process(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})
    pid = member(lambda: groups.enter(f"{top}/ctr"))
    with pytest.raises(KernelError, match=rf"rmdir\(.*{top}/ctr\): 1 processes left: {pid} \(") as caught:
        groups.remove(f"{top}/ctr", deadline_s=0.05)
    assert caught.value.errno == errno.EBUSY


def test_remove_waits_for_a_process_that_is_ending(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})
    member(lambda: groups.enter(f"{top}/ctr"), lambda: time.sleep(0.1))
    groups.remove(f"{top}/ctr", deadline_s=60)
    assert not any(on_disk(groups, f"{top}/ctr"))


# --------------------------------------------------------------------- an exec


def test_the_end_of_an_exec_scope_leaves_its_container_alone(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})
    container = member(lambda: groups.enter(f"{top}/ctr"))
    scope = groups.exec_scope(f"{top}/ctr", "exec-1")
    scope.make()
    pid = member(scope.enter)
    assert not scope.drop()
    assert scope.processes() == [pid]
    assert groups.processes(f"{top}/ctr") == sorted([container, pid])
    scope.kill(5)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert scope.drop()
    assert groups.processes(f"{top}/ctr") == [container]
    assert groups.children(f"{top}/ctr") == ()


def test_an_exec_has_the_limits_of_its_container(groups: Cgroups, top: str, member: MakeMember) -> None:
    groups.create(f"{top}/ctr", {})
    scope = groups.exec_scope(f"{top}/ctr", "exec-1")
    scope.make()
    pid = member(scope.enter)
    memberships = procfs.cgroup(pid)
    assert memberships is not None
    inside = [m for m in memberships if f"{top}/ctr" in m.path]
    assert len(inside) == len(groups.mounts)


def test_a_scope_is_removed_with_its_container(groups: Cgroups, top: str) -> None:
    groups.create(f"{top}/ctr", {})
    groups.exec_scope(f"{top}/ctr", "exec-1").make()
    groups.remove(f"{top}/ctr")
    assert not any(on_disk(groups, f"{top}/ctr"))


@pytest.mark.parametrize("name", ["..", "a/../../b", ""])
def test_the_name_of_a_scope_stays_below_its_container(groups: Cgroups, top: str, name: str) -> None:
    groups.create(f"{top}/ctr", {})
    with pytest.raises(InvalidArgument):
        groups.exec_scope(f"{top}/ctr", name)


# --------------------------------------------------------------------- devices


def opened(path: str) -> int:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.errno or -1
    return 0


def test_only_the_devices_that_are_allowed_can_be_opened(groups: Cgroups, top: str, member: MakeMember) -> None:
    null = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    zero_read = {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"}
    groups.create(f"{top}/ctr", {"devices": [{"allow": False, "access": "rwm"}, null, zero_read]})

    def check() -> None:
        zero = os.open("/dev/zero", os.O_RDONLY)
        os.close(zero)
        os._exit(0 if (opened("/dev/null"), opened("/dev/zero"), opened("/dev/full")) == (0, 1, 1) else 9)

    pid = member(lambda: groups.enter(f"{top}/ctr"), check)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("groups", ["v2"], indirect=True)
def test_a_device_program_is_attached_listed_and_detached(groups: V2, top: str) -> None:
    rules = [{"allow": False, "type": "b", "access": "w"}, {"allow": True, "type": "c", "access": "rm"}]
    groups.create(f"{top}/ctr", {"devices": rules})
    group = groups.directory_fd(f"{top}/ctr")
    assert group is not None
    (number,) = bpf.device_programs(group)
    program = bpf.program_fd(number)
    bpf.detach_device_program(group, program)
    assert bpf.device_programs(group) == ()
    os.close(program)
    os.close(group)


def test_the_verifier_says_why_it_refuses_a_program() -> None:
    program = v2_program([{"allow": True, "type": "c"}])
    assert program is not None
    with pytest.raises(KernelError, match=r"PROG_LOAD.*(last insn|fall through|no exit)"):
        bpf.load_device_program(program[:-8])


def test_a_note_tells_what_was_left_out(groups: Cgroups, top: str) -> None:
    made = groups.create(f"{top}/ctr", {"intelRdt": {"closID": "a"}})
    assert isinstance(made, Made)
    assert made.notes == ("intelRdt is not applied",)


def test_an_absent_hierarchy_is_an_error_only_where_it_is_asked_for() -> None:
    absent = V1([Hierarchy(f"{UNIFIED}/missing", ("cpu",))])
    with pytest.raises(KernelError, match="no controller pids"):
        absent.create("/a", {"pids": {"limit": 3}})
