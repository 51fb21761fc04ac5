"""Image stores over a simulated registry, each in a directory of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from cri_py.images.manifest import Descriptor
from cri_py.images.service import Images
from cri_py.model import Digest, ImageId, Nanos
from cri_py.state.store import Store
from tests.simulators.registry import Pushed, RegistrySimulator
from tests.unit.images.nodes import BLOB, HERMETIC, Node


class OpenImages(Protocol):
    """Opens the store in this test's directory; again after it was closed, it is a restart."""

    def __call__(self, **config: Any) -> AbstractAsyncContextManager[Images]: ...


@pytest.fixture
def registry() -> Iterator[RegistrySimulator]:
    with RegistrySimulator() as simulator:
        yield simulator


@pytest.fixture
def in_use() -> set[ImageId]:
    return set()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def open_images(root: Path, in_use: set[ImageId]) -> OpenImages:
    @asynccontextmanager
    async def opened(**config: Any) -> AsyncIterator[Images]:
        store = Store(str(root / "images.db"), durable=True)
        images = Images(
            str(root),
            replace(HERMETIC, **config),
            store,
            lambda: in_use,
            lambda: Nanos(1),
        )
        try:
            await images.start()
            yield images
        finally:
            await images.close()
            store.close()

    return opened


@pytest.fixture
async def images(open_images: OpenImages) -> AsyncIterator[Images]:
    async with open_images() as opened:
        yield opened


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def blob(registry: RegistrySimulator) -> Descriptor:
    described = registry.describe(BLOB, "application/octet-stream")
    return Descriptor("", Digest(described["digest"]), len(BLOB))


@pytest.fixture
def pushed(registry: RegistrySimulator) -> Pushed:
    return registry.push("team/app", "1", [b""])
