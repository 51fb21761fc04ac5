"""Images without a registry over the wire: pieces come in order, and what is not named is refused first."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

import pytest

from cri_py import model
from cri_py.errors import InvalidArgument, NotFound
from cri_py.images.building import Wishes
from cri_py.rpc.gen import images_pb2 as pb
from cri_py.rpc.own_exchange import Changed, OwnExchange

_Request = TypeVar("_Request")
IMAGE = model.Image(model.ImageId("sha256:" + "a" * 64), ("app:1",), (), 7, model.ImageConfig(), ())


class Store:
    """Takes whatever comes, and gives it back."""

    def __init__(self) -> None:
        self.content = b""
        self.asked: list[object] = []

    async def take(self, pieces: AsyncIterator[bytes], tag: str) -> Sequence[model.Image]:
        self.content = b"".join([piece async for piece in pieces])
        self.asked.append(tag)
        return [IMAGE]

    async def give(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        self.asked.append(refs)
        for start in range(0, len(self.content), 2):
            yield self.content[start : start + 2]

    async def build(self, pieces: AsyncIterator[bytes], tag: str, wishes: Wishes) -> model.Image:
        self.content = b"".join([piece async for piece in pieces])
        self.asked += [tag, wishes]
        return IMAGE

    async def commit(self, image_id: model.ImageId, upper: str, tag: str, container_id: str) -> model.Image:
        self.asked.append((image_id, upper, tag, container_id))
        return IMAGE


def changes_of(container_id: str) -> Changed:
    if container_id != "c":
        raise NotFound(f"there is no container {container_id}")
    return Changed("cc", IMAGE.id, "/upper")


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def service(store: Store) -> OwnExchange:
    return OwnExchange(store, changes_of)


async def sent(*requests: _Request) -> AsyncIterator[_Request]:
    for request in requests:
        yield request


async def test_an_archive_comes_and_goes_in_pieces(service: OwnExchange, store: Store) -> None:
    pieces = [pb.ImportRequest(tag="app:1", piece=b"ab"), pb.ImportRequest(piece=b"cd"), pb.ImportRequest(piece=b"e")]
    answer = await service.Import(sent(*pieces))
    assert [(image.id, list(image.tags), image.size) for image in answer.images] == [(IMAGE.id, ["app:1"], 7)]
    given = [answer.piece async for answer in service.Export(pb.ExportRequest(refs=["app:1", "app:2"]))]
    assert given == [b"ab", b"cd", b"e"]
    assert store.asked == ["app:1", ["app:1", "app:2"]]


async def test_nothing_at_all_is_an_empty_archive(service: OwnExchange, store: Store) -> None:
    await service.Import(sent())
    assert (store.content, store.asked) == (b"", [""])


async def test_every_wish_arrives(service: OwnExchange, store: Store) -> None:
    config = pb.BuildConfig(
        tag="app:1",
        platform="linux/arm/v7",
        entrypoint=["/e"],
        cmd=["c"],
        env=["A=1"],
        working_dir="/w",
        user="7",
        labels={"k": "v"},
        exposed_ports=["80"],
        volumes=["/v"],
        stop_signal="SIGINT",
    )
    await service.Build(sent(pb.BuildRequest(config=config), pb.BuildRequest(piece=b"tar")))
    wishes = Wishes("linux/arm/v7", ("/e",), ("c",), ("A=1",), "/w", "7", {"k": "v"}, ("80",), ("/v",), "SIGINT")
    assert (store.content, store.asked) == (b"tar", ["app:1", wishes])


async def test_a_commit_is_of_what_the_container_has_changed(service: OwnExchange, store: Store) -> None:
    await service.Commit(pb.CommitRequest(container_id="c", tag="app:1"))
    assert store.asked == [(IMAGE.id, "/upper", "app:1", "cc")]
    with pytest.raises(NotFound):
        await service.Commit(pb.CommitRequest(container_id="other", tag="app:1"))


async def test_an_image_that_is_to_have_no_name_is_not_made(service: OwnExchange, store: Store) -> None:
    with pytest.raises(InvalidArgument, match="--tag"):
        await service.Build(sent(pb.BuildRequest(piece=b"tar")))
    with pytest.raises(InvalidArgument, match="--tag"):
        await service.Commit(pb.CommitRequest(container_id="c"))
    assert store.asked == []
