"""Containers and images that try to get out by what is mounted into them. Listed in docs/SECURITY.md."""

from __future__ import annotations

import ctypes
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, busybox_layer
from tests.simulators.kubelet import Kubelet, Pod, refused
from tests.simulators.registry import RegistrySimulator, symlink, tar_layer
from tests.system.test_userns import FIRST, own, pid_of, run, run_pod

HOSTILE = "registry.test/hostile:1"
UNCONFINED: dict[str, Any] = {"seccomp": pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)}
EVERYTHING: dict[str, Any] = {"capabilities": pb.Capability(add_capabilities=["ALL"]), **UNCONFINED}


@pytest.fixture(params=["the node's users", "users of its own"])
def any_pod(request: pytest.FixtureRequest, kubelet: Kubelet) -> Pod:
    return run_pod(kubelet) if request.param == "users of its own" else kubelet.run_pod()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of the node that must stay as it is."""
    directory = tmp_path / "host"
    directory.mkdir()
    return directory


@pytest.fixture
def linked(kubelet: Kubelet, registry: RegistrySimulator, host: Path) -> Iterator[Callable[[str], str]]:
    """Makes an image in which a path is a link to the node's directory."""

    def make(path: str) -> str:
        registry.push(
            "hostile", "1", [busybox_layer(), tar_layer(symlink(path, str(host)))], config={"Env": ["PATH=/bin"]}
        )
        kubelet.pull(HOSTILE)
        return HOSTILE

    yield make
    kubelet.sweep()
    kubelet.RemoveImage(image=pb.ImageSpec(image=HOSTILE))
    registry.hang_up()


@pytest.mark.parametrize("path", ["dev", "etc", "srv"])
def test_a_directory_of_the_image_that_is_a_link_leads_no_mount_out(
    kubelet: Kubelet, any_pod: Pod, linked: Callable[[str], str], host: Path, path: str
) -> None:
    """Ours (/dev, /etc/hosts) and the kubelet's: all land inside, where the link leads there."""
    image = linked(path)
    volume = host.parent / "volume"
    volume.mkdir()
    mounts = [pb.Mount(container_path=f"/{path}/deep/volume", host_path=str(volume))]
    container = run(kubelet, any_pod, image=image, mounts=mounts)
    assert list(host.iterdir()) == []
    assert kubelet.shell(container, f"ls {host}").split()


@pytest.mark.parametrize("path", ["proc", "sys"])
def test_a_proc_or_sys_that_is_a_link_is_refused(
    kubelet: Kubelet, any_pod: Pod, linked: Callable[[str], str], host: Path, path: str
) -> None:
    image = linked(path)
    with refused("FAILED_PRECONDITION", f"/{path}"):
        run(kubelet, any_pod, image=image)
    assert list(host.iterdir()) == []


def test_a_place_that_turns_into_a_link_meanwhile_leads_no_volume_out(
    kubelet: Kubelet, any_pod: Pod, host: Path, tmp_path: Path
) -> None:
    """A container that shares a volume swaps a directory in it for a link, while others of its pod get volumes mounted
    below (CVE-2021-30465)."""
    shared, volume = tmp_path / "shared", tmp_path / "volume"
    for directory in (shared, volume):
        directory.mkdir()
    (shared / "a").mkdir()
    (shared / "b").symlink_to(f"../../../../../../..{host}")
    (volume / "inside").touch()
    for directory in (shared, shared / "a"):
        directory.chmod(0o777)
    stop, libc, number = threading.Event(), ctypes.CDLL(None), 0

    def swap_once() -> None:
        assert libc.renameat2(-100, bytes(shared / "a"), -100, bytes(shared / "b"), 2) == 0  # RENAME_EXCHANGE

    def swap() -> None:
        while not stop.is_set():
            swap_once()
            time.sleep(0.0005)
            swap_once()
            time.sleep(0.0005 * 1.35**number)  # ever longer a directory, so that some get through

    thread = threading.Thread(target=swap)
    thread.start()
    mounts = [
        pb.Mount(container_path="/shared", host_path=str(shared)),
        pb.Mount(container_path="/shared/a/deep/volume", host_path=str(volume)),
    ]
    try:
        for number in range(25):
            try:
                run(kubelet, any_pod, name=f"c{number}", mounts=mounts)
            except grpc.RpcError as error:  # the place was gone for the moment
                assert error.code().name in {"FAILED_PRECONDITION", "INTERNAL"}  # noqa: PT017
    finally:
        stop.set()
        thread.join()
    assert list(host.iterdir()) == []
    assert str(host) not in Path("/proc/self/mountinfo").read_text()
    if (shared / "a").is_symlink():
        swap_once()
    last = run(kubelet, any_pod, name="last", mounts=mounts)
    assert kubelet.shell(last, "ls /shared/a/deep/volume") == "inside\n", "what was refused was so for the link alone"


def test_a_place_that_the_pods_root_may_not_make_is_refused_by_name(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "shared" / "a").mkdir(parents=True)
    mounts = [
        pb.Mount(container_path="/shared", host_path=str(tmp_path / "shared")),
        pb.Mount(container_path="/shared/a/deep", host_path=str(tmp_path)),
    ]
    with refused("FAILED_PRECONDITION", "/shared/a/deep", "Permission denied"):
        run(kubelet, run_pod(kubelet), mounts=mounts)


