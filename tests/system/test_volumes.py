"""Volumes of other kinds than a plain bind: images, artifacts, what images declare, restrictions on what is below."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri_py.kernel import syscalls
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, CUSTOM, busybox_layer
from tests.simulators.kubelet import Kubelet, Pod, refused
from tests.simulators.registry import File, RegistrySimulator, directory, symlink, tar_layer
from tests.system.daemon import Daemon
from tests.system.test_userns import mapped, run, run_pod

VOLUMES = "registry.test/volumes:1"
PARTS = "registry.test/parts:1"
ARTIFACT = "registry.test/model:1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def image_mount(image: str, path: str = "/data", **fields: Any) -> pb.Mount:
    return pb.Mount(**{"container_path": path, "readonly": True, "image": pb.ImageSpec(image=image), **fields})


def options_of(kubelet: Kubelet, container: str, path: str) -> list[str]:
    """Of the topmost mount at a path."""
    found = kubelet.shell(container, f"awk '$5 == \"{path}\" {{ print $6 }}' /proc/self/mountinfo")
    return found.split()[-1].split(",")


# ------------------------------------------------------------------- images


@pytest.fixture
def parts(kubelet: Kubelet, registry: RegistrySimulator) -> Iterator[str]:
    """An image of two layers, with links that lead out of it, and a file that the second layer has removed."""
    below = tar_layer(directory("etc"), File("etc/conf", b"below"), File("etc/gone", b"x"), directory("deep/er"))
    links = [symlink("out", "/etc"), symlink("up", "../../../../etc"), symlink("deep/er/top", "/etc/conf")]
    above = tar_layer(
        File("etc/conf", b"above"),
        File("etc/.wh.gone", b""),
        File("program", b"#!/bin/sh\necho ran\n", mode=0o755),
        *links,
    )
    registry.push("parts", "1", [below, above])
    kubelet.pull(PARTS)
    yield PARTS
    kubelet.sweep()
    kubelet.RemoveImage(image=pb.ImageSpec(image=PARTS))
    registry.hang_up()  # its blobs came side by side, over more connections than are kept from before


def test_an_image_is_mounted_read_only_as_its_containers_would_see_it(kubelet: Kubelet, pod: Pod, parts: str) -> None:
    container = kubelet.run(pod, "sleep", "1000", mounts=[image_mount(parts)])
    assert kubelet.shell(container, "cat /data/etc/conf; ls /data/etc") == "aboveconf\n"
    assert kubelet.shell(container, "/data/program") == "ran\n"
    assert "Read-only" in kubelet.shell(container, "touch /data/x 2>&1; true")
    assert {"ro", "nosuid", "nodev"} <= set(options_of(kubelet, container, "/data"))
    (mount,) = kubelet.status(container).mounts
    assert mount.image.image_ref == kubelet.pull(parts)


PLACES = {
    "etc": ("ls /data", "conf\n"),
    "etc/conf": ("cat /data", "above"),
    "deep/er/top": ("cat /data", "above"),
    "out/conf": ("cat /data", "above"),
    "up/conf": ("cat /data", "above"),
    "": ("ls -d /data/deep/er", "/data/deep/er\n"),
}


@pytest.mark.parametrize("sub_path", PLACES)
def test_a_part_of_an_image_is_found_inside_it_whatever_its_links_say(
    kubelet: Kubelet, pod: Pod, parts: str, sub_path: str
) -> None:
    container = kubelet.run(pod, "sleep", "1000", mounts=[image_mount(parts, image_sub_path=sub_path)])
    look, said = PLACES[sub_path]
    assert kubelet.shell(container, look) == said


@pytest.mark.parametrize("sub_path", ["missing", "etc/conf/x", "etc/gone"])
def test_a_part_that_is_not_there_fails_the_creation_by_name(
    kubelet: Kubelet, pod: Pod, parts: str, sub_path: str
) -> None:
    with refused("FAILED_PRECONDITION", "ImageVolumeMountFailed", "/data", sub_path):
        kubelet.create(pod, "true", mounts=[image_mount(parts, image_sub_path=sub_path)])


def test_an_image_of_one_layer_is_mounted_too(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", mounts=[image_mount(BUSYBOX, image_sub_path="bin")])
    assert kubelet.shell(container, "/data/busybox echo ran") == "ran\n"
    assert "Read-only" in kubelet.shell(container, "touch /data/x 2>&1; true")


def test_a_mounted_image_that_is_removed_stays_as_long_as_it_is_used(kubelet: Kubelet, pod: Pod, parts: str) -> None:
    container = kubelet.create(pod, "cat", "/data/etc/conf", mounts=[image_mount(parts)])
    kubelet.RemoveImage(image=pb.ImageSpec(image=parts))
    kubelet.start(container)
    kubelet.wait(container)
    assert [line.text for line in kubelet.log(container)] == [b"above"]


def test_an_image_volume_in_a_user_namespace_belongs_to_its_users(kubelet: Kubelet, parts: str) -> None:
    container = run(kubelet, run_pod(kubelet), mounts=[image_mount(parts), image_mount(BUSYBOX, "/one")])
    assert kubelet.shell(container, "stat -c %u:%g /data/etc/conf /one/home/alice").split() == ["0:0", "1000:1000"]


@pytest.mark.parametrize(
    ("fields", "part"),
    [({"readonly": False}, "readonly"), ({"host_path": "/tmp"}, "host_path"), ({"image_sub_path": ".."}, "..")],
)
def test_an_image_volume_that_makes_no_sense_is_refused(
    kubelet: Kubelet, pod: Pod, fields: dict[str, Any], part: str
) -> None:
    with refused("INVALID_ARGUMENT", "/data", part):
        kubelet.create(pod, "true", mounts=[image_mount(BUSYBOX, **fields)])


def test_an_image_that_is_not_here_is_named(kubelet: Kubelet, pod: Pod) -> None:
    with refused("NOT_FOUND", "registry.test/absent:1", "/data"):
        kubelet.create(pod, "true", mounts=[image_mount("registry.test/absent:1")])


# ---------------------------------------------------------------- artifacts


@pytest.fixture
def artifact(kubelet: Kubelet, registry: RegistrySimulator) -> Iterator[str]:
    config = registry.describe(b"{}", "application/vnd.oci.empty.v1+json")
    title = "org.opencontainers.image.title"
    layers = [
        {**registry.describe(content, "text/plain"), "annotations": {title: name}}
        for name, content in (("weights/a.bin", b"weights"), ("card.md", b"a card"))
    ]
    document = {"schemaVersion": 2, "artifactType": "application/vnd.model", "config": config, "layers": layers}
    registry.put_manifest("model", "1", json.dumps(document).encode(), MANIFEST)
    kubelet.pull(ARTIFACT)
    yield ARTIFACT
    kubelet.sweep()
    kubelet.RemoveImage(image=pb.ImageSpec(image=ARTIFACT))
    registry.hang_up()


def test_an_artifact_is_mounted_as_files(kubelet: Kubelet, pod: Pod, artifact: str) -> None:
    mounts = [image_mount(artifact), image_mount(artifact, "/card", image_sub_path="card.md")]
    user = pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=1000))
    )
    container = kubelet.run(pod, "sleep", "1000", mounts=mounts, linux=user)
    assert kubelet.shell(container, "cat /data/weights/a.bin /card") == "weightsa card"
    assert kubelet.shell(container, "ls /data").split() == ["card.md", "weights"]
    kubelet.RemoveImage(image=pb.ImageSpec(image=artifact))
    assert kubelet.shell(container, "cat /data/card.md") == "a card"


def test_an_artifact_in_a_user_namespace_belongs_to_its_root(kubelet: Kubelet, artifact: str) -> None:
    container = run(kubelet, run_pod(kubelet), mounts=[image_mount(artifact)])
    assert kubelet.shell(container, "stat -c %u /data/card.md; cat /data/card.md") == "0\na card"
    assert "Read-only" in kubelet.shell(container, "(echo x > /data/card.md) 2>&1; true")


# ------------------------------------------------- volumes that images declare


@pytest.fixture
def declaring(kubelet: Kubelet, registry: RegistrySimulator) -> Iterator[str]:
    """An image with volumes: one that it has files in, one that isn't there, one that is a link, some that lead out."""
    own = tar_layer(directory("data"), File("data/seed", b"seed"), symlink("link", "/real"), directory("real"))
    paths = ("/data", "/new/place", "/link", "/../../../../tmp/cri-escape", "/proc", "/")
    config = {"Env": ["PATH=/bin"], "Volumes": {path: {} for path in paths}}
    registry.push("volumes", "1", [busybox_layer(), own], config=config)
    kubelet.pull(VOLUMES)
    yield VOLUMES
    kubelet.sweep()
    kubelet.RemoveImage(image=pb.ImageSpec(image=VOLUMES))
    registry.hang_up()


