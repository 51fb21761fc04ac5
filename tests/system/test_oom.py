"""Whose end the OOM killer was: exact where it took a child, an exec, or somebody else in the pod."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from cri_py.cgroups import detect
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.simulators.stream_client import StreamClient
from tests.system.daemon import Daemon
from tests.system.test_streaming import exec_url

MIB = 1 << 20
TIGHT = pb.LinuxContainerConfig(
    resources=pb.LinuxContainerResources(memory_limit_in_bytes=24 * MIB, memory_swap_limit_in_bytes=24 * MIB)
)
EATS = "tail -c 1000000000 /dev/zero"
WAITS = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        (f"exec {EATS}", 137, "OOMKilled"),
        (f"{EATS}; exit $?", 137, "OOMKilled"),
        (f"{EATS}; exit 3", 3, "OOMKilled"),
        (f"{EATS}; exit 0", 0, "Completed"),
        ("exit 137", 137, "Error"),
    ],
    ids=["itself", "a child whose end it passes on", "a child that it needs", "a child that it outlives", "not of OOM"],
)
def test_the_reason_is_the_containers_own(kubelet: Kubelet, pod: Pod, script: str, code: int, reason: str) -> None:
    status, _ = kubelet.outcome(pod, "sh", "-c", script, linux=TIGHT)
    assert (status.exit_code, status.reason) == (code, reason)


def execute(kubelet: Kubelet, container: str, script: str, way: str) -> int:
    """The exit code of a shell in the container, by ``way`` of CRI's two, the streamed one with and without a tty."""
    if way == "sync":
        return kubelet.exec(container, "sh", "-c", script).exit_code
    tty = way == "tty"
    with StreamClient(exec_url(kubelet, container, "sh", "-c", script, tty=tty)) as client:
        return client.open("error", "stdout", *(["resize"] if tty else [])).exit_code()


WAYS: Final = pytest.mark.parametrize("way", ["sync", "stream", "tty"])


@WAYS
def test_an_exec_that_was_killed_is_not_the_end_of_its_container(kubelet: Kubelet, pod: Pod, way: str) -> None:
    container = kubelet.run(pod, "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 1", linux=TIGHT)
    assert execute(kubelet, container, f"exec {EATS}", way) == 137
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING
    kubelet.shell(container, "touch /go")
    status = kubelet.wait(container)
    assert (status.exit_code, status.reason) == (1, "Error")


@WAYS
def test_an_exec_that_was_killed_does_not_hide_the_containers_own_end(kubelet: Kubelet, pod: Pod, way: str) -> None:
    script = f"while [ ! -e /go ]; do sleep 0.05; done; exec {EATS}"
    container = kubelet.run(pod, "sh", "-c", script, linux=TIGHT)
    assert execute(kubelet, container, f"exec {EATS}", way) == 137
    kubelet.shell(container, "touch /go")
    assert kubelet.wait(container).reason == "OOMKilled"


@WAYS
def test_an_exec_that_goes_with_its_container_does_not_hide_why(kubelet: Kubelet, pod: Pod, way: str) -> None:
    """The kernel kills it with the pid namespace, and it is reaped before init is."""
    script = f"while [ ! -e /go ]; do sleep 0.05; done; exec {EATS}"
    container = kubelet.run(pod, "sh", "-c", script, linux=TIGHT)
    with ThreadPoolExecutor(1) as pool:
        along = pool.submit(execute, kubelet, container, "touch /go; exec sleep 1000", way)
        status = kubelet.wait(container)
        assert along.result() == 137
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


@WAYS
def test_where_all_are_killed_together_an_exec_does_not_hide_it(kubelet: Kubelet, pod: Pod, way: str) -> None:
    """As a kubelet wants it on cgroup v2, whoever took the memory."""
    whole = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(unified={"memory.oom.group": "1"}))
    if not detect().leaves_only:
        with refused("INVALID_ARGUMENT", "memory.oom.group", "only cgroup v2"):
            kubelet.create(pod, "true", linux=whole)
        return
    whole.MergeFrom(TIGHT)
    container = kubelet.run(pod, "sleep", "1000", linux=whole)
    assert execute(kubelet, container, f"exec {EATS}", way) == 137
    status = kubelet.wait(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_a_stop_after_a_childs_end_is_a_stop(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", f"{EATS}; {WAITS}", linux=TIGHT)
    wait_for(lambda: kubelet.log(container), bool)
    (told,) = [each for each in kubelet.ListPodSandboxMetrics().pod_metrics if each.pod_sandbox_id == pod.id]
    counted = {each.name: each.value.value for each in told.container_metrics[0].metrics}
    assert counted["container_oom_events_total"] == 1
    kubelet.stop(container, timeout_s=10)
    status = kubelet.status(container)
    assert (status.exit_code, status.reason) == (143, "Error")


def test_of_a_pod_that_is_too_small_the_one_that_was_killed_is_told(kubelet: Kubelet, pod: Pod) -> None:
    for group in detect().directories(pod.config.linux.cgroup_parent):
        for name in ("memory.max", "memory.limit_in_bytes", "memory.swap.max", "memory.memsw.limit_in_bytes"):
            if os.path.exists(f"{group}/{name}"):  # as a kubelet does, before it has the pod run
                Path(group, name).write_text("0" if name == "memory.swap.max" else str(32 * MIB))
    other = kubelet.run(pod, "sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; exit 1", name="other")
    eater = kubelet.run(pod, "sh", "-c", f"exec {EATS}", name="eater")
    assert kubelet.wait(eater).reason == "OOMKilled"
    kubelet.shell(other, "touch /go")
    status = kubelet.wait(other)
    assert (status.exit_code, status.reason) == (1, "Error")


def test_the_event_of_the_end_says_so(kubelet: Kubelet, pod: Pod) -> None:
    with kubelet.events() as events:
        container = kubelet.run(pod, "sh", "-c", f"exec {EATS}", linux=TIGHT)
        events.until(lambda event: event.container_event_type == pb.CONTAINER_STOPPED_EVENT)
    (status,) = events.seen[-1].containers_statuses
    assert (status.id, status.exit_code, status.reason) == (container, 137, "OOMKilled")


def test_what_happens_while_no_daemon_runs_is_told_by_the_next(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", f"while [ ! -e /run/go ]; do sleep 0.05; done; exec {EATS}", linux=TIGHT)
    (init,) = detect().processes(f"{pod.config.linux.cgroup_parent}/{container}")[:1]
    root = f"/proc/{init}/root"
    fresh_daemon.kill()
    Path(root, "run").mkdir(exist_ok=True)
    Path(root, "run/go").touch()
    wait_for(lambda: detect().processes(f"{pod.config.linux.cgroup_parent}/{container}"), lambda left: not left)
    fresh_daemon.start()
    status = kubelet.wait(container)
    assert (status.exit_code, status.reason) == (137, "OOMKilled")
