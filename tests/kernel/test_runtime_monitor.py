"""A real spawner and its monitors, without a daemon: who lives on, who goes along."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri_py.cgroups import detect
from cri_py.errors import CriError, DeadlineExceeded, FailedPrecondition, NotFound
from cri_py.kernel import procfs, syscalls
from cri_py.kernel.constants import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUSER, PR_SET_DUMPABLE
from cri_py.kernel.holder import write_program
from cri_py.kernel.steps import Report, Step, Then, in_memory
from cri_py.kernel.steps import program as make_program
from cri_py.kernel.syscalls import capget
from cri_py.monitor.client import MonitorClient, SpawnerClient, StepFailed
from cri_py.monitor.tracked import ExecProcess
from cri_py.pods import exec_steps, holder_steps
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import ChildError, Parent
from cri_py.runtime.container import Stdio

pytestmark = pytest.mark.root

PR_GET_DUMPABLE = 3


@pytest.fixture
def group() -> Iterator[str]:
    cgroups, name = detect(), f"/cri_py-monitor-{os.getpid()}"
    cgroups.create(name, {})
    yield name
    cgroups.remove(name)


@pytest.fixture
async def spawner() -> AsyncIterator[SpawnerClient]:
    client = SpawnerClient()
    client.start()
    yield client
    pid = client.pid
    client.close()
    collect(pid)


def collect(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def state_of(pid: int) -> str:
    """As ps tells it: S, Z …; "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def gone(pid: int, state: str = "") -> None:
    for _ in range(10_000):
        if state_of(pid) == state:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"{pid} is still there: {state_of(pid)}")


async def up(spawner: SpawnerClient, directory: Path) -> MonitorClient:
    os.mkdir(directory)
    client = spawner.spawn(str(directory))
    await client.wait_until_up(60)
    return client


async def hold(client: MonitorClient, tmp_path: Path, group: str, **changes: Any) -> int:
    write_program(str(tmp_path / "holder"))
    wish = {"uid_map": "", "gid_map": "", "net": False, "pid": True, "sysctls": {}, "cgroup": group, **changes}
    own = holder_steps.Own("pod", True, wish["pid"], False, bool(wish["uid_map"]), wish["net"], wish["sysctls"])
    files = detect().enter_plan(wish["cgroup"])
    program = holder_steps.steps(own, wish.get("program", str(tmp_path / "holder")), files, procfs.last_capability())
    fd = in_memory(make_program(program))
    fields: dict[str, Any] = {"uid_map": wish["uid_map"], "gid_map": wish["gid_map"]}
    if own.users and own.sysctls:
        fields |= {"sysctls": own.sysctls, "joined": own.flags() & (CLONE_NEWIPC | CLONE_NEWNET)}
    try:
        return int((await client.request("hold", timeout_s=60, fds=(fd,), **fields))["holder"])
    except StepFailed as failure:
        raise holder_steps.refusal(program[failure.step], failure.errno) from failure
    finally:
        os.close(fd)


async def end(client: MonitorClient) -> None:
    await client.request("end", timeout_s=60)
    client.close()
    await gone(client.pid)