@pytest.mark.parametrize("users", ["the node's", "the pod's"])
def test_a_declared_volume_has_the_images_files_and_is_writable_on_a_read_only_root(
    kubelet: Kubelet, declaring: str, users: str
) -> None:
    pod = run_pod(kubelet) if users == "the pod's" else kubelet.run_pod()
    container = run(kubelet, pod, image=declaring, security={"readonly_rootfs": True})
    assert kubelet.shell(container, "cat /data/seed; ls /new/place") == "seed"
    kubelet.shell(container, "echo more >> /data/seed; touch /data/x /new/place/x /real/x")
    assert kubelet.shell(container, "cat /data/seed") == "seedmore\n"
    assert "Read-only" in kubelet.shell(container, "touch /new/y /etc/x 2>&1; true")
    kubelet.shell(container, "touch /tmp/cri-escape/x")
    assert not Path("/tmp/cri-escape").exists()
    other = run(kubelet, pod, image=declaring, name="other")
    assert kubelet.shell(other, "cat /data/seed; ls /data") == "seedseed\n"


def test_a_volume_of_the_kubelets_goes_before_a_declared_one(
    kubelet: Kubelet, pod: Pod, declaring: str, tmp_path: Path
) -> None:
    mounts = [pb.Mount(container_path="/data", host_path=str(tmp_path))]
    container = kubelet.run(pod, "sleep", "1000", image=declaring, mounts=mounts)
    assert kubelet.shell(container, "ls /data") == ""


