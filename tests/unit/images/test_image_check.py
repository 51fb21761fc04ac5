"""What a check finds of a store that was damaged, and what a repair makes of it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from cri_py.images import service
from cri_py.images.check import Kind, Trouble, look, stored
from cri_py.images.content import Content
from cri_py.images.service import Images
from cri_py.images.snapshots import Snapshots
from cri_py.model import Image, ImageId
from cri_py.state.store import Store
from tests.simulators.registry import OCI_MANIFEST, File, RegistrySimulator, directory, hard_link, symlink, tar_layer
from tests.unit.images.conftest import OpenImages

BOTTOM = tar_layer(
    *(directory("etc"), File("etc/base", b"base" * 5000), hard_link("etc/other", "etc/base"), symlink("link", "etc")),
    *(File("twice", b"1" * 9000), File("twice", b"2"), File("tree/a/b", b"x"), symlink("tree/a/l", "b"), File("tree")),
)
TOP = tar_layer(File("etc/top", b"top"), File("etc/.wh.base"))


@pytest.fixture
async def image(images: Images, registry: RegistrySimulator) -> Image:
    registry.push("app", "1", [BOTTOM, TOP])
    return await images.pull(f"{registry.host}/app:1", None)


def kinds(found: Iterable[Trouble]) -> list[tuple[str, str]]:
    return sorted((trouble.kind.value, trouble.found.partition(":")[0]) for trouble in found)


def blob(root: Path, digest: str) -> Path:
    return root / "blobs" / digest.replace(":", "/")


def layer_blob(registry: RegistrySimulator, root: Path) -> Path:
    manifest = next(iter(registry.manifests))  # any: all name the same layers
    assert manifest
    return max((root / "blobs/sha256").iterdir(), key=lambda path: path.read_bytes()[:2] == b"\x1f\x8b")


@pytest.mark.parametrize("deep", [False, True])
async def test_a_sound_store_has_no_trouble(images: Images, image: Image, deep: bool) -> None:
    assert await images.check(deep=deep) == []


Damage = Callable[[Path, Path], object]
LAYER_DAMAGE: dict[str, tuple[Damage, str]] = {
    "file gone": (lambda bottom, _: (bottom / "etc/base").unlink() or (bottom / "etc/other").unlink(), "damaged"),
    "file cut": (lambda bottom, _: os.truncate(bottom / "etc/base", 10), "truncated"),
    "file too many": (lambda bottom, _: (bottom / "more").write_bytes(b""), "damaged"),
    "directory gone": (lambda bottom, _: shutil.rmtree(bottom), "missing"),
}


@pytest.mark.parametrize("damage", LAYER_DAMAGE)
async def test_a_damaged_layer_is_found_and_unpacked_again(
    images: Images, image: Image, root: Path, damage: str
) -> None:
    act, said = LAYER_DAMAGE[damage]
    act(Path(images.lower_dirs(image.id)[-1]), root)
    assert kinds(await images.check()) == [("layer", said)]
    assert kinds(await images.check(repair=True)) == [("layer", said)]
    assert await images.check(deep=True) == []
    assert (Path(images.lower_dirs(image.id)[-1]) / "etc/base").read_bytes() == b"base" * 5000
    assert len(os.listdir(root / "layers")) == 2


async def test_a_layer_in_use_is_not_taken_from_under_its_containers(
    images: Images, image: Image, in_use: set[ImageId]
) -> None:
    bottom = Path(images.lower_dirs(image.id)[-1])
    (bottom / "etc/other").unlink()
    (bottom / "etc/base").unlink()
    in_use.add(image.id)
    await images.check(repair=True)
    assert images.lower_dirs(image.id)[-1] == str(bottom)
    in_use.clear()
    await images.check(repair=True)
    assert (Path(images.lower_dirs(image.id)[-1]) / "etc/base").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
async def test_a_damaged_blob_costs_nothing_that_runs_and_the_next_pull_fetches_it(
    images: Images, image: Image, registry: RegistrySimulator, root: Path, damage: str
) -> None:
    path = layer_blob(registry, root)
    content = path.read_bytes()
    changed = {"cut": content[:-1], "flipped": content[:-1] + bytes([content[-1] ^ 1]), "gone": b""}[damage]
    path.write_bytes(changed)
    if damage == "gone":
        path.unlink()
    said = {"cut": "truncated", "flipped": "damaged", "gone": "missing"}[damage]
    assert kinds(await images.check(deep=True)) == [("blob", said)]
    assert kinds(await images.check()) == ([] if damage == "flipped" else [("blob", said)])
    await images.check(deep=True, repair=True)
    assert (await images.check(deep=True), images.find(image.id)) == ([], image)
    assert await images.pull(f"{registry.host}/app:1", None) == image
    assert path.read_bytes() == content
    assert await images.check(deep=True) == []


async def test_an_artifact_is_checked_by_its_blobs(images: Images, registry: RegistrySimulator, root: Path) -> None:
    config = registry.describe(b"{}", "application/vnd.oci.empty.v1+json")
    layer = registry.describe(b"policy", "text/plain")
    document = {"schemaVersion": 2, "artifactType": "text/plain", "config": config, "layers": [layer]}
    registry.put_manifest("policy", "1", json.dumps(document).encode(), OCI_MANIFEST)
    await images.pull(f"{registry.host}/policy:1", None)
    assert await images.check(deep=True) == []
    blob(root, layer["digest"]).write_bytes(b"POLICY")
    assert kinds(await images.check(deep=True)) == [("blob", "damaged")]


async def test_what_can_t_be_mended_is_forgotten(
    images: Images, image: Image, registry: RegistrySimulator, root: Path
) -> None:
    shutil.rmtree(images.lower_dirs(image.id)[-1])
    for digest in (root / "blobs/sha256").iterdir():
        digest.write_bytes(b"damaged")
    await images.check(deep=True, repair=True)
    assert images.list() == []
    assert [files for _, _, files in os.walk(root / "blobs") if files] == []
    assert (await images.pull(f"{registry.host}/app:1", None)).id == image.id
    assert await images.check(deep=True) == []


async def test_orphans_are_found_and_removed(images: Images, image: Image, root: Path) -> None:
    (root / "layers/zz/etc").mkdir(parents=True)
    blob(root, "sha256:" + "0" * 64).write_bytes(b"nobody's")
    assert kinds(await images.check()) == [("blob", "orphaned"), ("directory", "orphaned")]
    await images.check(repair=True)
    assert await images.check() == []
    assert len(os.listdir(root / "layers")) == 2


async def test_a_pull_under_way_is_no_trouble(images: Images, registry: RegistrySimulator) -> None:
    registry.push("other", "1", [tar_layer(File("f", os.urandom(3_000_000))), TOP])
    pull = asyncio.create_task(images.pull(f"{registry.host}/other:1", None))
    while not pull.done():
        assert await images.check(repair=True) == []
    await pull
    assert await images.check(deep=True) == []


async def test_what_became_an_image_while_the_disk_was_looked_at_is_no_orphan(
    images: Images, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = [Trouble(Kind.LAYER, chain_id, "orphaned: no image needs it") for chain_id in image.chain_ids]
    stale.append(Trouble(Kind.BLOB, image.id, "orphaned: no image needs it"))
    stale.append(Trouble(Kind.DIRECTORY, images.lower_dirs(image.id)[0], "orphaned: no record names it"))
    monkeypatch.setattr(service, "look", lambda *_, **__: stale)
    assert await images.check(repair=True) == []
    monkeypatch.undo()
    assert await images.check(deep=True) == []


def delayed_look(act: Callable[[], Awaitable[object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the disk was looked at, ``act`` happens before anybody hears what was found."""
    loop = asyncio.get_running_loop()

    def look_then_act(*arguments: Any, **more: Any) -> list[Trouble]:
        found = look(*arguments, **more)
        asyncio.run_coroutine_threadsafe(_awaited(act()), loop).result(timeout=60)
        return found

    monkeypatch.setattr(service, "look", look_then_act)


