"""The client's end of images without a registry: archives and trees go to the daemon in pieces, and come so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from cri_py.images.building import Wishes
from cri_py.rpc.daemon_client import as_error
from cri_py.rpc.gen import images_pb2 as pb
from cri_py.rpc.gen import images_pb2_grpc as services
from cri_py.rpc.images_client import ImagesClient, Listed, listed


class ExchangeClient(ImagesClient):
    """Each method is an RPC of ``cri_py.v1.ImageExchange``."""

    def __init__(self, listen: str) -> None:
        super().__init__(listen)
        self._exchange = services.ImageExchangeStub(self._channel)  # type: ignore[no-untyped-call]

    def take(self, pieces: Iterator[bytes], tag: str) -> list[Listed]:
        sent = _Sent(pieces, pb.ImportRequest(tag=tag), lambda piece: pb.ImportRequest(piece=piece))
        return [listed(each) for each in sent.to(self._exchange.Import).images]

    def give(self, refs: Sequence[str]) -> Iterator[bytes]:
        try:
            for answer in self._exchange.Export(pb.ExportRequest(refs=refs)):
                yield answer.piece
        except grpc.RpcError as error:
            raise as_error(error) from None

    def build(self, pieces: Iterator[bytes], tag: str, wishes: Wishes) -> Listed:
        config = pb.BuildConfig(
            tag=tag,
            platform=wishes.platform,
            entrypoint=wishes.entrypoint,
            cmd=wishes.cmd,
            env=wishes.env,
            working_dir=wishes.working_dir,
            user=wishes.user,
            labels=wishes.labels,
            exposed_ports=wishes.exposed_ports,
            volumes=wishes.volumes,
            stop_signal=wishes.stop_signal,
        )
        sent = _Sent(pieces, pb.BuildRequest(config=config), lambda piece: pb.BuildRequest(piece=piece))
        return listed(sent.to(self._exchange.Build).image)

    def commit(self, container_id: str, tag: str) -> Listed:
        request = pb.CommitRequest(container_id=container_id, tag=tag)
        try:
            return listed(self._exchange.Commit(request).image)
        except grpc.RpcError as error:
            raise as_error(error) from None


class _Sent:
    """A stream of requests. What goes wrong in reading the pieces is kept: gRPC, on whose thread that is, drops it."""

    def __init__(self, pieces: Iterator[bytes], first: object, wrap: Callable[[bytes], object]) -> None:
        self._pieces = pieces
        self._first = first
        self._wrap = wrap
        self._failure: Exception | None = None

    def to(self, method: Callable[[Iterator[object]], Any]) -> Any:
        """Returns the answer. Raises what the pieces or the daemon raised."""
        try:
            return method(self._requests())
        except grpc.RpcError as error:
            if self._failure is not None:
                raise self._failure from None
            raise as_error(error) from None

    def _requests(self) -> Iterator[object]:
        yield self._first
        while True:
            try:
                piece = next(self._pieces, None)
            except Exception as error:
                self._failure = error
                raise
            if piece is None:
                return
            yield self._wrap(piece)
