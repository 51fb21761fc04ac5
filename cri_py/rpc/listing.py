"""Lists, joined from encoded items.

The kubelet lists every pod and container once a second. A protobuf message is merged by joining encodings (the wire
format's own rule: repeated fields append), so a list is the join of one-item lists, and a one-item list of a frozen
value never changes. With 100 containers: made afresh 950 µs, from kept messages 340 µs, from kept encodings 3 µs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Generic, TypeVar

from cri_py import model
from cri_py.rpc import answers
from cri_py.rpc.gen import api_pb2 as pb

T = TypeVar("T", model.Sandbox, model.Container, model.Image)

BATCH: Final = 1000  # items in one message of a stream; even with long annotations far below every message limit


class Listing(Generic[T]):
    """``encode_one`` makes the encoded list of one item; it is kept for as long as the value lives."""

    def __init__(self, encode_one: Callable[[T], bytes]) -> None:
        self._encode_one: Callable[[T], bytes] = encode_one
        self._kept: dict[int, tuple[weakref.ref[T], bytes]] = {}

    def whole(self, values: Sequence[T]) -> bytes:
        """The encoded response that lists all values."""
        return b"".join([self._encoded(value) for value in values])

    def parts(self, values: Sequence[T]) -> Iterator[bytes]:
        """The encoded responses of a stream: none is empty (KEP-5825), so there is none where nothing is."""
        for start in range(0, len(values), BATCH):
            yield self.whole(values[start : start + BATCH])

    def _encoded(self, value: T) -> bytes:
        """By identity: values that hold mappings have no hash, and comparing them would cost what is saved."""
        key = id(value)
        kept = self._kept.get(key)
        if kept is not None and kept[0]() is value:
            return kept[1]
        encoded = self._encode_one(value)
        self._kept[key] = (weakref.ref(value, self._forget(key)), encoded)
        return encoded

    def _forget(self, key: int) -> Callable[[weakref.ref[T]], None]:
        kept = self._kept

        def forget(gone: weakref.ref[T]) -> None:
            # The key may be another value's by now, if the two died and were born in one go.
            if key in kept and kept[key][0] is gone:
                del kept[key]

        return forget


# StreamXResponse has its items in the same field as ListXResponse, number 1, so one encoding serves both.


def sandboxes() -> Listing[model.Sandbox]:
    return Listing(lambda value: pb.ListPodSandboxResponse(items=[answers.sandbox(value)]).SerializeToString())


def containers() -> Listing[model.Container]:
    return Listing(lambda value: pb.ListContainersResponse(containers=[answers.container(value)]).SerializeToString())


def images() -> Listing[model.Image]:
    return Listing(lambda value: pb.ListImagesResponse(images=[answers.image(value)]).SerializeToString())
