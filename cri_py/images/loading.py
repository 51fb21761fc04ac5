"""What an earlier life recorded of images and layers: a record that makes no sense costs its image, and no start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import msgspec
import structlog

from cri_py.errors import InvalidArgument
from cri_py.images import records, snapshots
from cri_py.images.records import ImageRecord
from cri_py.images.snapshots import Snapshot
from cri_py.model import ChainId, ImageId
from cri_py.state.store import Change, Delete, Put, Store

ASIDE: Final = "damaged-"  # goes before the kind of a record that was set aside, to be looked at
_SENSELESS: Final = (msgspec.MsgspecError, InvalidArgument, ValueError, TypeError, RecursionError)
_Read = TypeVar("_Read")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """``damaged`` are the records that can't be read; ``aside`` the snapshots that an earlier life could not read."""

    images: list[ImageRecord] = field(default_factory=list)
    snapshots: dict[ChainId, Snapshot] = field(default_factory=dict)
    retired: dict[ImageId, tuple[ChainId, ...]] = field(default_factory=dict)
    damaged: list[Put] = field(default_factory=list)
    aside: Sequence[Put] = ()

    @property
    def nameless(self) -> bool:
        """Whether a directory that no snapshot names may be one whose record was damaged."""
        return bool(self.aside) or any(put.kind == snapshots.RECORD for put in self.damaged)

    @property
    def lost_images(self) -> list[ImageId]:
        """Ids of images, also removed ones, of whose layers nothing is known."""
        return [ImageId(put.key) for put in self.damaged if put.kind != snapshots.RECORD]


def load(store: Store) -> Loaded:
    """Read all records; changes nothing."""
    loaded = Loaded(aside=store.load(ASIDE + snapshots.RECORD))
    for put in store.load(snapshots.RECORD):
        if (snapshot := _read(put, snapshots.decode, loaded.damaged)) is not None:
            loaded.snapshots[ChainId(put.key)] = snapshot
    for put in store.load(records.IMAGE):
        if (record := _read(put, records.decode, loaded.damaged)) is not None:
            loaded.images.append(record)
    for put in store.load(records.RETIRED):
        if (chain_ids := _read(put, records.decode_retired, loaded.damaged)) is not None:
            loaded.retired[ImageId(put.key)] = chain_ids
    return loaded


def _read(put: Put, decode: Callable[[Put], _Read], damaged: list[Put]) -> _Read | None:
    try:
        return decode(put)
    except _SENSELESS as error:
        log.warning("a record is damaged", kind=put.kind, key=put.key, cause=str(error))
        damaged.append(put)
        return None


def set_aside(damaged: Sequence[Put]) -> list[Change]:
    """The changes that move damaged records out of the way."""
    moves = [(replace(put, kind=ASIDE + put.kind), Delete(put.kind, put.key)) for put in damaged]
    return [change for move in moves for change in move]
