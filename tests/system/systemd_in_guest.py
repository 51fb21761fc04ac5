"""The systemd cgroup driver for real: only in the guest, where systemd is init, so pytest finds this file only by its
name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, CUSTOM
from tests.simulators.kubelet import Kubelet, Pod
from tests.simulators.registry import RegistrySimulator
from tests.system.daemon import Daemon

CGROUPS = Path("/sys/fs/cgroup")


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit, as systemctl prints them."""
    asked = subprocess.run(
        ["systemctl", "show", unit, f"--property={','.join(names)}"], check=True, capture_output=True, text=True
    )
    return dict(line.split("=", 1) for line in asked.stdout.splitlines())


def units(pattern: str = "cri-py-*") -> list[str]:
    listed = subprocess.run(
        ["systemctl", "list-units", "--all", "--plain", "--no-legend", pattern],
        check=True,
        capture_output=True,
        text=True,
    )
    return [line.split()[0] for line in listed.stdout.splitlines()]


@pytest.fixture(scope="session")
def daemon(registry: RegistrySimulator) -> Iterator[Daemon]:
    """One for all tests, with the driver systemd."""
    serving = Daemon(registry.url, driver="systemd")
    try:
        serving.start()
        serving.kubelet.pull(BUSYBOX)
        serving.kubelet.pull(CUSTOM)
        serving.kubelet.remove_pod(serving.kubelet.run_pod())
        serving.remember()
        yield serving
    finally:
        serving.destroy()


def test_a_container_lives_in_a_scope_of_its_pods_slice(kubelet: Kubelet, pod: Pod) -> None:
    assert kubelet.RuntimeConfig().linux.cgroup_driver == pb.SYSTEMD
    container = kubelet.run(pod, "sleep", "1000")
    print(subprocess.run(["systemd-cgls", "--no-pager"], check=True, capture_output=True, text=True).stdout)
    scope = f"cri-py-{container}.scope"
    shown = show(scope, "ActiveState", "Slice", "ControlGroup", "Delegate", "CPUWeight", "TasksMax")
    print(shown)
    assert shown["ActiveState"] == "active"
    assert shown["Slice"] == pod.config.linux.cgroup_parent
    assert shown["Delegate"] == "yes"
    assert kubelet.exec(container, "echo", "hello").stdout == b"hello\n"
    kubelet.stop(container, 1)
    kubelet.RemoveContainer(container_id=container)
    assert scope not in units()
    kubelet.remove_pod(pod)
    print(units("cri*"))
    assert not units()