async def test_a_monitor_holds_namespaces_and_takes_them_along_when_it_is_told_to_end(
    spawner: SpawnerClient, tmp_path: Path, group: str
) -> None:
    client = await up(spawner, tmp_path / "pod")
    holder = await hold(client, tmp_path, group)
    for name in ("ipc", "uts", "pid"):
        assert os.readlink(f"/proc/{holder}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
    assert os.readlink(f"/proc/{holder}/ns/net") == os.readlink("/proc/self/ns/net")
    assert holder in detect().processes(group)
    assert sorted(os.listdir(f"/proc/{holder}/fd")) == ["0", "1", "2"]
    await end(client)
    await gone(holder)


USERS = {"uid_map": "0 200000 65536\n", "gid_map": "0 300000 65536\n", "net": True}
_NS_GET_USERNS = 0xB701  # ioctl_ns(2)


def users_of(pid: int) -> tuple[list[str], list[str]]:
    """Its mappings; who it is follows from them."""
    uids, gids = (Path(f"/proc/{pid}/{name}").read_text().split() for name in ("uid_map", "gid_map"))
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{uids[1]}\t{uids[1]}" in status
    assert f"Gid:\t{gids[1]}\t{gids[1]}" in status
    return uids, gids


def owner_of(pid: int, kind: str) -> str:
    """The user namespace that one of its namespaces belongs to."""
    with open(f"/proc/{pid}/ns/{kind}", "rb") as namespace:
        owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
    try:
        return os.readlink(f"/proc/self/fd/{owner}")
    finally:
        os.close(owner)


@pytest.mark.parametrize("pid", [True, False])
async def test_a_holder_with_a_user_namespace_has_all_others_made_inside(
    spawner: SpawnerClient, tmp_path: Path, group: str, pid: bool
) -> None:
    client = await up(spawner, tmp_path / "pod")
    sysctls = {"net/ipv4/ip_unprivileged_port_start": "7", "kernel/shm_rmid_forced": "1"}
    holder = await hold(client, tmp_path, group, pid=pid, sysctls=sysctls, **USERS)
    assert users_of(holder) == (["0", "200000", "65536"], ["0", "300000", "65536"])
    own = os.readlink(f"/proc/{holder}/ns/user")
    assert own != os.readlink("/proc/self/ns/user")
    kinds = ("ipc", "uts", "net", *(("pid", "mnt") if pid else ()))
    assert [owner_of(holder, kind) for kind in kinds] == [own] * len(kinds)
    assert sorted(os.listdir(f"/proc/{holder}/fd")) == ["0", "1", "2"]
    await end(client)
    await gone(holder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"uid_map": "0 200000 0\n"}, "Invalid argument"),
        ({"gid_map": "nonsense\n"}, "Invalid argument"),
        ({"sysctls": {"kernel/shm_rmid_forced": "2"}}, "kernel.shm_rmid_forced"),
        ({"sysctls": {"net/not/there": "1"}}, "net.not.there"),
    ],
)
async def test_a_user_namespace_that_cannot_be_made_is_refused_and_nothing_is_left(
    spawner: SpawnerClient, tmp_path: Path, group: str, changes: dict[str, Any], text: str
) -> None:
    client = await up(spawner, tmp_path / "pod")
    with pytest.raises(CriError, match=text):
        await hold(client, tmp_path, group, **{**USERS, **changes})
    for left in detect().processes(group):
        await gone(left)  # it was killed, and may be on its way out
    await end(client)


async def test_a_monitor_lives_on_without_its_daemon_and_is_found_again(
    spawner: SpawnerClient, tmp_path: Path, group: str
) -> None:
    client = await up(spawner, tmp_path / "pod")
    holder = await hold(client, tmp_path, group)
    client.close()
    found = MonitorClient.connect(str(tmp_path / "pod"))
    hello = await found.request("hello", timeout_s=60)
    assert (hello["pid"], hello["holder"], hello["containers"]) == (client.pid, holder, {})
    found.pid = client.pid
    await end(found)


async def test_a_monitor_that_has_no_pod_yet_ends_with_its_daemon(spawner: SpawnerClient, tmp_path: Path) -> None:
    client = await up(spawner, tmp_path / "pod")
    client.close()
    await gone(client.pid)


async def test_the_newest_daemon_is_the_one_that_counts(spawner: SpawnerClient, tmp_path: Path, group: str) -> None:
    first = await up(spawner, tmp_path / "pod")
    await hold(first, tmp_path, group)
    lost = asyncio.Event()
    first.on_lost = lost.set
    second = MonitorClient.connect(str(tmp_path / "pod"))
    await second.request("hello", timeout_s=60)
    await asyncio.wait_for(lost.wait(), 60)
    second.pid = first.pid
    await end(second)


async def test_a_holder_that_dies_is_told(spawner: SpawnerClient, tmp_path: Path, group: str) -> None:
    client = await up(spawner, tmp_path / "pod")
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    client.on_event = events.put_nowait
    os.kill(await hold(client, tmp_path, group), signal.SIGKILL)
    assert await asyncio.wait_for(events.get(), 60) == {"event": "holder_exit"}
    assert (await client.request("hello", timeout_s=60))["holder"] == 0
    await end(client)


async def test_a_holder_dies_with_a_killed_monitor_and_the_spawner_says_how_that_died(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, group: str
) -> None:
    spawner = SpawnerClient()  # made here: it inherits the captured stderr
    spawner.start()
    client = await up(spawner, tmp_path / "pod")
    lost = asyncio.Event()
    client.on_lost = lost.set
    holder = await hold(client, tmp_path, group)
    os.kill(client.pid, signal.SIGKILL)
    await asyncio.wait_for(lost.wait(), 60)
    await gone(holder)
    await gone(client.pid)  # collected
    pid = spawner.pid
    spawner.close()
    collect(pid)
    assert capfd.readouterr().err == f"cri-spawner: the monitor {client.pid} was killed by signal 9\n"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"program": "/no/holder"}, "no such file"),
        ({"cgroup": "/cri_py-no-such-group"}, "no such file"),
        ({"sysctls": {"kernel/no_such": "1"}}, "no such file"),
    ],
)
async def test_a_holder_that_cannot_be_made_is_refused_with_the_cause_and_the_monitor_goes_on(
    spawner: SpawnerClient, tmp_path: Path, group: str, changes: dict[str, Any], told: str
) -> None:
    client = await up(spawner, tmp_path / "pod")
    with pytest.raises(CriError, match=told):
        await hold(client, tmp_path, group, **changes)
    assert (await client.request("hello", timeout_s=60))["holder"] == 0
    await hold(client, tmp_path, group)
    await end(client)


