"""How far the pulls under way are, layer by layer, for whoever wants to watch."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cri_py.images.manifest import Descriptor
from cri_py.model import Digest


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """Compressed bytes of one layer: all, those that have come, those that are unpacked. ``present``: nothing had to
    be done."""

    digest: Digest
    size: int
    fetched: int
    unpacked: int
    present: bool


class Progress:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._fetched: dict[Digest, int] = {}
        self._unpacked: dict[Digest, int] = {}
        self._pulls: dict[str, tuple[tuple[Descriptor, bool], ...]] = {}
        self._changed = asyncio.Event()

    @contextmanager
    def pull(self, ref: str, layers: Sequence[Descriptor], present: Collection[Digest]) -> Iterator[None]:
        """For as long as the block runs, ``ref`` is being pulled; layers in ``present`` need nothing."""
        self._pulls[ref] = tuple((layer, layer.digest in present) for layer in layers)
        self._tell()
        try:
            yield
        finally:
            del self._pulls[ref]
            needed = {layer.digest for pull in self._pulls.values() for layer, _ in pull}
            for counts in (self._fetched, self._unpacked):
                for digest in counts.keys() - needed:
                    del counts[digest]
            self._tell()

    def fetched(self, digest: Digest, count: int) -> None:
        """So many bytes of a blob have come; fewer than before once it was begun again."""
        self._fetched[digest] = count
        self._tell()

    def unpacked(self, digest: Digest, count: int) -> None:
        """So many bytes of a blob are unpacked."""
        self._unpacked[digest] = count
        self._tell()

    def of(self, ref: str) -> tuple[LayerProgress, ...]:
        """The layers of a pull under way, the base first; empty while its manifest is not known, or without one."""
        return tuple(
            LayerProgress(
                layer.digest,
                layer.size,
                layer.size if present else min(self._fetched.get(layer.digest, 0), layer.size),
                layer.size if present else min(self._unpacked.get(layer.digest, 0), layer.size),
                present,
            )
            for layer, present in self._pulls.get(ref, ())
        )

    def under_way(self) -> tuple[str, ...]:
        """The refs that are being pulled."""
        return tuple(self._pulls)

    def totals(self) -> dict[str, float]:
        """Compressed bytes of the layers that pulls under way need, each layer once: wanted, fetched, unpacked."""
        layers = {layer.digest: layer for ref in self._pulls for layer in self.of(ref)}.values()
        return {
            "wanted": sum(layer.size for layer in layers),
            "fetched": sum(layer.fetched for layer in layers),
            "unpacked": sum(layer.unpacked for layer in layers),
        }

    async def change(self) -> None:
        """Wait until something is further than it was."""
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
