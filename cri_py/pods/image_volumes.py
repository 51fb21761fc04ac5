"""Image volumes: what the images are that a container mounts beside its own, and where their files lie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from cri_py.errors import FailedPrecondition, InvalidArgument, NotFound
from cri_py.images.service import Images
from cri_py.model import ContainerConfig, Image, ImageId


@dataclass(frozen=True, slots=True)
class ImageVolume:
    """``lower``: the directories of the image, the topmost first; of an artifact one, to be laid out."""

    image: Image
    lower: tuple[str, ...]


def find(images: Images, config: ContainerConfig, writable: str) -> dict[str, ImageVolume]:
    """By the container_path of their mounts. ``writable``: the directory of the container's own layer, below which an
    artifact's files will be. Raises NotFound for an image that is not here, FailedPrecondition for one without files.
    """
    found: dict[str, ImageVolume] = {}
    for number, mount in enumerate(config.mounts):
        if mount.image is None:
            continue
        if not mount.image.image:
            raise InvalidArgument(f"mounts.image (at {mount.container_path}) names no image", hint="set image.image")
        image = images.find(mount.image.image)
        if image is None:
            raise NotFound(
                f"ImageVolumeMountFailed: {mount.image.image!r}, wanted at {mount.container_path}, is not on this node",
                hint="pull it first",
            )
        lower = (f"{writable}/artifacts/{number}",) if image.artifact_type else images.lower_dirs(image.id)
        if not lower:
            raise FailedPrecondition(
                f"ImageVolumeMountFailed: the image {mount.image.image!r} for {mount.container_path} has no files",
                hint="mount an image with at least one layer",
            )
        found[mount.container_path] = ImageVolume(image, lower)
    return found


def image_ids(volumes: dict[str, ImageVolume]) -> dict[str, ImageId]:
    """By container_path."""
    return {path: volume.image.id for path, volume in volumes.items()}


def layers(volumes: dict[str, ImageVolume]) -> dict[str, tuple[str, ...]]:
    """By container_path."""
    return {path: volume.lower for path, volume in volumes.items()}


@asynccontextmanager
async def using(images: Images, volumes: dict[str, ImageVolume]) -> AsyncIterator[None]:
    """Within the block their layers stay: their removal meanwhile must leave what is being mounted."""
    with ExitStack() as stack:
        for volume in volumes.values():
            stack.enter_context(images.using(volume.image.id))
        yield


async def lay_out(images: Images, volumes: dict[str, ImageVolume]) -> None:
    """Make the files of artifacts appear."""
    for volume in volumes.values():
        if volume.image.artifact_type:
            await images.lay_out(volume.image, volume.lower[0])
