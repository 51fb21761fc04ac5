"""Mounts below a volume: who sees whose, as Mount.propagation asks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused
from tests.system.daemon import Daemon


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a shared mount, with places in it for the node's and the container's mounts."""
    directory = tmp_path / "volume"
    (directory / "node").mkdir(parents=True)
    (directory / "container").mkdir()
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "--make-private", directory], check=True)
        subprocess.run(["mount", "--make-shared", directory], check=True)
        yield directory
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", directory], check=True)


def privileged_pod(kubelet: Kubelet) -> Pod:
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    return kubelet.run_pod(config)


def run_with(kubelet: Kubelet, pod: Pod, volume: Path, propagation: pb.MountPropagation) -> str:
    """A privileged container with the volume at /volume."""
    mount = pb.Mount(container_path="/volume", host_path=str(volume), propagation=propagation)
    asked = kubelet.container_config("sleep", "1000", mounts=[mount])
    asked.linux.security_context.ClearField("masked_paths")
    asked.linux.security_context.ClearField("readonly_paths")
    asked.linux.security_context.privileged = True
    container = kubelet.create(pod, config=asked)
    kubelet.start(container)
    return container


@pytest.mark.parametrize(
    ("propagation", "to_container", "to_node"),
    [
        (pb.PROPAGATION_PRIVATE, False, False),
        (pb.PROPAGATION_HOST_TO_CONTAINER, True, False),
        (pb.PROPAGATION_BIDIRECTIONAL, True, True),
    ],
    ids=["private", "host to container", "bidirectional"],
)
def test_later_mounts_below_a_volume_are_seen_as_asked(
    kubelet: Kubelet, volume: Path, propagation: pb.MountPropagation, to_container: bool, to_node: bool
) -> None:
    container = run_with(kubelet, privileged_pod(kubelet), volume, propagation)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume / "node"], check=True)
    (volume / "node" / "file").touch()
    assert kubelet.shell(container, "ls /volume/node") == ("file\n" if to_container else "")
    kubelet.shell(container, "mount -t tmpfs tmpfs /volume/container && touch /volume/container/file")
    assert (volume / "container" / "file").exists() == to_node


def test_a_bidirectional_mount_whose_source_is_missing_is_refused_by_name(kubelet: Kubelet, tmp_path: Path) -> None:
    with refused("FAILED_PRECONDITION", f"{tmp_path}/missing", "/volume"):
        run_with(kubelet, privileged_pod(kubelet), tmp_path / "missing", pb.PROPAGATION_BIDIRECTIONAL)


def test_a_bidirectional_volume_shows_the_node_no_mount_of_the_container(
    kubelet: Kubelet, daemon: Daemon, volume: Path
) -> None:
    """Where the node's root is a shared mount, as systemd makes it, mounting below it would show there."""

    def mounts() -> list[str]:
        return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(daemon.directory) in line]

    pod = privileged_pod(kubelet)
    before = mounts()
    run_with(kubelet, pod, volume, pb.PROPAGATION_BIDIRECTIONAL)
    assert mounts() == before
