"""Images without a registry: imported, exported, built and committed, whole or not at all."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from cri_py.errors import CriError, DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from cri_py.images.archive import NAME
from cri_py.images.building import Wishes
from cri_py.images.compression import Source
from cri_py.images.exchange import Exchange
from cri_py.images.layerize import layer_pieces
from cri_py.images.service import Images
from cri_py.model import Digest, Image
from tests.simulators.registry import (
    ARCHITECTURE,
    OCI_CONFIG,
    OCI_MANIFEST,
    File,
    RegistrySimulator,
    directory,
    sha256,
    symlink,
    tar_layer,
)
from tests.unit.images.conftest import OpenImages

BOTTOM = tar_layer(directory("etc"), File("etc/motd", b"hello" * 3000))
TOP = tar_layer(File("etc/top", b"top"))


@pytest.fixture
def exchange(images: Images, root: Path) -> Iterator[Exchange]:
    exchange = Exchange(images, str(root))
    yield exchange
    exchange.close()


async def pieces(content: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def take(exchange: Exchange, content: bytes, tag: str = "") -> list[Image]:
    return await exchange.take(pieces(content), tag)


async def give(exchange: Exchange, *refs: str) -> bytes:
    return b"".join([piece async for piece in exchange.give(refs)])


def read(layer: str, name: str) -> bytes:
    return Path(layer, name).read_bytes()


def store(root: Path) -> list[str]:
    """Every file and layer that is kept."""
    blobs = [name for _, _, names in os.walk(root / "blobs") for name in names]
    return sorted((*blobs, *os.listdir(root / "layers")))


class Layout:
    """An OCI layout of images, made by hand; what ``spoil`` names is served otherwise."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.entries: list[dict[str, object]] = []

    def add(self, content: bytes, media_type: str) -> dict[str, object]:
        self.blobs[sha256(content)] = content
        return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}

    def image(
        self,
        name: str,
        *layers: bytes,
        diff_ids: list[str] | None = None,
        arch: str = ARCHITECTURE,
        padding: int = 0,
    ) -> None:
        config = {
            "os": "linux",
            "architecture": arch,
            "config": {"Cmd": [name], "Padding": "x" * padding},
            "rootfs": {"type": "layers", "diff_ids": diff_ids or [sha256(layer) for layer in layers]},
        }
        stored = [gzip.compress(layer, mtime=0) for layer in layers]
        manifest = {
            "schemaVersion": 2,
            "config": self.add(json.dumps(config).encode(), OCI_CONFIG),
            "layers": [self.add(each, "application/vnd.oci.image.layer.v1.tar+gzip") for each in stored],
        }
        annotations = {"annotations": {NAME: name}} if name else {}
        self.entries.append(self.add(json.dumps(manifest).encode(), OCI_MANIFEST) | annotations)

    def tar(self) -> bytes:
        index = json.dumps({"schemaVersion": 2, "manifests": self.entries}).encode()
        blobs = [File(f"blobs/{digest.replace(':', '/')}", content) for digest, content in self.blobs.items()]
        return tar_layer(File("oci-layout", b"{}"), File("index.json", index), *blobs)


def layout(*names: str) -> Layout:
    made = Layout()
    for name in names:
        made.image(name, BOTTOM, TOP)
    return made


def docker_archive(config: bytes, *layers: bytes, tags: tuple[str, ...] = ("app:1",)) -> bytes:
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    saved = [{"Config": "c.json", "RepoTags": list(tags), "Layers": names}]
    files = [File(name, layer) for name, layer in zip(names, layers, strict=True)]
    return tar_layer(File("c.json", config), *files, File("manifest.json", json.dumps(saved).encode()))


# ---------------------------------------------------------------------- import


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
async def test_an_archive_of_several_images_is_imported(exchange: Exchange, images: Images, pack: type[bytes]) -> None:
    first, second = await take(exchange, pack(layout("registry.test/app:1", "registry.test/other:2").tar()))
    assert (first.repo_tags, second.repo_tags) == (("registry.test/app:1",), ("registry.test/other:2",))
    lowers = images.lower_dirs(first.id)
    assert read(lowers[-1], "etc/motd") == b"hello" * 3000
    assert read(lowers[0], "etc/top") == b"top"
    assert await images.check(deep=True) == []


