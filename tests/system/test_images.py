"""ImageService against a registry: pull, list, status, remove, filesystem."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, CUSTOM, HOST, busybox_layer
from tests.simulators.kubelet import Kubelet, Pod, refused
from tests.simulators.registry import File, Pushed, RegistrySimulator, directory, tar_layer
from tests.system.daemon import Daemon


@pytest.fixture(autouse=True)
def _no_kept_connection(registry: RegistrySimulator) -> Iterator[None]:
    """The daemon keeps connections to a registry for the next pull; here that would look like a leak of the test."""
    yield
    registry.hang_up()


@pytest.fixture
def pushed(registry: RegistrySimulator, kubelet: Kubelet) -> Iterator[Pushed]:
    """team/app:1 and :latest, which no other test pulls; removed from the daemon afterwards."""
    layer = tar_layer(directory("etc"), File("etc/motd", b"hello\n"))
    config = {"User": "1000:7", "Cmd": ["true"]}
    image = registry.push("team/app", "1", [layer], config=config)
    registry.push("team/app", "latest", [layer], config=config)
    yield image
    kubelet.RemoveImage(image=pb.ImageSpec(image=image.config))


def status(kubelet: Kubelet, image: str) -> pb.Image:
    return kubelet.ImageStatus(image=pb.ImageSpec(image=image)).image


def ids(kubelet: Kubelet) -> set[str]:
    return {image.id for image in kubelet.ListImages().images}


@pytest.mark.parametrize("suffix", [":1", "", "@{index}", ":1@{index}"], ids=["tag", "nothing", "digest", "both"])
def test_an_image_is_pulled_by_tag_by_digest_and_without_either(kubelet: Kubelet, pushed: Pushed, suffix: str) -> None:
    name = f"{HOST}/team/app" + suffix.format(index=pushed.index)
    assert kubelet.pull(name) == pushed.config
    image = status(kubelet, name)
    assert image.id == pushed.config
    assert image.repo_digests == [f"{HOST}/team/app@{pushed.index}"]
    tag = {":1": "1", "": "latest"}.get(suffix)
    assert image.repo_tags == ([f"{HOST}/team/app:{tag}"] if tag else [])


def test_the_status_tells_the_user_and_the_size(kubelet: Kubelet, pushed: Pushed) -> None:
    kubelet.pull(f"{HOST}/team/app:1")
    image = status(kubelet, pushed.config)
    assert (image.uid.value, image.username) == (1000, "")
    assert image.size > 0
    assert not image.pinned
    assert status(kubelet, CUSTOM).username == "alice"


def test_an_image_has_all_its_names_and_goes_with_all_of_them(kubelet: Kubelet, pushed: Pushed) -> None:
    kubelet.pull(f"{HOST}/team/app:1")
    kubelet.pull(f"{HOST}/team/app")
    assert set(status(kubelet, pushed.config).repo_tags) == {f"{HOST}/team/app:1", f"{HOST}/team/app:latest"}
    assert [image.id for image in kubelet.ListImages().images].count(pushed.config) == 1
    kubelet.RemoveImage(image=pb.ImageSpec(image=f"{HOST}/team/app:1"))
    assert pushed.config not in ids(kubelet)


@pytest.mark.parametrize("name", ["no/such:1", "busybox:no-such-tag"])
def test_an_unknown_image_is_not_found_by_a_pull(kubelet: Kubelet, registry: RegistrySimulator, name: str) -> None:
    before = ids(kubelet)
    with refused("NOT_FOUND", f"{registry.host}/{name}"):
        kubelet.pull(f"{registry.host}/{name}")
    assert ids(kubelet) == before


def test_an_unknown_image_has_an_empty_status_and_is_removed_already(kubelet: Kubelet) -> None:
    unknown = pb.ImageSpec(image=f"{HOST}/no/such:1")
    assert not kubelet.ImageStatus(image=unknown).HasField("image")
    kubelet.RemoveImage(image=unknown)


@pytest.mark.parametrize("name", ["", "a b", f"{HOST}/UPPER:1", f"{HOST}/app:", f"{HOST}/app@sha256:12"])
def test_what_is_no_image_ref_is_not_pulled(kubelet: Kubelet, name: str) -> None:
    with refused("INVALID_ARGUMENT"):
        kubelet.pull(name)


@pytest.mark.parametrize("method", ["PullImage", "ImageStatus", "RemoveImage"])
def test_a_call_about_an_image_needs_its_name(kubelet: Kubelet, method: str) -> None:
    with refused("INVALID_ARGUMENT", "image"):
        getattr(kubelet, method)()


def test_images_are_listed_by_name(kubelet: Kubelet) -> None:
    listed = kubelet.ListImages(filter=pb.ImageFilter(image=pb.ImageSpec(image=BUSYBOX))).images
    assert [list(image.repo_tags) for image in listed] == [[BUSYBOX]]
    assert not kubelet.ListImages(filter=pb.ImageFilter(image=pb.ImageSpec(image=f"{HOST}/other:1"))).images


def test_layers_that_are_here_are_not_fetched_again(
    kubelet: Kubelet, pushed: Pushed, registry: RegistrySimulator
) -> None:
    before = registry.count(pushed.layers[0])
    for name in ("app:1", "app", "app:1"):
        kubelet.pull(f"{HOST}/team/{name}")
    assert registry.count(pushed.layers[0]) == before + 1


def test_pulls_of_one_image_at_the_same_time_fetch_once(
    kubelet: Kubelet, pushed: Pushed, registry: RegistrySimulator
) -> None:
    before = registry.count(pushed.layers[0])
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: kubelet.pull(f"{HOST}/team/app:1"), range(8)))
    assert found == {pushed.config}
    assert registry.count(pushed.layers[0]) == before + 1


def test_a_removed_image_leaves_no_layer(kubelet: Kubelet, pushed: Pushed, daemon: Daemon) -> None:
    def files() -> set[Path]:
        return {path for path in (daemon.root / "images").rglob("*") if "motd" in path.name}

    kubelet.pull(f"{HOST}/team/app:1")
    assert files()
    kubelet.RemoveImage(image=pb.ImageSpec(image=pushed.config))
    assert not files()


def test_a_container_outlives_the_removal_of_its_image(kubelet: Kubelet, pod: Pod, registry: RegistrySimulator) -> None:
    layer = tar_layer(directory("etc"), File("etc/motd", b"kept\n"))
    image = registry.push("team/short", "1", [busybox_layer(), layer], config={"Env": ["PATH=/bin"]})
    kubelet.pull(f"{HOST}/team/short:1")
    container = kubelet.run(pod, "sleep", "1000", image=f"{HOST}/team/short:1")
    kubelet.RemoveImage(image=pb.ImageSpec(image=image.config))
    assert kubelet.shell(container, "cat /etc/motd") == "kept\n"
    assert image.config not in ids(kubelet)
    with refused("NOT_FOUND", "team/short"):
        kubelet.create(pod, "true", image=f"{HOST}/team/short:1", name="late")


def test_the_image_filesystem_is_told_with_its_use(kubelet: Kubelet, daemon: Daemon) -> None:
    answer = kubelet.ImageFsInfo()
    (images,) = answer.image_filesystems
    assert images.fs_id.mountpoint.startswith(str(daemon.root))
    assert images.used_bytes.value > 0
    assert images.inodes_used.value > 0
    assert images.timestamp > 0
    assert answer.container_filesystems


def test_an_artifact_is_listed_and_can_t_be_run(kubelet: Kubelet, pod: Pod, registry: RegistrySimulator) -> None:
    config = registry.describe(b"{}", "application/vnd.oci.empty.v1+json")
    layer = registry.describe(b"rules", "text/plain")
    document = {"schemaVersion": 2, "artifactType": "application/vnd.example", "config": config, "layers": [layer]}
    registry.put_manifest("artifact", "1", json.dumps(document).encode(), "application/vnd.oci.image.manifest.v1+json")
    name = "registry.test/artifact:1"
    kubelet.pull(name)
    assert any(name in image.repo_tags for image in kubelet.ListImages().images)
    with refused("INVALID_ARGUMENT", "artifact", "application/vnd.example"):
        kubelet.create(pod, config=kubelet.container_config("true", image=name))
    kubelet.RemoveImage(image=pb.ImageSpec(image=name))
    registry.hang_up()  # its blobs came side by side, over more connections than are kept from before
