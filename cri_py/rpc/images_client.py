"""The client's end of our own image service, for the command line: blocking calls to a running daemon."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from cri_py.images.check import Kind, Trouble
from cri_py.images.progress import LayerProgress
from cri_py.model import Digest
from cri_py.rpc.daemon_client import DaemonClient, as_error
from cri_py.rpc.gen import images_pb2 as pb
from cri_py.rpc.gen import images_pb2_grpc as services


@dataclass(frozen=True, slots=True)
class Listed:
    """An image as a list shows it; ``size`` in compressed bytes."""

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    size: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    image: Listed
    config: bytes  # JSON, as its registry served it
    chain_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """How far a pull is; the last one has the image's id."""

    layers: tuple[LayerProgress, ...]
    image_id: str


class ImagesClient(DaemonClient):
    """Each method is an RPC of ``cri_py.v1.Images``; what the daemon refuses is raised as the same CriError."""

    def __init__(self, listen: str) -> None:
        super().__init__(listen)
        self._stub = services.ImagesStub(self._channel)  # type: ignore[no-untyped-call]

    def pull(self, ref: str) -> Iterator[Step]:
        for step in self._stream("Pull", pb.PullRequest(ref=ref)):
            layers = (
                LayerProgress(Digest(each.digest), each.size, each.fetched, each.unpacked, each.present)
                for each in step.layers
            )
            yield Step(tuple(layers), step.image_id)

    def images(self) -> list[Listed]:
        return [listed(each) for each in self._call("List", pb.ListRequest()).images]

    def inspect(self, ref: str) -> Inspected | None:
        answer = self._call("Inspect", pb.InspectRequest(ref=ref))
        if not answer.HasField("image"):
            return None
        return Inspected(listed(answer.image), answer.config, tuple(answer.chain_ids))

    def tag(self, ref: str, tag: str) -> str:
        return str(self._call("Tag", pb.TagRequest(ref=ref, tag=tag)).tag)

    def remove(self, ref: str) -> None:
        self._call("Remove", pb.RemoveRequest(ref=ref))

    def check(self, *, deep: bool, repair: bool) -> list[Trouble]:
        """What was wrong before it was repaired, if that is wished."""
        answer = self._call("Check", pb.CheckRequest(deep=deep, repair=repair))
        return [Trouble(Kind(each.kind), each.subject, each.found, tuple(each.images)) for each in answer.findings]

    def _call(self, method: str, request: Message) -> Any:
        try:
            return getattr(self._stub, method)(request)
        except grpc.RpcError as error:
            raise as_error(error) from None

    def _stream(self, method: str, request: Message) -> Iterator[Any]:
        try:
            yield from getattr(self._stub, method)(request)
        except grpc.RpcError as error:
            raise as_error(error) from None


def listed(image: pb.Image) -> Listed:
    return Listed(image.id, tuple(image.tags), tuple(image.digests), image.size, image.pinned)
