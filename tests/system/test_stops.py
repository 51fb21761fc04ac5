"""How containers end: signals, grace periods, exit codes and reasons."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, CUSTOM
from tests.simulators.kubelet import PATIENCE_S, Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon

# Says which signal it got, and ends by it.
LISTENER = (
    'for s in HUP INT TERM USR1 USR2; do trap "echo $s; exit 9" $s; done; echo ready; while :; do sleep 0.01; done'
)


def ready(kubelet: Kubelet, container: str) -> str:
    wait_for(lambda: kubelet.log(container), lambda lines: any(line.text == b"ready" for line in lines))
    return container


@pytest.mark.parametrize(
    ("asked", "image", "signal"),
    [
        (pb.SIGNAL_RUNTIME_DEFAULT, BUSYBOX, "TERM"),
        (pb.SIGNAL_RUNTIME_DEFAULT, CUSTOM, "USR1"),
        (pb.SIGNAL_SIGUSR2, BUSYBOX, "USR2"),
        (pb.SIGNAL_SIGINT, CUSTOM, "INT"),
    ],
    ids=["default", "image", "config", "config before image"],
)
def test_the_stop_signal_is_the_configs_or_the_images_or_term(
    kubelet: Kubelet, pod: Pod, asked: int, image: str, signal: str
) -> None:
    container = ready(kubelet, kubelet.run(pod, "sh", "-c", LISTENER, stop_signal=asked, image=image))
    assert kubelet.status(container).stop_signal == pb.Signal.Value(f"SIGNAL_SIG{signal}")
    kubelet.stop(container, timeout_s=10)
    assert kubelet.log(container)[-1].text == signal.encode()
    status = kubelet.status(container)
    assert (status.exit_code, status.reason) == (9, "Error")


def test_after_the_grace_period_comes_sigkill(kubelet: Kubelet, pod: Pod) -> None:
    container = ready(kubelet, kubelet.run(pod, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    before = time.monotonic()
    kubelet.stop(container, timeout_s=1)
    assert time.monotonic() - before >= 1.0
    status = kubelet.status(container)
    assert (status.exit_code, status.reason) == (137, "Error")


def test_a_stop_without_grace_kills_at_once(kubelet: Kubelet, pod: Pod) -> None:
    container = ready(kubelet, kubelet.run(pod, "sh", "-c", LISTENER))
    kubelet.stop(container, timeout_s=0)
    assert kubelet.status(container).exit_code == 137
    assert [line.text for line in kubelet.log(container)] == [b"ready"]


def test_a_shorter_timeout_overrides_the_one_that_runs(kubelet: Kubelet, pod: Pod) -> None:
    container = ready(kubelet, kubelet.run(pod, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(kubelet.stop, container, 600)
        kubelet.stop(container, timeout_s=1)
        patient.result(timeout=PATIENCE_S)
    assert kubelet.status(container).exit_code == 137


def test_a_caller_that_leaves_does_not_end_the_stop_for_others(kubelet: Kubelet, pod: Pod) -> None:
    container = ready(kubelet, kubelet.run(pod, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    with refused("DEADLINE_EXCEEDED"):
        kubelet.StopContainer(deadline_s=0.2, container_id=container, timeout=600)
    kubelet.stop(container, timeout_s=0)
    assert kubelet.status(container).exit_code == 137


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, "Completed"),
        ("exit 1", 1, "Error"),
        ("exit 255", 255, "Error"),
    ],
)
def test_the_reason_follows_the_exit_code(kubelet: Kubelet, pod: Pod, script: str, code: int, reason: str) -> None:
    status, _ = kubelet.outcome(pod, "sh", "-c", script)
    assert (status.exit_code, status.reason) == (code, reason)


def test_a_container_that_needs_more_memory_than_it_may_is_oom_killed(kubelet: Kubelet, pod: Pod) -> None:
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20, memory_swap_limit_in_bytes=16 << 20)
    status, _ = kubelet.outcome(
        pod,
        "sh",
        "-c",
        "exec tail -c 1000000000 /dev/zero",
        linux=pb.LinuxContainerConfig(resources=resources),
    )
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


Spoil = Callable[[pb.ContainerConfig], None]


def as_it_is(_: pb.ContainerConfig) -> None:
    """Nothing else is wrong."""


def file_in_the_way(config: pb.ContainerConfig) -> None:
    config.working_dir = "/etc/passwd/below"


def unknown_user(config: pb.ContainerConfig) -> None:
    config.linux.security_context.run_as_username = "bob"


def forbidden_directory(config: pb.ContainerConfig) -> None:
    config.working_dir = "/root"
    config.linux.security_context.run_as_user.value = 1000
    config.linux.security_context.capabilities.drop_capabilities.append("ALL")


@pytest.mark.parametrize(
    ("command", "spoil", "words"),
    [
        (["no-such-program"], as_it_is, ["no-such-program", "not found in $PATH"]),
        (["/no/such/program"], as_it_is, ["/no/such/program", "no such file"]),
        (["/etc/not-executable"], as_it_is, ["/etc/not-executable", "permission denied"]),
        (["/bin"], as_it_is, ["/bin", "permission denied"]),
        (["true"], file_in_the_way, ["working directory", "/etc/passwd/below"]),
        (["true"], forbidden_directory, ["working directory", "/root"]),
        (["true"], unknown_user, ["user bob", "/etc/passwd"]),
    ],
    ids=["not in PATH", "no file", "not executable", "directory", "no directory", "forbidden directory", "no user"],
)
def test_what_cannot_start_ends_as_start_error_with_the_cause(
    kubelet: Kubelet, pod: Pod, command: list[str], spoil: Spoil, words: list[str]
) -> None:
    config = kubelet.container_config(*command)
    spoil(config)
    container = kubelet.create(pod, config=config)
    with refused("UNKNOWN", *words):
        kubelet.start(container)
    status = kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert all(word in status.message for word in words)
    assert status.finished_at >= status.created_at


def test_the_end_of_the_first_process_ends_what_it_started(kubelet: Kubelet, pod: Pod, daemon: Daemon) -> None:
    before = daemon.processes()
    kubelet.wait(kubelet.run(pod, "sh", "-c", "sleep 1000 & setsid sleep 1000 & exit 0"))
    wait_for(daemon.processes, lambda now: now == before)


def test_times_are_those_of_the_events(kubelet: Kubelet, pod: Pod) -> None:
    before = time.time_ns()
    container = kubelet.run(pod, "sleep", "0.2")
    status = kubelet.wait(container)
    assert before <= status.created_at <= status.started_at
    assert status.finished_at - status.started_at >= 200e6
    assert status.finished_at <= time.time_ns()


def test_the_writable_layer_is_the_containers_own(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    first = kubelet.run(pod, "sh", "-c", "echo changed > /etc/passwd; rm /bin/id; sleep 1000", name="first")
    wait_for(lambda: kubelet.shell(first, "cat /etc/passwd"), lambda text: text == "changed\n")
    assert (
        kubelet.outcome(pod, "sh", "-c", "head -1 /etc/passwd; ls /bin/id")[1]
        == "root:x:0:0:root:/root:/bin/sh\n/bin/id\n"
    )


def test_a_container_that_somebody_has_frozen_is_stopped(kubelet: Kubelet, pod: Pod) -> None:
    """On cgroup v1 SIGKILL waits until it is thawed."""
    container = kubelet.run(pod, "sleep", "1000")
    info = json.loads(kubelet.ContainerStatus(container_id=container, verbose=True).info["info"])
    for directory in info["cgroupPaths"]:
        for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (file := Path(directory, name)).exists():
                file.write_text(word)
    kubelet.StopContainer(container_id=container, timeout=0)
    assert kubelet.status(container).exit_code == 137
