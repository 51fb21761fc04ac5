"""Images without a registry, as our own service beside CRI's: what ``cri-py image import`` and its like ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, Protocol

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.images.building import Wishes
from cri_py.rpc.gen import images_pb2 as pb
from cri_py.rpc.own_images import image


class Changed(NamedTuple):
    """A container, the image that it was made of, and the directory with what it has changed."""

    container_id: str
    image_id: model.ImageId
    upper: str


class Exchange(Protocol):
    async def take(self, pieces: AsyncIterator[bytes], tag: str) -> Sequence[model.Image]: ...
    def give(self, refs: Sequence[str]) -> AsyncIterator[bytes]: ...
    async def build(self, pieces: AsyncIterator[bytes], tag: str, wishes: Wishes) -> model.Image: ...
    async def commit(self, image_id: model.ImageId, upper: str, tag: str, container_id: str) -> model.Image: ...


class OwnExchange:
    """The methods bear the names of the RPCs. ``changes_of`` raises NotFound for an unknown container."""

    def __init__(self, exchange: Exchange, changes_of: Callable[[str], Changed]) -> None:
        self._exchange = exchange
        self._changes_of = changes_of

    async def Import(self, requests: AsyncIterator[pb.ImportRequest]) -> pb.ImportResponse:
        first = await anext(requests, pb.ImportRequest())
        images = await self._exchange.take(_pieces(first, requests), first.tag)
        return pb.ImportResponse(images=[image(each) for each in images])

    async def Export(self, request: pb.ExportRequest) -> AsyncIterator[pb.ExportResponse]:
        async for piece in self._exchange.give(list(request.refs)):
            yield pb.ExportResponse(piece=piece)

    async def Build(self, requests: AsyncIterator[pb.BuildRequest]) -> pb.BuildResponse:
        first = await anext(requests, pb.BuildRequest())
        config = first.config
        wishes = Wishes(
            platform=config.platform,
            entrypoint=tuple(config.entrypoint),
            cmd=tuple(config.cmd),
            env=tuple(config.env),
            working_dir=config.working_dir,
            user=config.user,
            labels=dict(config.labels),
            exposed_ports=tuple(config.exposed_ports),
            volumes=tuple(config.volumes),
            stop_signal=config.stop_signal,
        )
        return pb.BuildResponse(
            image=image(await self._exchange.build(_pieces(first, requests), _named(config.tag), wishes))
        )

    async def Commit(self, request: pb.CommitRequest) -> pb.CommitResponse:
        changed = self._changes_of(request.container_id)
        made = await self._exchange.commit(changed.image_id, changed.upper, _named(request.tag), changed.container_id)
        return pb.CommitResponse(image=image(made))


async def _pieces(
    first: pb.ImportRequest | pb.BuildRequest, others: AsyncIterator[pb.ImportRequest | pb.BuildRequest]
) -> AsyncIterator[bytes]:
    yield first.piece
    async for request in others:
        yield request.piece


def _named(tag: str) -> str:
    if not tag:
        raise InvalidArgument("the image has no name", hint="give it one by --tag NAME:TAG")
    return tag
