"""The systemd cgroup driver for real: only in the guest, where systemd is init, so pytest finds this file only by its
name."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from cri_py.kernel import faults
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, CUSTOM
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.simulators.registry import RegistrySimulator
from tests.system.daemon import Daemon
from tests.system.test_faults_sweep import Plan
from tests.system.test_limits import (  # the same with this driver, as this file's daemon serves  # noqa: F401
    test_a_cpu_quota_is_met_by_throttling,
    test_a_limit_of_processes_is_met_by_fork,
    test_a_lowered_memory_limit_is_met_by_the_oom_killer,
    test_a_raised_memory_limit_lets_a_container_live,
    test_memory_is_met_by_the_oom_killer,
)

CGROUPS: Final = Path("/sys/fs/cgroup")
DEPLOYED: Final = Path(__file__).resolve().parents[2] / "deploy" / "cri_py.service"
MIB: Final = 1 << 20
SMALL: Final = {"cpu_shares": 512, "cpu_period": 100000, "cpu_quota": 20000, "memory_limit_in_bytes": 64 * MIB}
LARGE: Final = {"cpu_shares": 2048, "cpu_period": 50000, "cpu_quota": 50000, "memory_limit_in_bytes": 128 * MIB}
TIGHT: Final = {"memory_limit_in_bytes": 32 * MIB, "memory_swap_limit_in_bytes": 32 * MIB}
SHOWN: Final = ("CPUWeight", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "MemoryMax", "TasksMax")
SMALL_SHOWN: Final = ("59", "200ms", "100ms", str(64 * MIB), "infinity")
LARGE_SHOWN: Final = ("174", "1s", "50ms", str(128 * MIB), "infinity")
GROW: Final = "tail -c 1000000000 /dev/zero"


def systemctl(*arguments: str) -> str:
    asked = subprocess.run(["systemctl", *arguments], check=False, capture_output=True, text=True)
    assert asked.returncode == 0, (arguments, asked.stdout, asked.stderr)
    return asked.stdout


def show(unit: str, names: Sequence[str]) -> tuple[str, ...]:
    """Properties of a unit, as systemctl prints them."""
    lines = systemctl("show", unit, f"--property={','.join(names)}").splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return tuple(found[name] for name in names)


def units() -> list[str]:
    """Whatever of ours systemd knows, dead and failed ones too."""
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "cri-py-*", "cri_py_test_*")
    return [line.split()[0] for line in listed.splitlines()]


def scope(container: str) -> str:
    return f"cri-py-{container}.scope"


def directory(container: str) -> Path:
    """Of the container's scope."""
    (path,) = show(scope(container), ["ControlGroup"])
    return CGROUPS / path.lstrip("/")


def kernel(group: Path) -> tuple[str, ...]:
    return tuple((group / file).read_text().strip() for file in ("cpu.weight", "cpu.max", "memory.max"))


def limits(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields))


@pytest.fixture(scope="module")
def served(registry: RegistrySimulator) -> Iterator[Daemon]:
    """One for all tests, with the driver systemd."""
    serving = Daemon(registry.url, driver="systemd")
    try:
        begin(serving)
        yield serving
    finally:
        serving.destroy()


@pytest.fixture
def fresh_daemon(registry: RegistrySimulator) -> Iterator[Daemon]:
    serving = Daemon(registry.url, driver="systemd")
    try:
        yield serving
    finally:
        serving.destroy()


@pytest.fixture
def make_daemon(fresh_daemon: Daemon) -> Callable[[], Daemon]:
    """To be called when its environment is as it should be."""

    def make() -> Daemon:
        begin(fresh_daemon)
        return fresh_daemon

    return make


def begin(serving: Daemon) -> None:
    serving.start()
    serving.kubelet.pull(BUSYBOX)
    serving.kubelet.pull(CUSTOM)
    serving.kubelet.remove_pod(serving.kubelet.run_pod())
    serving.remember()


def test_the_driver_is_told_and_found_by_itself(kubelet: Kubelet) -> None:
    assert kubelet.RuntimeConfig().linux.cgroup_driver == pb.SYSTEMD
    for driver in ("auto", "systemd"):
        checked = subprocess.run(
            [sys.executable, "-m", "cri_py", "check", "--cgroup-driver", driver],
            check=False,
            capture_output=True,
            text=True,
        )
        assert "cgroup driver: systemd" in checked.stdout


