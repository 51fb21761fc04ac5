"""The client's end of our own image service, for the command line: blocking calls to a running daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message

from cri_py import errors
from cri_py.errors import ConfigError, CriError, Unavailable
from cri_py.images.check import Kind, Trouble
from cri_py.images.progress import LayerProgress
from cri_py.model import Digest
from cri_py.rpc.gen import images_pb2 as pb
from cri_py.rpc.gen import images_pb2_grpc as services
from cri_py.rpc.interceptor import STATUS_NAMES
from cri_py.rpc.listen import UnixAddress, parse_address

_CONNECT_S: Final = 5.0
_BY_CODE: Final[Mapping[str, type[CriError]]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CriError) and kind.__base__ is CriError and kind is not ConfigError
    if kind.code != CriError.code  # of those with UNKNOWN only the words tell which it was
}


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


class ImagesClient:
    """Each method is an RPC of ``cri_py.v1.Images``; what the daemon refuses is raised as the same CriError."""

    def __init__(self, listen: str) -> None:
        self._address = address = parse_address(listen, "server.listen")
        target = f"unix:{address.path}" if isinstance(address, UnixAddress) else str(address)
        self._channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)])
        self._stub = services.ImagesStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        if not self._answers():
            self._channel.close()
            raise Unavailable(
                f"no daemon answers at {self._address}",
                hint="start one by cri-py serve, or name its --state or --listen",
            )
        return self

    def _answers(self) -> bool:
        if isinstance(self._address, UnixAddress) and not os.path.exists(self._address.path):
            return False  # and none is waited for
        try:
            grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_S)
        except grpc.FutureTimeoutError:
            return False
        return True

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._channel.close()

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


def as_error(error: Any) -> CriError:
    """A status as the error that it was; ``error`` is a grpc.RpcError, which has no types."""
    name = STATUS_NAMES.get(error.code().value[0], "UNKNOWN")
    return _BY_CODE.get(name, CriError)(error.details() or name)
