"""The image store of a daemon that does not run: checked, mended and filled by commands, under its lock."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cri_py.config import Config
from cri_py.errors import FailedPrecondition, NotFound
from cri_py.images.check import Trouble, look, stored
from cri_py.images.content import Content
from cri_py.images.exchange import Exchange
from cri_py.images.service import Images
from cri_py.model import Image, ImageId, Nanos
from cri_py.state.claim import claimed
from cri_py.state.store import Store


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was wrong, and what still is; both the same if nothing was to be repaired."""

    found: Sequence[Trouble]
    left: Sequence[Trouble]


Used = Callable[[], Collection[ImageId]]  # the images of recorded containers, asked for once the store is ours


def check(config: Config, used: Used, *, deep: bool, repair: bool) -> Outcome:
    """Look at the store below the config's root and, if wished, mend it, but for what containers use: they run on.

    Looking works beside a running daemon, too: then nothing is called orphaned, for a pull may be making it. Raises
    FailedPrecondition if a running daemon's store is to be repaired, NotFound if there is none.
    """
    root = config.server.root
    if not os.path.exists(f"{root}/images.db"):
        raise NotFound(f"{root} holds no image store", hint="name the daemon's root directory by --root or --config")
    try:
        with claimed(root):
            found = _look(config, deep=deep)
            return Outcome(found, asyncio.run(_mend(config, used, deep=deep)) if repair else found)
    except FailedPrecondition:
        if repair:
            raise
        found = [trouble for trouble in _look(config, deep=deep) if trouble.images]
        return Outcome(found, found)


def _look(config: Config, *, deep: bool) -> list[Trouble]:
    root = config.server.root
    store = Store(f"{root}/images.db", durable=True)
    try:
        recorded = stored(store, keeps_layers=not config.images.discard_unpacked_layers)
    finally:
        store.close()
    return look(recorded, Content(f"{root}/images/blobs"), f"{root}/images/layers", deep=deep)


def take(config: Config, used: Used, pieces: Iterator[bytes], tag: str) -> list[Image]:
    """Import an archive into the store below the config's root, which is made if need be.

    Raises FailedPrecondition before anything is read where a daemon has it, and what ``Exchange.take`` raises.
    """
    root = config.server.root
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except OSError as error:
        raise FailedPrecondition(
            f"{root} can't be made: {error.strerror}", hint="name the daemon's root directory by --root or --config"
        ) from error
    with claimed(root):
        return asyncio.run(_take(config, used, pieces, tag))


async def _take(config: Config, used: Used, pieces: Iterator[bytes], tag: str) -> list[Image]:
    async def sent() -> AsyncIterator[bytes]:
        for piece in pieces:  # nobody else waits for this loop
            yield piece

    async with _opened(config, used) as images:
        exchange = Exchange(images, f"{config.server.root}/images")
        try:
            return await exchange.take(sent(), tag)
        finally:
            exchange.close()


async def _mend(config: Config, used: Used, *, deep: bool) -> list[Trouble]:
    """Do what a daemon does when it starts, which sweeps and mends, then repair what only sizes or digests show."""
    async with _opened(config, used) as images:
        await images.check(deep=deep, repair=True)
        return await images.check(deep=deep)


@asynccontextmanager
async def _opened(config: Config, used: Used) -> AsyncIterator[Images]:
    in_use = frozenset(used())
    store = Store(f"{config.server.root}/images.db", durable=True)
    images = Images(f"{config.server.root}/images", config.images, store, lambda: in_use, lambda: Nanos(time.time_ns()))
    try:
        await images.start()
        yield images
    finally:
        await images.close()
        store.close()
