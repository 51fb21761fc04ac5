"""What is found, removed, kept for containers, and there again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from cri_py import telemetry
from cri_py.errors import Internal, InvalidArgument, NotFound
from cri_py.images.records import IMAGE, RETIRED
from cri_py.images.service import Images
from cri_py.images.snapshots import RECORD
from cri_py.model import Digest, Image, ImageId
from cri_py.state.store import Change, Delete, Put, Store
from tests.simulators.registry import File, RegistrySimulator, tar_layer
from tests.unit.images.conftest import OpenImages

BOTTOM = tar_layer(File("etc/base", b"base" * 5000))
TOP = tar_layer(File("etc/top", b"top"))


async def pulled(images: Images, registry: RegistrySimulator, name: str, *layers: bytes) -> Image:
    registry.push(name, "1", layers)
    return await images.pull(f"{registry.host}/{name}:1", None)


def layers_on_disk(root: Path) -> int:
    return len(os.listdir(root / "layers"))


def holds_bottom(images: Images, image: Image) -> bool:
    return Path(images.lower_dirs(image.id)[-1], "etc/base").exists()


async def test_an_image_is_found_by_all_its_names(images: Images, registry: RegistrySimulator) -> None:
    await pulled(images, registry, "other", TOP)
    image = await pulled(images, registry, "app", BOTTOM)
    hexadecimal = image.id.removeprefix("sha256:")
    names = [
        *image.repo_tags,
        *image.repo_digests,
        image.id,
        hexadecimal,
        hexadecimal[:12],
        f"sha256:{hexadecimal[:9]}",
    ]
    assert [images.find(name) for name in names] == [image] * len(names)
    assert images.list(image.repo_tags[0]) == [image]
    assert len(images.list()) == 2


@pytest.mark.parametrize("name", ["", "sha256:", "nothing", "nothing:1", "sha256:" + "0" * 64, "0" * 64, "a b"])
async def test_unknown_names_find_nothing_and_may_be_removed(
    images: Images, registry: RegistrySimulator, name: str
) -> None:
    await pulled(images, registry, "app", BOTTOM)
    assert images.find(name) is None
    assert images.list(name or "nothing") == []
    await images.remove(name)
    assert len(images.list()) == 1


@pytest.mark.parametrize("name", ["a b", "sha256:" + "0" * 64, "UPPER"])
async def test_of_what_is_no_ref_no_pull_is_under_way(images: Images, name: str) -> None:
    assert images.progress_of(name) == ()


async def test_one_image_under_several_names_is_one_image(images: Images, registry: RegistrySimulator) -> None:
    await pulled(images, registry, "one", BOTTOM)
    image = await pulled(images, registry, "two", BOTTOM)
    assert images.list() == [image]
    assert image.repo_tags == (f"{registry.host}/one:1", f"{registry.host}/two:1")
    assert len(image.repo_digests) == 2


@pytest.mark.parametrize("by", ["tag", "digest", "id"])
async def test_removal_by_one_name_removes_all_of_them(
    images: Images, registry: RegistrySimulator, root: Path, by: str
) -> None:
    await pulled(images, registry, "one", BOTTOM)
    image = await pulled(images, registry, "two", BOTTOM)
    await images.remove({"tag": image.repo_tags[0], "digest": image.repo_digests[1], "id": image.id}[by])
    assert images.list() == []
    assert layers_on_disk(root) == 0
    with pytest.raises(NotFound):
        images.lower_dirs(image.id)


async def test_a_tag_is_given_moves_and_is_taken_alone(open_images: OpenImages, registry: RegistrySimulator) -> None:
    async with open_images() as images:
        one, two = await pulled(images, registry, "one", BOTTOM), await pulled(images, registry, "two", TOP)
        assert await images.tag(one.id, "mine") == "docker.io/library/mine:latest"
        await images.tag(two.repo_tags[0], "mine:latest")
    async with open_images() as images:
        assert images.list("mine") == [images.find(two.id)]
        await images.untag("mine")
        assert images.find("mine") is None
        assert (images.find(one.id), images.find(two.id)) == (one, two)


@pytest.mark.parametrize("by", ["tag", "digest", "id"])
async def test_the_last_tag_a_digest_or_the_id_takes_the_image_along(
    images: Images, registry: RegistrySimulator, by: str
) -> None:
    image = await pulled(images, registry, "app", BOTTOM)
    if by != "tag":
        await images.tag(image.id, "mine")
    await images.untag({"tag": image.repo_tags[0], "digest": image.repo_digests[0], "id": image.id}[by])
    assert images.list() == []


async def test_no_digest_can_be_given_as_a_tag_and_nothing_to_what_is_not_here(
    images: Images, registry: RegistrySimulator
) -> None:
    image = await pulled(images, registry, "app", BOTTOM)
    with pytest.raises(InvalidArgument, match="no tag"):
        await images.tag(image.id, image.repo_digests[0])
    for missing in (images.tag("other", "mine"), images.untag("other")):
        with pytest.raises(NotFound, match="cri-py image ls"):
            await missing


async def test_removals_at_the_same_time_succeed(images: Images, registry: RegistrySimulator, root: Path) -> None:
    image = await pulled(images, registry, "app", BOTTOM)
    await asyncio.gather(*(images.remove(name) for name in (image.id, image.repo_tags[0], image.id)))
    assert layers_on_disk(root) == 0


async def test_layers_that_another_image_needs_stay(images: Images, registry: RegistrySimulator, root: Path) -> None:
    one = await pulled(images, registry, "one", BOTTOM, TOP)
    two = await pulled(images, registry, "two", BOTTOM)
    await images.remove(one.id)
    assert layers_on_disk(root) == 1
    assert holds_bottom(images, two)


async def test_a_removed_image_keeps_its_layers_while_containers_use_it(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, in_use: set[ImageId]
) -> None:
    async with open_images() as images:
        image = await pulled(images, registry, "app", BOTTOM)
        in_use.add(image.id)
        await images.remove(image.id)
        assert images.list() == []
        await images.collect()
        assert holds_bottom(images, image)
    async with open_images() as images:
        assert holds_bottom(images, image), "a restart forgets no use"
        in_use.clear()
        await images.collect()
        assert layers_on_disk(root) == 0
        with pytest.raises(NotFound):
            images.lower_dirs(image.id)


async def test_a_removed_image_in_use_may_be_pulled_again(
    images: Images, registry: RegistrySimulator, in_use: set[ImageId]
) -> None:
    image = await pulled(images, registry, "app", BOTTOM)
    in_use.add(image.id)
    await images.remove(image.id)
    await images.pull(f"{registry.host}/app:1", None)
    in_use.clear()
    await images.collect()
    assert holds_bottom(images, image)


async def test_an_image_whose_container_is_being_made_keeps_its_layers(
    images: Images, registry: RegistrySimulator, root: Path, in_use: set[ImageId]
) -> None:
    image = await pulled(images, registry, "app", BOTTOM)
    with images.using(image.id):
        await images.remove(image.id)
        await images.collect()
        assert (images.list(), holds_bottom(images, image)) == ([], True)
        in_use.add(image.id)
    await images.collect()
    assert holds_bottom(images, image)
    in_use.clear()
    await images.collect()
    assert layers_on_disk(root) == 0


async def test_what_is_left_of_a_lost_image_stays_for_its_containers_over_a_restart(
    open_images: OpenImages, registry: RegistrySimulator, root: Path
) -> None:
    """Containers are known only after images, so at the start each may have some."""
    async with open_images() as images:
        image = await pulled(images, registry, "app", BOTTOM, TOP)
        top, bottom = images.lower_dirs(image.id)
    shutil.rmtree(top)
    shutil.rmtree(root / "blobs/sha256")
    async with open_images() as images:
        assert images.list() == []
        assert (root / "layers" / Path(bottom).name / "etc/base").exists()
        await images.collect()
        assert layers_on_disk(root) == 0


async def test_what_came_of_blobs_a_day_ago_goes_without_a_restart_unless_it_is_wanted_again(
    images: Images, registry: RegistrySimulator, root: Path
) -> None:
    noise = random.Random(1).randbytes(500_000)
    pushed = registry.push("app", "1", [tar_layer(File("noise", noise))])
    partial = root / "blobs/partial" / pushed.layers[0].replace(":", "-")
    forgotten = root / "blobs/partial" / f"sha256-{'0' * 64}"
    forgotten.write_bytes(b"part")
    partial.write_bytes(registry.blobs[pushed.layers[0]][:300_000])
    for path in (partial, forgotten):
        os.utime(path, (1, 1))
    with images.content.lease([Digest(pushed.layers[0])]):
        await pulled(images, registry, "other", TOP)
        await images.remove(f"{registry.host}/other:1")
        assert (partial.exists(), forgotten.exists()) == (True, False)
        await images.pull(f"{registry.host}/app:1", None)
    assert registry.asked[-1].headers["range"] == "bytes=300000-"


async def test_a_record_that_can_not_be_read_costs_its_image_and_no_container_a_layer(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, in_use: set[ImageId]
) -> None:
    async with open_images() as images:
        lost, kept = await pulled(images, registry, "app", BOTTOM), await pulled(images, registry, "other", TOP)
    in_use.add(lost.id)
    await write_records(root, Put(IMAGE, lost.id, b'{"image": "no"}'))
    for _ in range(2):  # a restart forgets it as little
        async with open_images() as images:
            assert images.list() == [kept]
            await images.collect()
            assert holds_bottom(images, lost)
    async with open_images() as images:
        in_use.clear()
        await images.collect()
        assert layers_on_disk(root) == 1
        assert (await images.pull(f"{registry.host}/app:1", None)).id == lost.id
        assert await images.check(deep=True) == []


SENSELESS = {
    "no JSON": b"\xff{",
    "another shape": b"[1]",
    "wrong types": b'{"directory": 1, "used_bytes": "x", "inodes": 0}',
    "a way out": b'{"directory": "../blobs", "used_bytes": 1, "inodes": 1}',
    "no size": b'{"directory": "1", "used_bytes": -5, "inodes": 1}',
}


@pytest.mark.parametrize("body", SENSELESS.values(), ids=SENSELESS)
async def test_a_snapshot_whose_record_is_damaged_is_made_again_and_stays_below_containers(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, in_use: set[ImageId], body: bytes
) -> None:
    async with open_images() as images:
        image = await pulled(images, registry, "app", BOTTOM)
        mounted = Path(images.lower_dirs(image.id)[0])
    await write_records(root, Put(RECORD, image.chain_ids[0], body))
    in_use.add(image.id)
    for _ in range(2):
        async with open_images() as images:
            assert images.list() == [image]
            assert images.lower_dirs(image.id) != (str(mounted),)
            assert holds_bottom(images, image)
            assert await images.check(repair=True) == []
            assert (mounted / "etc/base").exists(), "a container may have it mounted"
            assert records_of(root, f"damaged-{RECORD}") == {image.chain_ids[0]: body}
    in_use.clear()
    async with open_images() as images:
        assert await images.check(deep=True) == []
    assert os.listdir(root / "layers") != [mounted.name]
    assert layers_on_disk(root) == 1
    assert records_of(root, f"damaged-{RECORD}") == {}


@pytest.mark.parametrize("body", [b"", b'{"a": 1}', b"[1]", b"null"])
async def test_a_removed_image_whose_record_is_damaged_keeps_its_layers_for_containers(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, in_use: set[ImageId], body: bytes
) -> None:
    async with open_images() as images:
        image = await pulled(images, registry, "app", BOTTOM)
        in_use.add(image.id)
        await images.remove(image.id)
    await write_records(root, Put(RETIRED, image.id, body))
    for _ in range(2):
        async with open_images() as images:
            await images.collect()
            assert holds_bottom(images, image)
    assert records_of(root, f"damaged-{RETIRED}") == {image.id: body}
    in_use.clear()
    async with open_images() as images:
        await images.collect()
    assert layers_on_disk(root) == 0


@pytest.mark.parametrize(
    ("place", "value"),
    [("$.image.size", "-1"), ("$.image.size", "json('1e30')"), ("$.image.id", "'sha256:0'"), ("$.manifests[0]", "'x'")],
)
async def test_an_image_whose_record_makes_no_sense_is_set_aside(
    open_images: OpenImages, registry: RegistrySimulator, root: Path, place: str, value: str
) -> None:
    async with open_images() as images:
        image, other = await pulled(images, registry, "app", BOTTOM), await pulled(images, registry, "other", TOP)
    with contextlib.closing(sqlite3.connect(root / "images.db", isolation_level=None)) as database:
        change = f"UPDATE records SET body = json_set(CAST(body AS TEXT), '{place}', {value}) WHERE key = ?"
        database.execute(change, (image.id,))
    async with open_images() as images:
        assert images.list() == [other]
    assert list(records_of(root, f"damaged-{IMAGE}")) == [image.id]


async def write_records(root: Path, *changes: Put) -> None:
    store = Store(str(root / "images.db"), durable=True)
    await store.commit(*changes)
    store.close()


def records_of(root: Path, kind: str) -> dict[str, bytes]:
    with contextlib.closing(sqlite3.connect(root / "images.db")) as database:
        return dict(database.execute("SELECT key, body FROM records WHERE kind = ?", (kind,)).fetchall())


async def refused(_: Store, *__: Change) -> None:
    raise Internal("images.db could not be written", hint="is the disk full?")


async def test_a_disk_too_full_for_a_record_is_left_as_it_was(
    images: Images, registry: RegistrySimulator, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push("app", "1", [BOTTOM, TOP])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", refused)
        with pytest.raises(Internal, match=r"images\.db could not be written"):
            await images.pull(f"{registry.host}/app:1", None)
        assert (layers_on_disk(root), os.listdir(root / "blobs/sha256")) == (0, []), "what makes room goes"
    image = await images.pull(f"{registry.host}/app:1", None)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", refused)
        with pytest.raises(Internal):
            await images.remove(image.id)
    assert images.list() == [image]
    assert holds_bottom(images, image)


async def test_layers_whose_records_can_not_be_deleted_still_count(
    images: Images, registry: RegistrySimulator, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Store.commit

    async def fuller(store: Store, *changes: Change) -> None:
        if any(isinstance(each, Delete) and each.kind == RECORD for each in changes):
            await refused(store)
        await commit(store, *changes)

    image = await pulled(images, registry, "app", BOTTOM)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", fuller)
        with pytest.raises(Internal):
            await images.remove(image.id)
    assert layers_on_disk(root) == 1
    assert [str(trouble) for trouble in await images.check()] == [
        f"layer {image.chain_ids[0]}: orphaned: no image needs it"
    ]
    await pulled(images, registry, "other", TOP)
    await images.remove("nothing")
    assert await images.check(repair=True)
    assert (layers_on_disk(root), await images.check()) == (1, [])


async def test_lower_directories_start_with_the_topmost(images: Images, registry: RegistrySimulator) -> None:
    image = await pulled(images, registry, "app", BOTTOM, TOP)
    top, bottom = images.lower_dirs(image.id)
    assert (os.listdir(f"{top}/etc"), os.listdir(f"{bottom}/etc")) == (["top"], ["base"])
    assert os.path.isabs(top)


async def test_usage_follows_what_is_there(images: Images, registry: RegistrySimulator, root: Path) -> None:
    image = await pulled(images, registry, "app", BOTTOM)
    [usage] = await images.filesystem_usage()
    blobs = list((root / "blobs/sha256").iterdir())
    blobs_bytes = sum(each.stat().st_blocks * 512 for each in blobs)
    assert len(blobs) == 4, "index, manifest, config and layer"
    assert (usage.mountpoint, usage.used_bytes) == (str(root), 20480 + 2 * 4096 + blobs_bytes)
    assert usage.inodes_used == 3 + 4
    await images.remove(image.id)
    [usage] = await images.filesystem_usage()
    assert (usage.used_bytes, usage.inodes_used) == (0, 0)


async def test_pulls_are_counted(images: Images, registry: RegistrySimulator) -> None:
    def total(name: str) -> float:
        return telemetry.REGISTRY.get_sample_value(name) or 0.0

    fetched, pulls = total("cri_py_pull_bytes_total"), total("cri_py_pull_seconds_count")
    await pulled(images, registry, "app", BOTTOM)
    assert total("cri_py_pull_bytes_total") > fetched
    assert (total("cri_py_pull_seconds_count"), total("cri_py_images")) == (pulls + 1, 1)
    with pytest.raises(NotFound):
        await images.pull(f"{registry.host}/missing:1", None)
    assert telemetry.REGISTRY.get_sample_value("cri_py_pull_errors_total", {"code": "NOT_FOUND"})


async def test_verbose_tells_the_whole_config(images: Images, registry: RegistrySimulator) -> None:
    registry.push("app", "1", [BOTTOM], config={"ExposedPorts": {"80/tcp": {}}})
    image = await images.pull(f"{registry.host}/app:1", None)
    told = json.loads(images.verbose(image)["info"])
    assert told["imageSpec"]["config"]["ExposedPorts"] == {"80/tcp": {}}
    assert told["chainID"] == image.chain_ids[-1]


@pytest.mark.parametrize(("pattern", "pinned"), [("*/app:1", True), ("*/app@*", True), ("*/app", False)])
async def test_images_are_pinned_by_globs(
    open_images: OpenImages, registry: RegistrySimulator, pattern: str, pinned: bool
) -> None:
    async with open_images() as images:
        assert not (await pulled(images, registry, "app", BOTTOM)).pinned
    async with open_images(pinned=(pattern,)) as images:
        assert images.list()[0].pinned == pinned


async def test_a_restart_keeps_images(open_images: OpenImages, registry: RegistrySimulator) -> None:
    async with open_images() as images:
        image = await pulled(images, registry, "app", BOTTOM, TOP)
        lower = images.lower_dirs(image.id)
        usage = await images.filesystem_usage()
    async with open_images() as images:
        assert images.list() == [image]
        assert images.lower_dirs(image.id) == lower
        assert await images.filesystem_usage() == usage
        assert "imageSpec" in images.verbose(image)["info"]
        other = await pulled(images, registry, "other", tar_layer(File("x")))
        assert not set(images.lower_dirs(other.id)) & set(lower)


async def test_a_start_sweeps_what_an_earlier_life_left_unfinished(open_images: OpenImages, root: Path) -> None:
    for leftover in ("layers/1/etc", "layers/zz", "ingest"):
        (root / leftover).mkdir(parents=True)
        (root / leftover / "half").write_bytes(b"written")
    async with open_images():
        assert os.listdir(root / "layers") == []
        assert not (root / "ingest").exists()


async def test_an_image_whose_layer_and_blob_are_gone_is_forgotten_and_can_be_pulled_again(
    open_images: OpenImages, registry: RegistrySimulator, root: Path
) -> None:
    async with open_images() as images:
        image = await pulled(images, registry, "app", BOTTOM, TOP)
        shutil.rmtree(images.lower_dirs(image.id)[0])
    for blob in (root / "blobs/sha256").iterdir():
        blob.unlink()
    async with open_images() as images:
        assert images.list() == []
        again = await images.pull(f"{registry.host}/app:1", None)
        assert holds_bottom(images, again)
    async with open_images() as images:
        assert images.list() == [again]


async def test_pulls_and_removals_at_random_leave_what_is_listed(
    images: Images, registry: RegistrySimulator, root: Path
) -> None:
    names = ("a", "b", "c")
    for name, layers in zip(names, ([BOTTOM], [BOTTOM, TOP], [TOP, BOTTOM]), strict=True):
        registry.push(name, "1", layers)
    for _ in range(5):
        pulls = [images.pull(f"{registry.host}/{name}:1", None) for name in names]
        removals = [images.remove(f"{registry.host}/{name}:1") for name in names]
        await asyncio.gather(*pulls, *removals)
    needed = {lower for image in images.list() for lower in images.lower_dirs(image.id)}
    assert {str(root / "layers" / name) for name in os.listdir(root / "layers")} == needed
