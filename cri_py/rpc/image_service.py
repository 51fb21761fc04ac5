"""ImageService: decode, one call down, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.rpc import answers, convert, listing
from cri_py.rpc.gen import api_pb2 as pb


class Images(Protocol):
    async def pull(self, ref: str, auth: model.RegistryAuth | None) -> model.Image: ...
    def list(self, ref: str = "") -> Sequence[model.Image]: ...
    def find(self, ref_or_id: str) -> model.Image | None: ...
    async def remove(self, ref_or_id: str) -> None: ...
    async def filesystem_usage(self) -> Sequence[model.FilesystemUsage]: ...
    def verbose(self, image: model.Image) -> dict[str, str]: ...


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
        image = self._images.find(_named(request.image))
        if image is None:
            return pb.ImageStatusResponse()
        info = self._images.verbose(image) if request.verbose else {}
        return pb.ImageStatusResponse(image=answers.image(image), info=info)

    async def PullImage(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        image = await self._images.pull(_named(request.image), convert.registry_auth(request))
        return pb.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        await self._images.remove(_named(request.image))
        return pb.RemoveImageResponse()

    async def ImageFsInfo(self, _: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """Images and writable layers share the file systems; the kubelet wants both lists all the same (KEP-4191)."""
        usage = [answers.filesystem(filesystem) for filesystem in await self._images.filesystem_usage()]
        return pb.ImageFsInfoResponse(image_filesystems=usage, container_filesystems=usage)


def _named(spec: pb.ImageSpec) -> str:
    if not spec.image:
        raise InvalidArgument("image.image is empty", hint="give a ref such as registry.k8s.io/pause:3.10, or an id")
    return spec.image
