"""ImageService: decode, one call down, encode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Protocol

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.images.progress import LayerProgress
from cri_py.rpc import answers, convert, listing
from cri_py.rpc.gen import api_pb2 as pb


class Images(Protocol):
    async def pull(self, ref: str, auth: model.RegistryAuth | None) -> model.Image: ...
    def list(self, ref: str = "") -> Sequence[model.Image]: ...
    def find(self, ref_or_id: str) -> model.Image | None: ...
    async def remove(self, ref_or_id: str) -> None: ...
    async def filesystem_usage(self) -> Sequence[model.FilesystemUsage]: ...
    async def container_filesystem_usage(self) -> Sequence[model.FilesystemUsage]: ...
    def verbose(self, image: model.Image) -> dict[str, str]: ...
    def progress_of(self, ref: str) -> Sequence[LayerProgress]: ...


class ImageService:
    """The methods bear the names of the RPCs."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._listing = listing.images()

    async def ListImages(self, request: pb.ListImagesRequest) -> bytes:
        return self._listing.whole(self._images.list(request.filter.image.image))

    async def StreamImages(self, request: pb.StreamImagesRequest) -> AsyncIterator[bytes]:
        for part in self._listing.parts(self._images.list(request.filter.image.image)):
            yield part

    async def ImageStatus(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        ref = _named(request.image)
        image = self._images.find(ref)
        info = self._under_way(ref) if request.verbose else {}
        if image is None:
            return pb.ImageStatusResponse(info=info)
        if request.verbose:
            info |= self._images.verbose(image)
        answer = answers.image(image)
        asked = request.image
        if asked.user_specified_image or asked.annotations:  # known in the context of a call only (api.proto)
            # Without spec.image: whatever names an image, its status is the same (critest compares).
            spec = pb.ImageSpec(user_specified_image=asked.user_specified_image, annotations=asked.annotations)
            answer.spec.CopyFrom(spec)
        return pb.ImageStatusResponse(image=answer, info=info)

    def _under_way(self, ref: str) -> dict[str, str]:
        """How far a pull of the image is, if one is under way: JSON in ``pull``."""
        layers = self._images.progress_of(ref)
        if not layers:
            return {}
        return {"pull": json.dumps({"layers": [asdict(layer) for layer in layers]})}

    async def PullImage(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        image = await self._images.pull(_named(request.image), convert.registry_auth(request))
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        await self._images.remove(_named(request.image))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, _: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """Where writable layers share the disk of the images, both lists are the same: by that the kubelet tells a disk
        of the containers' own (KEP-4191)."""
        images = [answers.filesystem(each) for each in await self._images.filesystem_usage()]
        containers = [answers.filesystem(each) for each in await self._images.container_filesystem_usage()]
        return pb.ImageFsInfoResponse(image_filesystems=images, container_filesystems=containers or images)


def _named(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise InvalidArgument("image.image is empty", hint="give a ref such as registry.k8s.io/pause:3.10, or an id")
    return spec.image