def test_a_container_lives_in_a_scope_of_its_pods_slice(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    slice_name = pod.config.linux.cgroup_parent
    shown = show(scope(container), ["ActiveState", "Slice", "Delegate"])
    assert shown == ("active", slice_name, "yes")
    stem, _, uid = slice_name.partition("-")
    assert directory(container) == CGROUPS / f"{stem}.slice" / f"{stem}-{uid}" / scope(container)
    holder = f"cri-py-holder-{pod.id}.scope"
    assert show(holder, ["ActiveState", "Slice"]) == ("active", slice_name)
    assert len((directory(container).parent / holder / "cgroup.procs").read_text().split()) == 1


def test_an_exec_and_the_numbers_are_of_the_container_alone(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    assert kubelet.shell(container, "cat /proc/self/cgroup").startswith("0::/")
    assert kubelet.shell(container, "cat /sys/fs/cgroup/pids.current").strip().isdigit()
    stats = kubelet.ContainerStats(container_id=container).stats
    assert stats.memory.working_set_bytes.value > 0
    assert stats.cpu.usage_core_nano_seconds.value > 0


def test_removal_leaves_nothing(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    ended, running = kubelet.run(pod, "true"), kubelet.run(pod, "sleep", "1000", name="other")
    kubelet.wait(ended)
    kubelet.remove(ended)
    assert scope(ended) not in units()
    assert scope(running) in units()
    kubelet.remove_pod(pod)
    # the slice above is ours, and stays some seconds for the next pod
    wait_for(units, lambda found: not found)


def test_a_pod_that_names_no_slice_gets_one_of_ours(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.cgroup_parent = ""
    pod = kubelet.run_pod(config)
    container = kubelet.run(pod, "sleep", "1000")
    assert show(scope(container), ["Slice"])[0].endswith(f"-pod{pod.id}.slice")


def test_a_slice_of_others_is_used_and_left(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.cgroup_parent = "cri_py_other-pod1.slice"
    systemctl("start", "cri_py_other-pod1.slice")
    try:
        pod = kubelet.run_pod(config)
        kubelet.run(pod, "sleep", "1000")
        kubelet.remove_pod(pod)
        assert show("cri_py_other-pod1.slice", ["ActiveState"]) == ("active",)
    finally:
        systemctl("stop", "cri_py_other.slice")


def test_the_form_of_the_other_driver_is_refused(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.cgroup_parent = "/kubepods/burstable/pod1"
    with refused("INVALID_ARGUMENT", "/kubepods/burstable/pod1", "systemd", "kubepods-burstable-podUID.slice"):
        kubelet.run_pod(config)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(SMALL, LARGE, LARGE_SHOWN), (LARGE, SMALL, SMALL_SHOWN)],
    ids=["raised", "lowered"],
)
def test_new_limits_are_properties_too_and_survive_a_daemon_reload(
    kubelet: Kubelet, pod: Pod, before: dict[str, int], after: dict[str, int], told: tuple[str, ...]
) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**before))
    assert show(scope(container), SHOWN) in {SMALL_SHOWN, LARGE_SHOWN} - {told}
    resources = pb.LinuxContainerResources(**after)
    kubelet.UpdateContainerResources(container_id=container, linux=resources)
    seen = kernel(directory(container) / "container")
    assert kernel(directory(container)) == seen
    assert show(scope(container), SHOWN) == told
    systemctl("daemon-reload")
    assert show(scope(container), SHOWN) == told
    assert kernel(directory(container)) == kernel(directory(container) / "container") == seen
    assert kubelet.ContainerStatus(container_id=container).status.resources.linux == resources


def test_an_update_that_is_refused_changes_neither(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL))
    seen = show(scope(container), SHOWN)
    with refused("FAILED_PRECONDITION", "memory_limit_in_bytes"):
        kubelet.UpdateContainerResources(
            container_id=container, linux=pb.LinuxContainerResources(memory_limit_in_bytes=4096)
        )
    assert show(scope(container), SHOWN) == seen
    assert kernel(directory(container)) == kernel(directory(container) / "container")


def test_the_limit_of_processes_is_the_containers_own(kubelet: Kubelet, pod: Pod) -> None:
    linux = limits(unified={"pids.max": "7", "memory.low": str(MIB)})
    container = kubelet.run(pod, "sleep", "1000", linux=linux)
    assert show(scope(container), ["TasksMax", "MemoryLow"]) == ("8", str(MIB))
    assert (directory(container) / "container" / "pids.max").read_text() == "7\n"


def test_a_cpuset_is_a_property_too(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", linux=limits(cpuset_cpus="1", cpuset_mems="0"))
    assert show(scope(container), ["AllowedCPUs", "AllowedMemoryNodes"]) == ("1", "0")
    resources = pb.LinuxContainerResources(cpuset_cpus="0")
    kubelet.UpdateContainerResources(container_id=container, linux=resources)
    assert show(scope(container), ["AllowedCPUs"]) == ("0",)
    systemctl("daemon-reload")
    for group in (directory(container), directory(container) / "container"):
        assert (group / "cpuset.cpus.effective").read_text() == "0\n"


def test_devices_stay_forbidden_after_a_daemon_reload(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "mknod /kmsg c 1 11; sleep 1000")
    wait_for(lambda: kubelet.exec(container, "ls", "/kmsg").exit_code, lambda code: code == 0)
    systemctl("daemon-reload")
    assert "not permitted" in kubelet.shell(container, "cat /kmsg 2>&1; true")


@pytest.mark.parametrize("round_", range(4))
def test_an_oom_kill_is_told_exactly(kubelet: Kubelet, pod: Pod, round_: int) -> None:
    """systemd removes an empty scope at once; who reads the counter must not lose that race."""
    status, _ = kubelet.outcome(pod, "sh", "-c", f"exec {GROW}", linux=limits(**TIGHT))
    assert (status.reason, status.exit_code) == ("OOMKilled", 137), round_


def test_a_child_that_was_killed_for_memory_is_told_too(kubelet: Kubelet, pod: Pod) -> None:
    status, _ = kubelet.outcome(
        pod,
        *("sh", "-c", f"{GROW}; exit 3"),
        linux=limits(**TIGHT),
    )
    assert (status.reason, status.exit_code) == ("OOMKilled", 3)


def test_a_scope_that_somebody_stops_ends_its_container(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1; done")
    kubelet.exec(container, "true")
    systemctl("stop", scope(container))
    assert kubelet.wait(container).exit_code in {7, 143}
    kubelet.remove(container)
    assert scope(container) not in units()
    again = kubelet.run(pod, "sleep", "1000", name="again")
    assert show(scope(again), ["ActiveState"]) == ("active",)


def test_a_pod_outlives_a_crash_of_the_daemon(fresh_daemon: Daemon) -> None:
    begin(fresh_daemon)
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000", linux=limits(**SMALL))
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING
    kubelet.UpdateContainerResources(container_id=container, linux=pb.LinuxContainerResources(**LARGE))
    assert show(scope(container), SHOWN) == LARGE_SHOWN
    kubelet.remove_pod(pod)
    assert fresh_daemon.left_over() == []
    fresh_daemon.stop()
    wait_for(units, lambda found: not any(fresh_daemon.cgroup_parent[1:-6] in unit for unit in found))


@pytest.mark.parametrize("point", ["its process waits", "started", "emptied"])
def test_a_daemon_that_dies_over_a_scope_leaves_nothing_and_the_next_one_does_it(
    make_daemon: Callable[[], Daemon], point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path / "plan"))
    plan = Plan(tmp_path / "plan")
    dying = make_daemon()
    kubelet = dying.kubelet
    pod = kubelet.run_pod()
    ended = kubelet.run(pod, "true", name="ended")
    kubelet.wait(ended)
    plan.set(faults.DAEMON, 1, faults.KILL, f"trace scope: {point}")
    with pytest.raises(grpc.RpcError):
        kubelet.remove(ended) if point == "emptied" else kubelet.create(pod, "sleep", "1000")
    assert plan.clear() == f"trace scope: {point}"
    dying.kill()
    dying.start()
    kubelet.remove(ended)
    wait_for(scopes, lambda found: len(found) == 1)
    wait_for(waiting, lambda found: not found)
    kubelet.run(pod, "sleep", "1000")
    kubelet.remove_pod(pod)
    assert dying.left_over() == []
    assert scopes() == waiting() == []


def scopes() -> list[str]:
    return [unit for unit in units() if unit.endswith(".scope")]


def waiting() -> list[str]:
    """Processes that wait to be told that they are in a scope."""
    links = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            links.append(os.readlink(f"/proc/{pid}/exe"))
    return [link for link in links if "memfd:steps" in link]


def test_pods_outlive_a_restart_and_a_stop_of_the_unit(fresh_daemon: Daemon) -> None:
    """Of the unit that we deploy, but for where the program and its directories are."""
    unit = f"{fresh_daemon.bridge}.service"
    text = DEPLOYED.read_text().replace("/opt/cri_py/.venv/bin/cri-py serve", " ".join(fresh_daemon.command))
    file = Path("/run/systemd/system") / unit
    # The mark by which the test finds its monitors again.
    mark = f"Environment=PATH={os.environ['PATH']}:{fresh_daemon.directory}"
    file.write_text(text.replace("[Service]\n", f"[Service]\n{mark}\n"))
    kubelet = fresh_daemon.kubelet
    try:
        systemctl("daemon-reload")
        systemctl("start", unit)
        kubelet.pull(BUSYBOX)
        pod = kubelet.run_pod()
        container = kubelet.run(pod, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 1; done")
        monitors, (main,) = fresh_daemon.monitors(), show(unit, ["MainPID"])
        systemctl("restart", unit)
        kubelet.disconnect()
        assert show(unit, ["MainPID"]) != (main,)
        assert fresh_daemon.monitors() == monitors
        assert kubelet.status(container).state == pb.CONTAINER_RUNNING
        assert kubelet.exec(container, "echo", "hello").stdout == b"hello\n"
        systemctl("stop", unit)
        assert show(scope(container), ["ActiveState"]) == ("active",)
        systemctl("daemon-reload")
        systemctl("start", unit)
        kubelet.disconnect()
        kubelet.stop(container, 10)
        assert kubelet.status(container).exit_code == 7
        kubelet.remove_pod(pod)
        assert fresh_daemon.processes() == []
        kubelet.disconnect()
    finally:
        systemctl("stop", unit)
        file.unlink()
        systemctl("daemon-reload")