def commanded(group: str, *, probed: bool, dumpable: bool = False) -> list[Step]:
    """All steps but execve, as the holder's root is empty; ``probed``: each looks whether it is dumpable, too."""
    rights = exec_steps.Rights(capget()[1], 40, {})
    process = {"env": [], "cwd": "/"}
    common = exec_steps.template(process, exec_steps.Identity(1000, 1000, (), "/"), None, rights)
    found = exec_steps.steps(common, ["/bin/true"], detect().exec_scope(group, "exec-1"))
    found = [step for step in found if step.then not in (Then.TRY, Then.GIVE_UP)] + [Step("exit_group", (0,))]
    if dumpable:
        found = [step for step in found if step.arguments[:1] != (PR_SET_DUMPABLE,)]
    probe = Step("prctl", (PR_GET_DUMPABLE,), Then.FORK)  # 0 goes on, 1 is reported and the end
    return [step for each in found for step in ((each, probe) if probed else (each,))]


def executed(steps: list[Step], group: str, pid: int, target: int = -1) -> tuple[Report | None, int]:
    """What it reports, and how it ends."""
    program, null = in_memory(make_program(steps)), os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    target = target if target >= 0 else os.pidfd_open(pid)
    try:
        child, parent = runtime_exec.start(program, target, Stdio(null, null, null))
        report, _ = runtime_exec.hear_with_terminal(parent)
        parent.close()
        return report, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for fd in (program, null, target):
            os.close(fd)
        detect().exec_scope(group, "exec-1").drop()


async def test_an_exec_can_not_be_looked_into_at_any_step(spawner: SpawnerClient, tmp_path: Path, group: str) -> None:
    client = await up(spawner, tmp_path / "pod")
    holder = await hold(client, tmp_path, group)
    assert executed(commanded(group, probed=True), group, holder) == (None, 0)
    with pytest.raises(ChildProcessError):  # 1, where the pid of a child is told
        executed(commanded(group, probed=True, dumpable=True), group, holder)
    await end(client)


async def test_an_exec_tells_which_step_failed_and_why(spawner: SpawnerClient, tmp_path: Path, group: str) -> None:
    client = await up(spawner, tmp_path / "pod")
    holder = await hold(client, tmp_path, group)
    steps = commanded(group, probed=False)
    at = next(number for number, step in enumerate(steps) if step.call == "chdir")
    steps[at] = Step("chdir", (b"/nowhere/at/all\0",))
    assert executed(steps, group, holder) == (Report(at, errno.ENOENT), 128)
    steps[2] = Step("setns", (4, CLONE_NEWUSER))  # of the first process, before it has forked
    with pytest.raises(runtime_exec.StepFailed) as failed:
        executed(steps, group, holder)
    assert failed.value.report == Report(2, errno.EINVAL)
    await end(client)


async def test_what_an_exec_reports_never_overtakes_its_pid(spawner: SpawnerClient, tmp_path: Path, group: str) -> None:
    """On one CPU the child may come first, and it fails at once."""
    client = await up(spawner, tmp_path / "pod")
    holder = await hold(client, tmp_path, group)
    steps = commanded(group, probed=False)
    allowed = next(number for number, step in enumerate(steps) if step.call == "read") + 2
    steps[allowed:] = [Step("chdir", (b"/nowhere/at/all\0",))]
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        for _ in range(50):
            assert executed(steps, group, holder) == (Report(allowed, errno.ENOENT), 128)
    finally:
        os.sched_setaffinity(0, mask)
    await end(client)


