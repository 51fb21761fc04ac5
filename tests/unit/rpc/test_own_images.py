"""Our own image service, through a server and the command line's client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from cri_py import model
from cri_py.config import Config, ServerConfig
from cri_py.errors import CriError, InvalidArgument, NotFound, RegistryUnavailable
from cri_py.images.check import Kind, Trouble
from cri_py.images.progress import LayerProgress
from cri_py.model import Digest, RegistryAuth
from cri_py.rpc.gen import images_pb2 as pb
from cri_py.rpc.images_client import ImagesClient
from cri_py.rpc.own_images import OwnImages
from cri_py.rpc.server import OWN_IMAGES, Server

IMAGE_ID = model.ImageId("sha256:" + "a" * 64)
LAYER = Digest("sha256:" + "c" * 64)


class StoredImages:
    """One image; a pull of it waits where the test wants it to."""

    def __init__(self) -> None:
        self.tags = ["a.test/app:1"]
        self.layers: tuple[LayerProgress, ...] = ()
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.repaired = False

    def image(self) -> model.Image:
        return model.Image(IMAGE_ID, tuple(self.tags), (f"a.test/app@{LAYER}",), 4711, model.ImageConfig(), ())

    async def pull(self, ref: str, auth: RegistryAuth | None) -> model.Image:
        if ref == "down.test/app:1":
            raise RegistryUnavailable("down.test can't be reached", hint="look at its name")
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self.image()

    def progress_of(self, ref: str) -> tuple[LayerProgress, ...]:
        return self.layers

    def further(self, fetched: int, unpacked: int) -> None:
        self.layers = (LayerProgress(LAYER, 100, fetched, unpacked, False),)

    def list(self, ref: str = "") -> list[model.Image]:
        return [self.image()]

    def find(self, ref_or_id: str) -> model.Image | None:
        return self.image() if ref_or_id in {*self.tags, IMAGE_ID} else None

    async def tag(self, ref_or_id: str, tag: str) -> str:
        if self.find(ref_or_id) is None:
            raise NotFound(f"there is no image {ref_or_id!r}", hint="cri-py image ls lists those that are here")
        self.tags.append(f"docker.io/library/{tag}")
        return self.tags[-1]

    async def untag(self, ref: str) -> None:
        self.tags.remove(ref)

    def config_file(self, image: model.Image) -> bytes:
        return b'{"os":"linux"}'

    async def check(self, *, deep: bool = False, repair: bool = False) -> Sequence[Trouble]:
        self.repaired = repair
        return [Trouble(Kind.BLOB, LAYER, "truncated", (IMAGE_ID,))] if deep else []


@pytest.fixture
async def images() -> StoredImages:
    return StoredImages()


@pytest.fixture
async def listen(images: StoredImages, tmp_path: Path) -> AsyncIterator[str]:
    config = Config(server=ServerConfig(listen=f"unix://{tmp_path}/cri.sock", shutdown_grace_s=0.2))
    server = Server(config, {OWN_IMAGES: OwnImages(images)})
    await server.start()
    yield config.server.listen
    await server.stop()


def test_nothing_is_asked_about_an_image_without_a_name() -> None:
    service = OwnImages(StoredImages())
    for call in (
        service.Inspect(pb.InspectRequest()),
        service.Tag(pb.TagRequest(ref="a")),
        service.Remove(pb.RemoveRequest()),
    ):
        with pytest.raises(InvalidArgument, match="no image is named"):
            asyncio.run(call)


async def test_a_pull_tells_how_far_it_is_and_at_last_the_id(images: StoredImages) -> None:
    steps = OwnImages(images, pace_s=0.001).Pull(pb.PullRequest(ref="a.test/app:1"))
    for fetched, unpacked in ((10, 0), (100, 50)):
        images.further(fetched, unpacked)
        (layer,) = (await anext(steps)).layers
        assert (layer.digest, layer.size, layer.fetched, layer.unpacked) == (LAYER, 100, fetched, unpacked)
    images.go_on.set()
    (last,) = [step async for step in steps]
    assert last.image_id == IMAGE_ID
    assert not last.layers


async def test_whoever_leaves_takes_the_pull_down(images: StoredImages) -> None:
    steps = OwnImages(images).Pull(pb.PullRequest(ref="a.test/app:1"))
    following = asyncio.ensure_future(anext(steps))
    await images.begun.wait()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert images.cancelled.is_set()


async def test_the_client_pulls_lists_and_inspects(images: StoredImages, listen: str) -> None:
    images.go_on.set()

    def ask() -> tuple[Any, ...]:
        with ImagesClient(listen) as client:
            return [*client.pull("a.test/app:1")][-1].image_id, client.images(), client.inspect(IMAGE_ID)

    pulled, listed, inspected = await asyncio.to_thread(ask)
    assert pulled == IMAGE_ID
    assert [(image.id, image.tags, image.size, image.pinned) for image in listed] == [
        (IMAGE_ID, ("a.test/app:1",), 4711, False)
    ]
    assert inspected.image == listed[0]
    assert json.loads(inspected.config) == {"os": "linux"}


async def test_the_client_gives_and_takes_tags(images: StoredImages, listen: str) -> None:
    def ask() -> str:
        with ImagesClient(listen) as client:
            given = client.tag("a.test/app:1", "mine:2")
            client.remove("a.test/app:1")
            return given

    assert await asyncio.to_thread(ask) == "docker.io/library/mine:2"
    assert images.tags == ["docker.io/library/mine:2"]


async def test_what_is_not_here_is_none_to_inspect_and_not_found_to_tag(listen: str) -> None:
    def ask() -> None:
        with ImagesClient(listen) as client:
            assert client.inspect("b.test/other:1") is None
            with pytest.raises(NotFound, match=r"b\.test/other:1.*cri-py image ls"):
                client.tag("b.test/other:1", "mine:2")

    await asyncio.to_thread(ask)


async def test_an_error_without_a_status_of_its_own_keeps_its_words(listen: str) -> None:
    def ask() -> CriError:
        with ImagesClient(listen) as client, pytest.raises(CriError) as raised:
            list(client.pull("down.test/app:1"))
        return raised.value

    error = await asyncio.to_thread(ask)
    assert str(error) == "RegistryUnavailable: down.test can't be reached (look at its name)"
    assert type(error) is CriError


async def test_a_check_tells_what_it_finds_and_repairs_on_demand(images: StoredImages) -> None:
    service = OwnImages(images)
    (finding,) = (await service.Check(pb.CheckRequest(deep=True))).findings
    assert (finding.kind, finding.subject, finding.found) == ("blob", LAYER, "truncated")
    assert not images.repaired
    assert not (await service.Check(pb.CheckRequest(repair=True))).findings
    assert images.repaired


async def test_the_log_names_the_image(images: StoredImages, listen: str) -> None:
    def ask() -> None:
        with ImagesClient(listen) as client:
            client.tag("a.test/app:1", "mine:2")

    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await asyncio.to_thread(ask)
    assert [line["image"] for line in lines if line["event"] == "rpc"] == ["a.test/app:1"]
