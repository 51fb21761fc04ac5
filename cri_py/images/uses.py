"""Which images are in use: by recorded containers, and by those that are being made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from cri_py.model import ImageId


class Uses:
    """``recorded``: the images of all containers that have a record."""

    def __init__(self, recorded: Callable[[], Collection[ImageId]]) -> None:
        self._recorded = recorded
        self._coming: Counter[ImageId] = Counter()

    @contextmanager
    def of(self, image_id: ImageId) -> Iterator[None]:
        """Within the block the image counts as in use, as it will once a container that is being made is recorded."""
        self._coming[image_id] += 1
        try:
            yield
        finally:
            self._coming[image_id] -= 1
            self._coming += Counter()  # drops what nobody uses any more

    def all(self) -> set[ImageId]:
        """Those that must stay."""
        return {*self._recorded(), *self._coming}