async def test_what_docker_saves_is_imported_and_links_among_layers_are_followed(
    exchange: Exchange, images: Images
) -> None:
    diff_ids = [sha256(BOTTOM), sha256(TOP), sha256(BOTTOM)]
    config = json.dumps({"os": "linux", "architecture": ARCHITECTURE, "rootfs": {"diff_ids": diff_ids}}).encode()
    saved = [{"Config": "c.json", "RepoTags": ["app:1", "app:2"], "Layers": ["a/l.tar", "b/l.tar", "c/l.tar"]}]
    content = tar_layer(
        File("c.json", config),
        File("a/l.tar", BOTTOM),
        File("b/l.tar", gzip.compress(TOP)),
        symlink("c/l.tar", "../a/l.tar"),
        File("manifest.json", json.dumps(saved).encode()),
    )
    (image,) = await take(exchange, content)
    assert image.id == sha256(config)
    assert image.repo_tags == ("docker.io/library/app:1", "docker.io/library/app:2")
    assert len(images.lower_dirs(image.id)) == 3


@pytest.mark.parametrize("name", ["", "latest"])
async def test_a_tag_names_the_image_that_brings_no_name(exchange: Exchange, name: str) -> None:
    content = layout(name).tar()
    (nameless,) = await take(exchange, content)
    assert nameless.repo_tags == ()
    (named,) = await take(exchange, content, "example.test/mine:1")
    assert (named.id, named.repo_tags) == (nameless.id, ("example.test/mine:1",))


async def test_one_tag_for_several_nameless_images_is_refused(exchange: Exchange, root: Path) -> None:
    two = layout("")
    two.image("", TOP)
    with pytest.raises(InvalidArgument, match="2 images without a name"):
        await take(exchange, two.tar(), "example.test/mine:1")
    assert store(root) == []


# ---------------------------------------------------------------------- wicked


def damaged(which: int, content: bytes) -> Layout:
    """A layout whose blob of that number (base, top, config or manifest …) is another."""
    made = layout("app:1")
    digest = list(made.blobs)[which]
    made.blobs[digest] = content
    return made


def without(which: int) -> Layout:
    made = layout("app:1")
    del made.blobs[list(made.blobs)[which]]
    return made


def of_wrong_diff_id() -> Layout:
    made = layout("good:1")
    made.image("bad:1", BOTTOM, TOP, diff_ids=[sha256(BOTTOM), sha256(b"other")])
    return made


def of_another_platform() -> Layout:
    made = Layout()
    made.image("app:1", BOTTOM, arch="s390x")
    return made


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((damaged(number, b"something else").tar(), "sha256:") for number in range(4)),
        *((without(number).tar(), "no file blobs/sha256/") for number in range(4)),
        (of_wrong_diff_id().tar(), "its image's config says"),
        (of_another_platform().tar(), "s390x"),
        (layout("not/../a ref:1").tar(), "no image ref"),
        (layout().tar(), "no image"),
        (docker_archive(b"{}", BOTTOM), "names 0 layers"),
        (docker_archive(b"no json", BOTTOM), "can't be read"),
        (gzip.compress(layout("app:1").tar())[:-1000], "gzip"),
        (b"", "empty"),
        (b"\x1f\x8b", "gzip"),
    ],
)
async def test_of_a_wicked_archive_nothing_is_left(exchange: Exchange, root: Path, content: bytes, said: str) -> None:
    with pytest.raises(CriError) as refused:
        await take(exchange, content)
    assert said in str(refused.value)
    assert store(root) == []
    assert await take(exchange, layout("app:1").tar()), "the next good one is taken"


async def test_what_was_there_before_a_failed_import_stays(exchange: Exchange, images: Images, root: Path) -> None:
    (kept,) = await take(exchange, layout("good:1").tar())
    before = store(root)
    with pytest.raises(DataLoss):
        await take(exchange, of_wrong_diff_id().tar())
    assert store(root) == before
    assert images.list() == [kept]


async def test_names_that_a_failed_import_would_have_moved_stay(exchange: Exchange, images: Images) -> None:
    (kept,) = await take(exchange, layout("good:1").tar())
    other = Layout()
    other.image("good:1", TOP)
    other.image("bad:1", BOTTOM, diff_ids=[sha256(b"other")])
    with pytest.raises(DataLoss):
        await take(exchange, other.tar())
    assert images.list() == [kept]


