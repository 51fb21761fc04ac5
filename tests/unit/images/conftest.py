"""Image stores over a simulated registry, each in a directory of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from cri_py.config import ImagesConfig
from cri_py.images.service import Images
from cri_py.model import ImageId, Nanos
from cri_py.state.store import Store
from tests.simulators.registry import RegistrySimulator

# Reads nothing of the machine's, and doesn't wait between attempts.
HERMETIC = ImagesConfig(
    pull_progress_timeout_s=5.0, pull_retry_wait_s=0.0, certs_d=(), registries_conf="", auth_files=()
)


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