@pytest.mark.parametrize(("word", "ran"), [(b"g", True), (b"", False)])
def test_an_exec_whose_pid_nobody_knows_runs_no_command(tmp_path: Path, group: str, word: bytes, ran: bool) -> None:
    """Where its first process is killed between the fork and its report, the child reads no word but an end."""
    steps = commanded(group, probed=False)
    read = next(number for number, step in enumerate(steps) if step.call == "read")
    made = Step("mkdirat", (-100, os.fsencode(tmp_path / "ran") + b"\0", 0o700))
    program = in_memory(make_program([*steps[read : read + 2], made, Step("exit_group", (0,))]))
    parent = Parent()
    actions = [(os.POSIX_SPAWN_DUP2, parent.child_fd, 3)]
    child = os.posix_spawn(f"/proc/self/fd/{program}", ["exec"], {}, file_actions=actions)
    parent.started()
    if word:
        parent.go()
    parent.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if ran else 128)
    assert (tmp_path / "ran").exists() == ran
    os.close(program)


async def test_an_exec_in_what_has_ended_is_a_matter_of_its_state(
    spawner: SpawnerClient, tmp_path: Path, group: str
) -> None:
    client = await up(spawner, tmp_path / "pod")
    holder = await hold(client, tmp_path, group)
    steps = commanded(group, probed=False)
    target = os.pidfd_open(holder)
    os.kill(holder, signal.SIGKILL)
    await gone(holder)
    with pytest.raises(runtime_exec.StepFailed) as failed:
        executed(steps, group, holder, target)
    refused = exec_steps.refusal(steps[failed.value.report.step], failed.value.report.number)
    assert isinstance(refused, FailedPrecondition)
    assert str(refused) == "the container is ending"
    await end(client)


def test_what_the_second_process_does_is_not_waited_for_when_the_first_is_killed() -> None:
    """It holds the same end of the pair, and it may be frozen in its container."""
    parent, (reading, writing) = Parent(), os.pipe2(os.O_CLOEXEC)
    first = syscalls.clone3(0)
    if first == 0:
        if syscalls.clone3(0, exit_signal=0) == 0:
            os.close(writing)
            os.read(reading, 1)  # until the test ends
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    parent.started()
    with pytest.raises(ChildError, match="status 9 and said nothing"):
        runtime_exec.await_second(parent, first)
    os.close(reading)
    os.close(writing)


def test_an_exec_that_has_been_reaped_is_not_killed_again() -> None:
    """Its pid may be another's; here it is nobody's."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    parent = Parent()
    process = ExecProcess(1, b"exec-1", pid, parent, detect().exec_scope("/nowhere", "exec-1"))
    process.status = 0
    process.kill()
    process.hear()
    parent.started()


async def test_what_a_monitor_does_not_have_is_missing(spawner: SpawnerClient, tmp_path: Path) -> None:
    client = await up(spawner, tmp_path / "pod")
    for word in ("start", "kill", "reopen", "abandon", "exec"):
        with pytest.raises(NotFound, match="no container x"):
            await client.request(word, timeout_s=60, id="x", name="e", signal=9, all=True)
    await end(client)


async def test_a_session_with_what_is_not_there_leaves_nothing_open(spawner: SpawnerClient, tmp_path: Path) -> None:
    client = await up(spawner, tmp_path / "pod")
    before = sorted(os.listdir(f"/proc/{client.pid}/fd"))
    with socket.socket() as stand_in:
        for kind, error in (("exec", NotFound), ("attach", NotFound), ("portforward", CriError)):
            with pytest.raises(error):
                await client.request(
                    "stream", timeout_s=60, fds=(stand_in.fileno(),), kind=kind, id="x", name="e", stdin=True
                )
    await client.request("hello", timeout_s=60)  # the answer to the last is sent before what came with it is closed
    assert sorted(os.listdir(f"/proc/{client.pid}/fd")) == before
    await end(client)


async def test_a_stopped_monitor_is_given_up(spawner: SpawnerClient, tmp_path: Path) -> None:
    client = await up(spawner, tmp_path / "pod")
    os.kill(client.pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await client.request("hello", timeout_s=0.05)
    os.kill(client.pid, signal.SIGCONT)
    await end(client)


async def test_a_dead_spawner_is_replaced_and_its_monitors_live_on(spawner: SpawnerClient, tmp_path: Path) -> None:
    first = await up(spawner, tmp_path / "one")
    started: list[int] = []
    spawner.on_start = lambda: started.append(spawner.pid)
    dead = spawner.pid
    os.kill(dead, signal.SIGKILL)
    await gone(dead, "Z")
    second = await up(spawner, tmp_path / "two")
    assert started == [spawner.pid]
    assert spawner.pid != dead
    assert state_of(dead) == ""  # collected
    for client in (first, second):
        assert (await client.request("hello", timeout_s=60))["pid"] == client.pid
        await end(client)
