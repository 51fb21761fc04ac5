"""ExecSync: output, exit code, limits, and the end of everything that it started."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cri_py.cgroups import detect
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import PATIENCE_S, Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon

CAP = 16 << 20


@pytest.fixture
def container(kubelet: Kubelet, pod: Pod) -> str:
    return kubelet.run(pod, "sleep", "1000")


def programs(kubelet: Kubelet, container: str) -> str:
    return kubelet.shell(container, "ps -o args")


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["echo", "out"], (b"out\n", b"", 0)),
        (["sh", "-c", "echo oh >&2; exit 7"], (b"", b"oh\n", 7)),
        (["sh", "-c", "printf '\\000\\377'"], (b"\0\xff", b"", 0)),
        (["sh", "-c", "kill -9 $$"], (b"", b"", 137)),
        (["sh", "-c", "kill -TERM $$"], (b"", b"", 143)),
        (["cat"], (b"", b"", 0)),
        (["sh", "-c", "echo $PATH $HOME"], (b"/bin /root\n", b"", 0)),
    ],
    ids=["stdout", "stderr and code", "binary", "SIGKILL", "SIGTERM", "stdin is empty", "environment"],
)
def test_a_command_is_answered_with_what_it_said(
    kubelet: Kubelet, container: str, command: list[str], answer: tuple[bytes, bytes, int]
) -> None:
    got = kubelet.exec(container, *command)
    assert (got.stdout, got.stderr, got.exit_code) == answer


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "/etc/not-executable"])
def test_a_program_that_cannot_be_executed_is_named(kubelet: Kubelet, container: str, program: str) -> None:
    with refused("UNKNOWN", f'"{program}"'):
        kubelet.exec(container, program)


def test_a_command_past_its_time_is_killed_with_all_that_it_started(kubelet: Kubelet, container: str) -> None:
    before = time.monotonic()
    with refused("DEADLINE_EXCEEDED", "1 s"):
        kubelet.exec(container, "sh", "-c", "sleep 2001 & setsid sleep 2002 & sleep 2003", timeout_s=1)
    assert time.monotonic() - before >= 1.0
    left = programs(kubelet, container)
    assert "sleep 1000" in left
    assert "sleep 200" not in left


def test_a_command_whose_caller_leaves_is_killed(kubelet: Kubelet, container: str) -> None:
    with refused("DEADLINE_EXCEEDED"):
        kubelet.ExecSync(deadline_s=0.3, container_id=container, cmd=["sleep", "2004"], timeout=30)
    wait_for(lambda: programs(kubelet, container), lambda left: "sleep 2004" not in left)


def test_a_background_child_that_keeps_the_pipe_delays_nothing_for_long(kubelet: Kubelet, container: str) -> None:
    answer = kubelet.exec(container, "sh", "-c", "sleep 1000 & echo out")
    assert (answer.stdout, answer.exit_code) == (b"out\n", 0)


@pytest.mark.parametrize("redirection", ["", ">&2"], ids=["stdout", "stderr"])
def test_output_is_cut_at_16_mib(kubelet: Kubelet, container: str, redirection: str) -> None:
    answer = kubelet.exec(container, "sh", "-c", f"head -c {CAP + 100_000} /dev/zero {redirection}; exit 3")
    longer, other = (answer.stderr, answer.stdout) if redirection else (answer.stdout, answer.stderr)
    assert (len(longer), other, answer.exit_code) == (CAP, b"", 3)


def test_many_commands_run_at_the_same_time(kubelet: Kubelet, container: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: kubelet.exec(container, "sh", "-c", f"echo {n}; exit {n}"), range(40)))
    assert [(answer.stdout, answer.exit_code) for answer in answers] == [(f"{n}\n".encode(), n) for n in range(40)]


def test_a_command_runs_as_the_container_does(kubelet: Kubelet, pod: Pod) -> None:
    context = pb.LinuxContainerSecurityContext(
        run_as_username="alice",
        supplemental_groups=[77],
        capabilities=pb.Capability(drop_capabilities=["ALL"]),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
    )
    container = kubelet.run(
        pod,
        "sleep",
        "1000",
        working_dir="/tmp/made/here",
        envs=[pb.KeyValue(key="GREETING", value=b"h\xffi")],
        linux=pb.LinuxContainerConfig(security_context=context),
    )
    assert kubelet.shell(container, "id -u; id -g; id -G; pwd") == "1000\n1000\n1000 29 44 77\n/tmp/made/here\n"
    groups = [kubelet.shell(container, f"head -1 /proc/{pid}/cgroup").strip() for pid in ("self", "1")]
    assert re.sub("exec-[0-9a-f-]+$", "", groups[0]) == groups[1]  # v2 has a group below for each command
    assert kubelet.exec(container, "sh", "-c", "printf %s $GREETING").stdout == b"h\xffi"
    status = kubelet.shell(container, "cat /proc/self/status")
    assert "CapBnd:\t0000000000000000" in status
    assert "Seccomp:\t2" in status
    links = "for n in mnt pid net ipc uts cgroup; do readlink /proc/{}/ns/$n; done"
    assert kubelet.shell(container, links.format("self")) == kubelet.shell(container, links.format("1"))


def test_a_command_in_a_shared_pid_namespace_ends_with_its_timeout(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.pid = pb.POD
    asked = kubelet.container_config("sleep", "1000")
    asked.linux.security_context.namespace_options.pid = pb.POD
    container = kubelet.create(kubelet.run_pod(config), config=asked)
    kubelet.start(container)
    with refused("DEADLINE_EXCEEDED"):
        kubelet.exec(container, "sh", "-c", "setsid sleep 2005 & sleep 2006", timeout_s=1)
    assert "sleep 200" not in programs(kubelet, container)


def test_an_exec_leaves_no_descriptor_and_no_process(kubelet: Kubelet, container: str, daemon: Daemon) -> None:
    kubelet.exec(container, "true")
    kubelet.ListPodSandboxStats()  # statistics open the files of new groups within a second, at the latest when asked
    kubelet.ListContainerStats()
    descriptors, processes = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), daemon.processes()
    for _ in range(20):
        kubelet.exec(container, "true")
    wait_for(lambda: len(list(Path(f"/proc/{daemon.pid}/fd").iterdir())), lambda now: now <= descriptors)
    wait_for(daemon.processes, lambda now: now == processes)


def test_a_container_that_ends_takes_its_commands_along(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(kubelet.exec, container, "sleep", "2007")
        wait_for(lambda: programs(kubelet, container), lambda seen: "sleep 2007" in seen)
        kubelet.stop(container)
        assert running.result(timeout=PATIENCE_S).exit_code == 137


def groups_of_execs(daemon: Daemon) -> list[str]:
    return [path for path in daemon.cgroups() if "/exec-" in path]


def test_the_groups_of_what_commands_left_behind_go_with_later_commands(
    kubelet: Kubelet, container: str, daemon: Daemon
) -> None:
    for _ in range(5):
        kubelet.exec(container, "sh", "-c", "sleep 2011 </dev/null >/dev/null 2>&1 &")
    assert len(groups_of_execs(daemon)) >= 5
    kubelet.exec(container, "killall", "sleep")

    def after_another() -> list[str]:
        kubelet.exec(container, "true")
        return groups_of_execs(daemon)

    wait_for(after_another, lambda left: len(left) <= 1)  # its own may be there still


def test_a_command_that_can_not_be_killed_yet_delays_nobody_else(
    kubelet: Kubelet, pod: Pod, container: str, daemon: Daemon
) -> None:
    other = kubelet.run(pod, "sleep", "1000", name="other")
    groups = detect()
    (path,) = {
        path.removeprefix(mount)
        for mount in groups.mounts
        for path in daemon.cgroups()
        if path.startswith(f"{mount}/") and path.endswith(container)
    }
    groups.freeze(path)
    try:
        with ThreadPoolExecutor(1) as pool:
            frozen = pool.submit(kubelet.ExecSync, container_id=container, cmd=["true"], timeout=1)
            slowest, until = 0.0, time.monotonic() + 2.5
            while time.monotonic() < until:
                before = time.monotonic()
                kubelet.exec(other, "true")
                slowest = max(slowest, time.monotonic() - before)
            groups.thaw(path)
            with refused("DEADLINE_EXCEEDED"):
                frozen.result()
    finally:
        groups.thaw(path)
    assert slowest < 2.5, "a monitor that waited itself would be busy for five seconds, until it gives the killing up"
    assert kubelet.exec(container, "true").exit_code == 0


@pytest.mark.parametrize("whose", ["self", "1"])
def test_no_process_can_change_the_node_s_dev_null(kubelet: Kubelet, container: str, whose: str) -> None:
    """Its stdin is one; its mode, say, is root's to change, and root it is."""
    before = os.stat("/dev/null")
    try:
        for change in ("chmod 600", "chown 1000", "touch -d 2001-01-01"):
            said = kubelet.shell(container, f"{change} /proc/{whose}/fd/0 2>&1; true")
            assert "Read-only file system" in said
        after = os.stat("/dev/null")
    finally:
        os.chmod("/dev/null", 0o666)
        os.chown("/dev/null", 0, 0)
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)
    assert kubelet.shell(container, f"wc -c < /proc/{whose}/fd/0") == "0\n"