# ---------------------------------------------------------- what lies below


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A volume with a tmpfs mounted below it, which holds a program."""
    volume = tmp_path / "volume"
    (volume / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume / "below"], check=True)
    try:
        for place in (volume, volume / "below"):
            (place / "program").write_text("#!/bin/sh\necho ran\n")
            (place / "program").chmod(0o755)
        yield volume
    finally:
        subprocess.run(["umount", "--lazy", volume / "below"], check=True)


def bind(volume: Path, path: str = "/volume", **fields: Any) -> pb.Mount:
    return pb.Mount(container_path=path, host_path=str(volume), **fields)


def test_recursive_read_only_holds_for_a_mount_below_plain_read_only_does_not(
    kubelet: Kubelet, pod: Pod, nested: Path
) -> None:
    mounts = [
        bind(nested, "/plain", readonly=True),
        bind(nested, "/recursive", readonly=True, recursive_read_only=True),
    ]
    container = kubelet.run(pod, "sleep", "1000", mounts=mounts)
    assert kubelet.shell(container, "touch /plain/below/x; ls /recursive/below").split() == ["program", "x"]
    for path in ("/plain/x", "/recursive/x", "/recursive/below/y"):
        assert "Read-only" in kubelet.shell(container, f"touch {path} 2>&1; true"), path


@pytest.mark.parametrize(
    "fields",
    [
        {"readonly": False},
        {"readonly": True, "propagation": pb.PROPAGATION_HOST_TO_CONTAINER},
        {"readonly": True, "propagation": pb.PROPAGATION_BIDIRECTIONAL},
    ],
)
def test_recursive_read_only_that_can_t_be_is_refused(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, fields: dict[str, Any]
) -> None:
    with refused("INVALID_ARGUMENT", "recursive_read_only", "/volume"):
        kubelet.create(pod, "true", mounts=[bind(tmp_path, recursive_read_only=True, **fields)])


def test_options_of_a_mount_hold_for_what_is_mounted_below(kubelet: Kubelet, pod: Pod, nested: Path) -> None:
    container = kubelet.run(pod, "sleep", "1000", mounts=[bind(nested, mount_options=["noexec", "nosuid", "nodev"])])
    for path in ("/volume", "/volume/below"):
        assert {"noexec", "nosuid", "nodev", "rw"} <= set(options_of(kubelet, container, path)), path
        assert "Permission denied" in kubelet.shell(container, f"{path}/program 2>&1; true"), path


def test_a_volume_is_id_mapped_in_a_pod_without_a_user_namespace_too(kubelet: Kubelet, pod: Pod, nested: Path) -> None:
    os.chown(nested / "below" / "program", 7, 8)
    mounts = [bind(nested, uidMappings=mapped(3000), gidMappings=mapped(4000))]
    container = kubelet.run(pod, "sleep", "1000", mounts=mounts)
    assert kubelet.shell(container, "stat -c %u:%g /volume /volume/below/program").split() == ["3000:4000", "3007:4008"]


def test_what_can_t_be_id_mapped_is_refused_by_name(kubelet: Kubelet) -> None:
    with refused("FAILED_PRECONDITION", "/volume", "id-mapped", "/proc/fs"):
        run(kubelet, run_pod(kubelet), mounts=[bind(Path("/proc/fs"), uidMappings=mapped(), gidMappings=mapped())])


def test_later_mounts_of_the_node_reach_a_user_namespace_and_none_comes_back(kubelet: Kubelet, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "node").mkdir(parents=True)
    (volume / "container").mkdir()
    subprocess.run(["mount", "--bind", volume, volume], check=True)
    try:
        subprocess.run(["mount", "--make-private", volume], check=True)
        subprocess.run(["mount", "--make-shared", volume], check=True)
        everything = {"capabilities": pb.Capability(add_capabilities=["ALL"])}
        nothing = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
        unconfined = {"seccomp": nothing, "apparmor": nothing}
        mounts = [bind(volume, propagation=pb.PROPAGATION_HOST_TO_CONTAINER)]
        container = run(kubelet, run_pod(kubelet), mounts=mounts, security={**everything, **unconfined})
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", volume / "node"], check=True)
        (volume / "node" / "file").touch()
        assert kubelet.shell(container, "ls /volume/node") == "file\n"
        kubelet.shell(container, "mount -t tmpfs tmpfs /volume/container && touch /volume/container/file")
        assert not (volume / "container" / "file").exists()
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", volume], check=True)


def test_volumes_survive_the_daemon(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    container = kubelet.run(kubelet.run_pod(), "sleep", "1000", mounts=[image_mount(CUSTOM, image_sub_path="srv/work")])
    fresh_daemon.restart()
    assert kubelet.shell(container, "cat /data/notes") == "from the image\n"
    assert kubelet.status(container).mounts[0].image.image_ref == kubelet.pull(CUSTOM)


# ------------------------------------------------------- what may go wrong


def test_a_missing_host_path_is_an_error_unless_it_is_to_be_made(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, make_daemon: Callable[[str], Daemon]
) -> None:
    missing = tmp_path / "a" / "b"
    with refused("FAILED_PRECONDITION", "/volume", str(missing)):
        kubelet.create(pod, "true", mounts=[bind(missing)])
    assert not missing.exists()
    making = make_daemon('[runtime]\nmissing_host_paths = "make"\nshm_bytes = 1048576\n').kubelet
    making.pull(BUSYBOX)
    container = making.run(making.run_pod(), "sleep", "1000", mounts=[bind(missing)])
    making.shell(container, "touch /volume/x")
    assert (missing / "x").exists()
    assert making.shell(container, "df -k /dev/shm | tail -1 | awk '{print $2}'").strip() == "1024"


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A mount whose file system never answers, as one of a server that is gone."""
    directory = tmp_path / "hanging"
    directory.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    syscalls.mount("nobody", str(directory), "fuse", 0, options)
    try:
        yield directory
    finally:
        os.close(device)  # whoever still waits is told that it is gone
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.mark.parametrize("users", ["the node's", "the pod's"])
def test_a_mount_that_hangs_is_killed_at_its_deadline_and_named(
    make_daemon: Callable[[str], Daemon], hanging: Path, users: str
) -> None:
    daemon = make_daemon("[runtime]\nmonitor_timeout_s = 4\n")
    kubelet = daemon.kubelet
    kubelet.pull(BUSYBOX)
    pod = run_pod(kubelet) if users == "the pod's" else kubelet.run_pod()
    with refused("DEADLINE_EXCEEDED", str(hanging), "mounted within 4 s"):
        run(kubelet, pod, mounts=[bind(hanging / "volume")])
    assert kubelet.shell(run(kubelet, pod, name="other"), "echo works") == "works\n"
    processes = daemon.processes()
    assert not [pid for pid in processes if "fuse" in Path(f"/proc/{pid}/wchan").read_text()]