def test_a_readonly_volume_is_not_escaped_by_what_is_mounted_below(
    kubelet: Kubelet, any_pod: Pod, tmp_path: Path
) -> None:
    below = tmp_path / "volume" / "below"
    below.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        mount = pb.Mount(container_path="/v", host_path=str(below.parent), readonly=True, recursive_read_only=True)
        container = run(kubelet, any_pod, mounts=[mount])
        script = "touch /v/x /v/below/x; mount -o remount,bind,rw /v/below; umount /v/below; true"
        kubelet.shell(container, f"({script}) 2>&1")
        assert list(below.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", below], check=True)


# ------------------------------------------------------- in a user namespace


def test_root_of_a_user_namespace_has_no_rights_over_the_node(kubelet: Kubelet, tmp_path: Path) -> None:
    """With every capability and without a filter, as a privileged container has it."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    container = run(
        kubelet,
        run_pod(kubelet),
        mounts=[pb.Mount(container_path="/v", host_path=str(tmp_path))],
        security={**EVERYTHING, "masked_paths": [], "readonly_paths": []},
    )
    attempts = (
        "cat /v/secret",
        "chown 0:0 /v/secret",
        "chmod 777 /v/secret",
        "mknod /tmp/disk b 8 0",
        "mknod /dev/disk b 254 0",
        "mount -o remount,rw,dev /dev && mknod /dev/disk b 254 0",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "dmesg -c",
        "chroot /proc/1/root/../../.. cat /v/secret",
        "swapon /v/secret",
    )
    for attempt in attempts:
        answer = kubelet.exec(container, "sh", "-c", f"{attempt} 2>/dev/null")
        assert answer.exit_code != 0, attempt
    assert (secret.read_text(), secret.stat().st_uid) == ("secret", 0)


def test_what_a_user_namespace_writes_is_nobodys_on_the_node(kubelet: Kubelet, tmp_path: Path) -> None:
    """A setuid program that root inside leaves in a volume is no program of the node's root."""
    tmp_path.chmod(0o777)
    container = run(kubelet, run_pod(kubelet), mounts=[pb.Mount(container_path="/v", host_path=str(tmp_path))])
    kubelet.shell(container, "cp /bin/busybox /v/su && chmod 4755 /v/su")
    assert (tmp_path / "su").stat().st_uid == FIRST


def test_two_pods_have_no_users_in_common(kubelet: Kubelet, tmp_path: Path) -> None:
    one = run(kubelet, run_pod(kubelet))
    other = [pb.IDMapping(host_id=FIRST + 65536, container_id=0, length=65536)]
    two = run(kubelet, run_pod(kubelet, own(uids=other, gids=other)))
    uids = {
        Path(f"/proc/{pid_of(kubelet, each)}/status").read_text().split("Uid:\t")[1].split()[0] for each in (one, two)
    }
    assert uids == {str(FIRST), str(FIRST + 65536)}


@pytest.mark.parametrize(
    "attempt",
    [
        "umount /v/hidden; cat /v/hidden/secret",
        "umount -l /v; cat /v/hidden/secret",
        "mount --bind /v /tmp; cat /tmp/hidden/secret",
        "unshare -m sh -c 'umount /v/hidden; cat /v/hidden/secret'",
        "mount -o remount,bind,rw /v; touch /v/x && echo secret",
        "mount -o remount,bind,rw /v/hidden; touch /v/hidden/x && echo secret",
        "mount -o remount,bind,suid,dev,exec /v; /v/program",
        "mount -o remount,bind,rw /image; touch /image/bin/x && echo secret",
    ],
)
def test_mounts_of_the_node_can_not_be_taken_apart_in_a_user_namespace(
    kubelet: Kubelet, tmp_path: Path, attempt: str
) -> None:
    """Root inside may change its mount namespace, but neither reveal what a volume's mounts hide nor take its
    restrictions off, nor write into a layer that other pods share."""
    hidden = tmp_path / "volume" / "hidden"
    hidden.mkdir(parents=True)
    (hidden / "secret").write_text("secret")
    program = hidden.parent / "program"
    program.write_text("#!/bin/sh\necho secret\n")
    program.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", hidden], check=True)
    tmp_path.chmod(0o777)
    hidden.parent.chmod(0o777)
    volume = pb.Mount(
        container_path="/v",
        host_path=str(hidden.parent),
        readonly=True,
        recursive_read_only=True,
        mount_options=["noexec", "nosuid", "nodev"],
    )
    image = pb.Mount(container_path="/image", readonly=True, image=pb.ImageSpec(image=BUSYBOX))
    try:
        container = run(kubelet, run_pod(kubelet), mounts=[volume, image], security=EVERYTHING)
        answer = kubelet.exec(container, "sh", "-c", f"({attempt}) 2>/dev/null")
        assert b"secret" not in answer.stdout
    finally:
        subprocess.run(["umount", "--lazy", hidden], check=True)