async def test_of_several_platforms_under_one_name_the_nodes_own_is_taken(exchange: Exchange) -> None:
    both = Layout()
    both.image("app:1", TOP, arch="s390x")
    both.image("app:1", BOTTOM)
    (image,) = await take(exchange, both.tar())
    assert image.repo_tags == ("docker.io/library/app:1",)
    both.image("other:1", BOTTOM, arch="s390x")
    with pytest.raises(FailedPrecondition, match="s390x"):
        await take(exchange, both.tar())


async def test_documents_that_would_fill_the_memory_are_refused(exchange: Exchange, root: Path) -> None:
    huge = Layout()
    for number in range(10):
        huge.image(f"app:{number}", BOTTOM, padding=7_000_000)
    with pytest.raises(ResourceExhausted, match="64 MiB"):
        await take(exchange, gzip.compress(huge.tar(), 1))
    assert store(root) == []


async def test_a_sender_who_fails_leaves_nothing(exchange: Exchange, root: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield layout("app:1").tar()[:5000]
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await exchange.take(broken())
    assert store(root) == []


# ---------------------------------------------------------------------- export


async def test_an_export_has_the_blobs_as_the_registry_served_them(
    exchange: Exchange, images: Images, registry: RegistrySimulator
) -> None:
    pushed = registry.push("app", "1", [BOTTOM, TOP])
    ref = f"{registry.host}/app:1"
    image = await images.pull(ref, None)
    content = await give(exchange, ref)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for digest in (pushed.config, *pushed.layers):
            file = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None
            assert file.read() == registry.blobs[digest]
    await images.remove(image.id)
    (again,) = await take(exchange, content)
    assert (again.id, again.repo_tags) == (image.id, (ref,))
    assert await give(exchange, image.id) == content


async def test_only_the_tags_that_were_asked_for_go_along(exchange: Exchange, images: Images) -> None:
    (image,) = await take(exchange, layout("registry.test/app:1").tar())
    await images.tag(image.id, "registry.test/app:2")
    content = await give(exchange, "registry.test/app:2")
    await images.remove(image.id)
    assert (await take(exchange, content))[0].repo_tags == ("registry.test/app:2",)


async def test_an_image_whose_blobs_were_discarded_is_refused_with_the_way_out(
    open_images: OpenImages, root: Path
) -> None:
    async with open_images(discard_unpacked_layers=True) as images:
        exchange = Exchange(images, str(root))
        await take(exchange, layout("app:1").tar())
        with pytest.raises(FailedPrecondition, match="discard_unpacked_layers = false"):
            await give(exchange, "app:1")
        exchange.close()


def overwrite_layers(images: Images, made: Layout) -> None:
    for digest, content in made.blobs.items():
        if content.startswith(b"\x1f\x8b"):
            Path(images.content.path(Digest(digest))).write_bytes(bytes(len(content)))


async def test_a_damaged_blob_and_an_unknown_image_are_not_exported(exchange: Exchange, images: Images) -> None:
    with pytest.raises(NotFound):
        await give(exchange, "app:1")
    with pytest.raises(InvalidArgument):
        await give(exchange)
    made = layout("app:1")
    await take(exchange, made.tar())
    overwrite_layers(images, made)
    with pytest.raises(DataLoss, match="damaged"):
        await give(exchange, "app:1")


async def test_a_name_of_two_images_is_refused_unless_they_are_the_same(exchange: Exchange, root: Path) -> None:
    made = layout("app:1")
    made.entries *= 2
    assert len(await take(exchange, made.tar())) == 1
    before = store(root)
    made.image("app:1", TOP)
    with pytest.raises(InvalidArgument, match="app:1 names several images"):
        await take(exchange, made.tar())
    assert store(root) == before


# ----------------------------------------------------------------- interrupted


async def test_a_cancelled_import_does_not_read_its_archive_to_the_end(
    exchange: Exchange, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(source: Source, *_: object) -> Iterator[bytes]:
        while True:
            begun.set()
            yield source.read(1) and b""

    monkeypatch.setattr("cri_py.images.exchange.inflate", endless)
    importing = asyncio.ensure_future(take(exchange, gzip.compress(layout("app:1").tar())))
    await asyncio.to_thread(begun.wait, 10)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert store(root) == []


@pytest.mark.parametrize(("compress", "program"), [(lzma.compress, "xz"), (bz2.compress, "bzip2")])
async def test_a_compression_that_is_not_read_is_named(
    exchange: Exchange, compress: Callable[[bytes], bytes], program: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"compressed by {program}"):
        await take(exchange, compress(layout("app:1").tar()))


# ------------------------------------------------------------ build and commit


async def build(exchange: Exchange, tree: Path, wishes: Wishes, tag: str = "mine:1") -> Image:
    return await exchange.build(pieces(b"".join(layer_pieces(str(tree)))), tag, wishes)


async def test_a_tree_becomes_an_image_with_what_was_wished(exchange: Exchange, images: Images, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "hello").write_text("hello")
    wishes = Wishes(
        entrypoint=("/hello",),
        cmd=("a", "b"),
        env=("A=1", "B="),
        working_dir="/srv",
        user="7:8",
        labels={"k": "v"},
        exposed_ports=("80", "53/udp"),
        volumes=("/data",),
        stop_signal="SIGINT",
    )
    image = await build(exchange, tree, wishes)
    assert image.repo_tags == ("docker.io/library/mine:1",)
    config = image.config
    assert (config.entrypoint, config.cmd, config.env) == (("/hello",), ("a", "b"), ("A=1", "B="))
    assert (config.user, config.working_dir, config.stop_signal) == ("7:8", "/srv", "SIGINT")
    assert (dict(config.labels), config.volumes) == ({"k": "v"}, ("/data",))
    assert json.loads(images.config_file(image))["config"]["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert read(images.lower_dirs(image.id)[0], "hello") == b"hello"
    again = await build(exchange, tree, wishes, "mine:2")
    assert again.id == image.id, "equal files and wishes are the same image"
    assert (await build(exchange, tree, Wishes())).id != image.id


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(env=("A",)),
        Wishes(env=("=1",)),
        Wishes(exposed_ports=("http",)),
        Wishes(exposed_ports=("70000",)),
        Wishes(volumes=("data",)),
        Wishes(working_dir="srv"),
        Wishes(platform="amd64"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused(
    exchange: Exchange, root: Path, tmp_path: Path, wishes: Wishes
) -> None:
    with pytest.raises(InvalidArgument):
        await build(exchange, tmp_path, wishes)
    assert store(root) == []


async def test_what_is_built_from_a_damaged_tar_leaves_nothing(exchange: Exchange, root: Path) -> None:
    with pytest.raises(DataLoss):
        await exchange.build(pieces(BOTTOM[:700]), "mine:1", Wishes())
    with pytest.raises(InvalidArgument, match="no tag"):
        await exchange.build(pieces(BOTTOM), f"mine@{sha256(b'')}", Wishes())
    assert store(root) == []


async def test_a_commit_is_the_image_and_one_layer_more(
    exchange: Exchange, images: Images, registry: RegistrySimulator, tmp_path: Path
) -> None:
    registry.push("app", "1", [BOTTOM], config={"Cmd": ["/bin/app"], "Labels": {"k": "v"}})
    bottom = await images.pull(f"{registry.host}/app:1", None)
    upper = tmp_path / "upper"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/new").write_text("new")
    image = await exchange.commit(bottom.id, str(upper), "changed:1", "c" * 64)
    assert image.chain_ids[:-1] == bottom.chain_ids
    assert (image.config.cmd, dict(image.config.labels)) == (("/bin/app",), {"k": "v"})
    assert read(images.lower_dirs(image.id)[0], "etc/new") == b"new"
    content = await give(exchange, "changed:1")
    await images.remove(image.id)
    assert (await take(exchange, content))[0].id == image.id


async def test_a_commit_on_an_image_that_was_removed_says_so(
    exchange: Exchange, images: Images, tmp_path: Path
) -> None:
    (image,) = await take(exchange, layout("app:1").tar())
    await images.remove(image.id)
    with pytest.raises(FailedPrecondition, match="was removed"):
        await exchange.commit(image.id, str(tmp_path), "changed:1", "c" * 64)


async def test_a_commit_that_can_t_be_refuses_before_it_reads(exchange: Exchange, images: Images) -> None:
    made = Layout()
    made.image("deep:1", *[BOTTOM] * 500)
    (image,) = await take(exchange, made.tar())
    with pytest.raises(FailedPrecondition, match="500 layers"):
        await exchange.commit(image.id, "/missing", "changed:1", "c" * 64)
    assert [each.id for each in images.list()] == [image.id]