async def _awaited(act: Awaitable[object]) -> None:
    await act


async def test_a_check_whose_caller_leaves_does_not_read_on(
    images: Images, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(io.RawIOBase):
        """A blob that takes for ever."""

        def read(self, size: int = -1, /) -> bytes:
            reading.set()
            return b"x"

    reading = threading.Event()
    monkeypatch.setattr(Content, "open", lambda *_: Endless())
    checking = asyncio.create_task(images.check(deep=True))
    assert await asyncio.to_thread(reading.wait, 10)
    checking.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await checking


@pytest.mark.parametrize("damage", ["blob", "layer"])
async def test_what_was_removed_and_pulled_again_meanwhile_is_not_repaired_away(
    images: Images, image: Image, root: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "blob":
        blob(root, images.record(image.id).layers[0].digest).unlink()
    else:
        (Path(images.lower_dirs(image.id)[-1]) / "tree").unlink()

    async def again() -> None:
        await images.remove(image.id)
        await images.pull(image.repo_tags[0], None)
        lower.extend(images.lower_dirs(image.id))

    lower: list[str] = []
    delayed_look(again, monkeypatch)
    await images.check(repair=True)
    monkeypatch.undo()
    assert await images.check(deep=True) == []
    assert list(images.lower_dirs(image.id)) == lower
    assert images.record(image.id).layers, "nothing was lost, so all can be exported"


async def test_an_image_removed_while_it_is_mended_stays_removed(
    images: Images, image: Image, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Snapshots.prepare

    async def prepare_slowly(self: Snapshots, *arguments: Any, **more: Any) -> None:
        await prepare(self, *arguments, **more)
        await images.remove(image.id)

    (Path(images.lower_dirs(image.id)[-1]) / "tree").unlink()
    blob(root, images.record(image.id).layers[1].digest).unlink()
    monkeypatch.setattr(Snapshots, "prepare", prepare_slowly)
    await images.check(repair=True)
    assert (images.list(), os.listdir(root / "layers")) == ([], [])
    assert await images.check() == []


async def test_a_lost_layer_is_mended_at_the_start(
    open_images: OpenImages, registry: RegistrySimulator, root: Path
) -> None:
    async with open_images() as images:
        registry.push("app", "1", [BOTTOM, TOP])
        image = await images.pull(f"{registry.host}/app:1", None)
        for lower in images.lower_dirs(image.id):
            shutil.rmtree(lower)
    registry.asked.clear()
    store = Store(str(root / "images.db"), durable=True)
    found = look(stored(store, keeps_layers=True), Content(str(root / "blobs")), str(root / "layers"), deep=True)
    store.close()
    assert kinds(found) == [("layer", "missing")] * 2, "without a daemon, too"
    async with open_images() as images:
        assert images.list() == [image]
        assert (Path(images.lower_dirs(image.id)[0]) / "etc/top").read_bytes() == b"top"
        assert await images.check(deep=True) == []
    async with open_images() as images:
        assert await images.check(deep=True) == []
    assert registry.asked == []


async def test_blobs_go_where_they_are_not_to_be_kept(
    open_images: OpenImages, registry: RegistrySimulator, root: Path
) -> None:
    registry.push("app", "1", [BOTTOM, TOP])
    async with open_images(discard_unpacked_layers=True) as images:
        await images.pull(f"{registry.host}/app:1", None)
        assert len(os.listdir(root / "blobs/sha256")) == 3, "index, manifest and config"
        assert await images.check(deep=True) == []
        registry.asked.clear()
        await images.pull(f"{registry.host}/app:1", None)
        assert registry.count("/blobs/") == 0
    async with open_images() as images:
        assert await images.check(deep=True) == [], "what was discarded by order is not missing"
        await images.pull(f"{registry.host}/app:1", None)
        assert len(os.listdir(root / "blobs/sha256")) == 5, "now they are wanted again"
        layer_blob(registry, root).unlink()
        assert kinds(await images.check()) == [("blob", "missing")]


async def test_blobs_that_are_not_to_be_kept_any_more_are_not_missed_later(
    open_images: OpenImages, registry: RegistrySimulator, root: Path
) -> None:
    registry.push("app", "1", [BOTTOM, TOP])
    async with open_images() as images:
        await images.pull(f"{registry.host}/app:1", None)
    async with open_images(discard_unpacked_layers=True) as images:
        assert len(os.listdir(root / "blobs/sha256")) == 3
    async with open_images() as images:
        assert await images.check(deep=True) == []
