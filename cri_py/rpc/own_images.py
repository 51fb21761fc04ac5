"""Our own service beside CRI's ImageService: what ``cri-py image`` asks of a running daemon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.images.check import Trouble
from cri_py.images.progress import LayerProgress
from cri_py.rpc.gen import images_pb2 as pb

PACE_S: Final = 0.1  # between two looks at a pull: a person's eye wants no more


class Images(Protocol):
    async def pull(self, ref: str, auth: model.RegistryAuth | None) -> model.Image: ...
    def list(self, ref: str = "") -> Sequence[model.Image]: ...
    def find(self, ref_or_id: str) -> model.Image | None: ...
    async def tag(self, ref_or_id: str, tag: str) -> str: ...
    async def untag(self, ref: str) -> None: ...
    def progress_of(self, ref: str) -> Sequence[LayerProgress]: ...
    def config_file(self, image: model.Image) -> bytes: ...
    async def check(self, *, deep: bool = False, repair: bool = False) -> Sequence[Trouble]: ...


class OwnImages:
    """The methods bear the names of the RPCs."""

    def __init__(self, images: Images, pace_s: float = PACE_S) -> None:
        self._images = images
        self._pace_s = pace_s

    async def Pull(self, request: pb.PullRequest) -> AsyncIterator[pb.PullProgress]:
        ref, told = _named(request.ref), list[pb.LayerProgress]()
        pull = asyncio.ensure_future(self._images.pull(ref, None))
        try:
            while not pull.done():
                if (layers := self._layers(ref)) and layers != told:
                    yield pb.PullProgress(layers=layers)
                    told = layers
                await asyncio.wait({pull}, timeout=self._pace_s)
            yield pb.PullProgress(image_id=(await pull).id)
        finally:
            pull.cancel()  # whoever asked has left; done long since otherwise
            await asyncio.wait({pull})

    def _layers(self, ref: str) -> list[pb.LayerProgress]:
        return [
            pb.LayerProgress(
                digest=layer.digest,
                size=layer.size,
                fetched=layer.fetched,
                unpacked=layer.unpacked,
                present=layer.present,
            )
            for layer in self._images.progress_of(ref)
        ]

    async def List(self, _: pb.ListRequest) -> pb.ListResponse:
        return pb.ListResponse(images=[image(each) for each in self._images.list()])

    async def Inspect(self, request: pb.InspectRequest) -> pb.InspectResponse:
        found = self._images.find(_named(request.ref))
        if found is None:
            return pb.InspectResponse()
        return pb.InspectResponse(image=image(found), config=self._images.config_file(found), chain_ids=found.chain_ids)

    async def Tag(self, request: pb.TagRequest) -> pb.TagResponse:
        return pb.TagResponse(tag=await self._images.tag(_named(request.ref), _named(request.tag)))

    async def Remove(self, request: pb.RemoveRequest) -> pb.RemoveResponse:
        await self._images.untag(_named(request.ref))
        return pb.RemoveResponse()

    async def Check(self, request: pb.CheckRequest) -> pb.CheckResponse:
        found = await self._images.check(deep=request.deep, repair=request.repair)
        return pb.CheckResponse(
            findings=[
                pb.Finding(kind=each.kind.value, subject=each.subject, found=each.found, images=each.images)
                for each in found
            ]
        )


def image(value: model.Image) -> pb.Image:
    return pb.Image(id=value.id, tags=value.repo_tags, digests=value.repo_digests, size=value.size, pinned=value.pinned)


def _named(ref: str) -> str:
    if not ref:
        raise InvalidArgument("no image is named", hint="give a ref such as registry.k8s.io/pause:3.10, or an id")
    return ref
