"""Devices in containers: those that the kubelet names and those of CDI files."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon

# What a vendor's hook does: it finds the container's root by its state, and changes it.
LINKING = r"""root=$(sed 's/.*"bundle": *"\([^"]*\)".*/\1/')/rootfs; ln -s gpu.so $root/usr/lib/gpu.so.1; echo done"""


def numbers(kubelet: Kubelet, container: str, path: str) -> str:
    return kubelet.shell(container, f"stat -c '%F %t:%T' {path}").strip()


def kmsg(**fields: Any) -> pb.Device:
    return pb.Device(**{"host_path": "/dev/kmsg", "container_path": "/dev/kmsg", "permissions": "rw", **fields})


def test_a_device_is_there_with_the_access_that_was_asked_for(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    os.mknod(tmp_path / "log", 0o20666, os.makedev(1, 11))
    (tmp_path / "link").symlink_to("log")
    devices = [
        kmsg(container_path="/opt/deep/log", permissions="r"),
        kmsg(host_path=str(tmp_path / "link"), container_path="/dev/linked", permissions="r"),
    ]
    reading = pb.LinuxContainerSecurityContext(capabilities=pb.Capability(add_capabilities=["SYSLOG"]))
    container = kubelet.run(
        pod, "sleep", "1000", devices=devices, linux=pb.LinuxContainerConfig(security_context=reading)
    )
    for path in ("/opt/deep/log", "/dev/linked"):
        assert numbers(kubelet, container, path) == "character special file 1:b"
    assert "not permitted" in kubelet.shell(container, "(echo x > /dev/linked) 2>&1; true")
    assert kubelet.shell(container, "dd if=/opt/deep/log bs=8192 count=1 2>/dev/null | wc -c").strip() != "0"


def test_a_directory_brings_all_devices_in_it(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.mknod(tmp_path / "one", 0o20600, os.makedev(1, 11))
    os.mknod(tmp_path / "sub" / "two", 0o20600, os.makedev(1, 11))
    (tmp_path / "link").symlink_to("/dev/mem")
    container = kubelet.run(pod, "sleep", "1000", devices=[kmsg(host_path=str(tmp_path), container_path="/dev/gpu")])
    assert kubelet.shell(container, "cd /dev/gpu; find . -type c | sort").split() == ["./one", "./sub/two"]


def test_a_file_of_the_image_is_not_taken_for_a_device(kubelet: Kubelet, pod: Pod) -> None:
    with refused("FAILED_PRECONDITION", "/etc/passwd", "device"):
        kubelet.create(pod, "true", devices=[kmsg(container_path="/etc/passwd")])
    assert not kubelet.ListContainers().containers


@pytest.mark.parametrize("path", ["/tmp/kmsg", "/dev/kmsg"])
def test_a_device_that_was_not_given_can_be_made_but_not_opened(kubelet: Kubelet, pod: Pod, path: str) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    for kind, major, minor in (("c", 1, 11), ("c", 1, 1), ("b", 8, 0), ("b", 254, 0), ("c", 10, 229)):
        kubelet.shell(container, f"rm -f {path}; mknod {path} {kind} {major} {minor}")
        said = kubelet.shell(container, f"head -c 1 {path} 2>&1; (echo x > {path}) 2>&1; true")
        assert said.count("Operation not permitted") == 2, (kind, major, minor, said)


def test_a_privileged_container_has_all_devices_of_the_node(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    asked = kubelet.container_config("sleep", "1000")
    asked.linux.security_context.privileged = True
    container = kubelet.run(kubelet.run_pod(config), config=asked)
    assert numbers(kubelet, container, "/dev/kmsg") == "character special file 1:b"
    assert kubelet.shell(container, "dd if=/dev/kmsg bs=8192 count=1 2>/dev/null | wc -c").strip() != "0"


# --------------------------------------------------------------------- CDI


@pytest.fixture(scope="module")
def looking(
    make_shared_daemon: Callable[[str], Daemon], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Daemon, Path]:
    """A daemon that looks for CDI files in a directory of its own."""
    files = tmp_path_factory.mktemp("cdi")
    settings = f'[runtime]\ncdi_spec_dirs = ["{files}"]\ndevice_ownership_from_security_context = true\n'
    return make_shared_daemon(settings), files


@pytest.fixture
def cdi(looking: tuple[Daemon, Path]) -> Iterator[tuple[Kubelet, Path]]:
    daemon, files = looking
    yield daemon.kubelet, files
    daemon.kubelet.sweep()
    for file in files.iterdir():
        file.unlink()
    assert daemon.left_over() == []


def test_a_cdi_device_brings_nodes_environment_mounts_and_groups(cdi: tuple[Kubelet, Path], tmp_path: Path) -> None:
    kubelet, files = cdi
    (tmp_path / "library").write_text("of the vendor\n")
    edits = {
        "env": ["GPU=0"],
        "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/kmsg"}],
        "mounts": [{"hostPath": f"{tmp_path}/library", "containerPath": "/usr/lib/gpu.so", "options": ["ro", "bind"]}],
        "additionalGids": [44],
        "hooks": [{"hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", LINKING]}],
    }
    content = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/gpu",
        "containerEdits": {"env": ["COMMON=1"]},
        "devices": [{"name": "0", "containerEdits": edits}],
    }
    (files / "vendor.json").write_text(json.dumps(content))
    (files / "bad.yaml").write_text("kind: [")
    pod = kubelet.run_pod()
    for name, fields in (
        ("field", {"CDI_devices": [pb.CDIDevice(name="vendor.com/gpu=0")]}),
        ("annotation", {"annotations": {"cdi.k8s.io/plugin_1": "vendor.com/gpu=0"}}),
    ):
        context = pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=1000))
        asked = kubelet.container_config(
            *("sleep", "1000"), name=name, linux=pb.LinuxContainerConfig(security_context=context), **fields
        )
        container = kubelet.run(pod, config=asked)
        said = kubelet.shell(container, "echo $GPU$COMMON; id -G; cat /usr/lib/gpu.so.1; stat -c %u /dev/gpu0")
        assert said.splitlines() == ["01", "1000 29 44", "of the vendor", "1000"]
        options = kubelet.shell(container, "awk '$5 == \"/usr/lib/gpu.so\" { print $6 }' /proc/self/mountinfo")
        assert options.startswith("ro,")
        assert kubelet.status(container).user.linux.supplemental_groups == [1000, 29, 44]
    with refused("NOT_FOUND", "vendor.com/gpu=1", "bad.yaml"):
        kubelet.create(pod, "true", name="none", CDI_devices=[pb.CDIDevice(name="vendor.com/gpu=1")])


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (
            {"args": ["sh", "-c", "echo no such library >&2; exit 3"]},
            ["createContainer hook /bin/sh", "status 3: no such"],
        ),
        ({"args": ["sh", "-c", "sleep 1000 & sleep 1000"], "timeout": 1}, ["did not end within 1 s"]),
        ({"path": "/bin/not-there"}, ["hook /bin/not-there can't be executed", "No such file"]),
    ],
)
def test_a_hook_that_fails_is_told_and_leaves_nothing(
    cdi: tuple[Kubelet, Path], hook: dict[str, Any], words: list[str]
) -> None:
    kubelet, files = cdi
    edits = {"hooks": [{"hookName": "createContainer", "path": "/bin/sh", **hook}]}
    content = {"cdiVersion": "0.7.0", "kind": "v.com/gpu", "devices": [{"name": "0", "containerEdits": edits}]}
    (files / "vendor.json").write_text(json.dumps(content))
    pod = kubelet.run_pod()
    with refused("FAILED_PRECONDITION", *words):
        kubelet.create(pod, "true", CDI_devices=[pb.CDIDevice(name="v.com/gpu=0")])
    assert not kubelet.ListContainers().containers


def hooking(files: Path, **stages: str) -> list[pb.CDIDevice]:
    """A CDI device with a hook at each stage: a line of shell."""
    hooks = [
        {"hookName": stage, "path": "/bin/sh", "args": ["sh", "-c", line], "timeout": 60}
        for stage, line in stages.items()
    ]
    device = {"name": "0", "containerEdits": {"hooks": hooks}}
    (files / "vendor.json").write_text(json.dumps({"cdiVersion": "1.1.0", "kind": "v.com/gpu", "devices": [device]}))
    return [pb.CDIDevice(name="v.com/gpu=0")]


def test_hooks_run_at_their_turn_where_they_belong(cdi: tuple[Kubelet, Path], tmp_path: Path) -> None:
    kubelet, files = cdi
    noting = f"cat >> {tmp_path}/said; echo >> {tmp_path}/said"
    asked = hooking(
        files,
        createContainer=noting,
        startContainer="cat > /inside; id -u >> /inside; exec 3< /etc/hostname",
        poststart=f"{noting}; test ! -e /inside",
        poststop=noting,
    )
    pod = kubelet.run_pod()
    container = kubelet.create(pod, "sleep", "1000", CDI_devices=asked)
    states = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    assert [state["status"] for state in states] == ["creating"]
    kubelet.start(container)
    state, uid = kubelet.shell(container, "cat /inside").rsplit("}", 1)
    assert (json.loads(state + "}")["status"], uid.strip()) == ("created", "0")
    kubelet.remove(container)
    states = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    assert [state["status"] for state in states] == ["creating", "running", "stopped"]
    assert {state["id"] for state in states} == {container}
    assert states[0]["pid"] == states[1]["pid"]


def test_hooks_after_the_end_run_for_a_pod_that_is_stopped_as_a_whole(
    cdi: tuple[Kubelet, Path], tmp_path: Path
) -> None:
    kubelet, files = cdi
    asked = hooking(files, poststop=f"echo gone >> {tmp_path}/said; exit 1")
    pod = kubelet.run_pod()
    for name in ("one", "other"):
        kubelet.run(pod, "sleep", "1000", name=name, CDI_devices=asked)
    kubelet.stop_pod(pod)
    assert (tmp_path / "said").read_text() == "gone\n" * 2
    kubelet.sweep()
    assert (tmp_path / "said").read_text() == "gone\n" * 2


def test_hooks_after_the_end_run_though_the_monitor_was_killed(
    cdi: tuple[Kubelet, Path], looking: tuple[Daemon, Path], tmp_path: Path
) -> None:
    kubelet, files = cdi
    noting = f"cat >> {tmp_path}/said; echo >> {tmp_path}/said; echo no such device >&2; exit 1"
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000", CDI_devices=hooking(files, poststop=noting))
    (monitor,) = looking[0].monitors()
    os.kill(monitor, signal.SIGKILL)
    wait_for(lambda: kubelet.pod_status(pod).state, lambda state: state == pb.SANDBOX_NOTREADY)
    assert not (tmp_path / "said").exists()
    kubelet.remove_pod(pod)
    (state,) = (json.loads(line) for line in (tmp_path / "said").read_text().splitlines())
    assert (state["id"], state["status"], os.path.basename(state["bundle"])) == (container, "stopped", container)
    assert "the poststop hook /bin/sh failed with status 1: no such device" in looking[0].log_since(0)


@pytest.mark.parametrize("stage", ["startContainer", "poststart"])
def test_a_hook_that_fails_at_the_start_ends_the_container(cdi: tuple[Kubelet, Path], stage: str) -> None:
    kubelet, files = cdi
    asked = hooking(files, **{stage: "echo no driver >&2; exit 3"})
    pod = kubelet.run_pod()
    container = kubelet.create(pod, "sleep", "1000", CDI_devices=asked)
    with refused("UNKNOWN", f"the {stage} hook /bin/sh failed with status 3: no driver"):
        kubelet.start(container)
    status = kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert "no driver" in status.message


def test_an_interface_of_the_node_becomes_the_pods(cdi: tuple[Kubelet, Path]) -> None:
    kubelet, files = cdi
    edits = {"netDevices": [{"hostInterfaceName": "cri-none0", "name": "fast0"}]}
    content = {"cdiVersion": "1.1.0", "kind": "v.com/nic", "devices": [{"name": "0", "containerEdits": edits}]}
    (files / "vendor.json").write_text(json.dumps(content))
    asked = [pb.CDIDevice(name="v.com/nic=0")]
    pod = kubelet.run_pod()
    with refused("NOT_FOUND", "cri-none0"):
        kubelet.create(pod, "true", CDI_devices=asked)
    assert not kubelet.ListContainers().containers
