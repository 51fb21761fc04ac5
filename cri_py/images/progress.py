"""How far the pulls under way are, layer by layer, for whoever wants to watch."""

from __future__ import annotations

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
        # A ref is there twice while it is pulled with different credentials.
        self._pulls: list[tuple[str, tuple[tuple[Descriptor, bool], ...]]] = []

    @contextmanager
    def pull(self, ref: str, layers: Sequence[Descriptor], present: Collection[Digest]) -> Iterator[None]:
        """For as long as the block runs, ``ref`` is being pulled; layers in ``present`` need nothing."""
        pull = (ref, tuple((layer, layer.digest in present) for layer in layers))
        self._pulls.append(pull)
        try:
            yield
        finally:
            self._pulls.remove(pull)
            needed = {layer.digest for _, others in self._pulls for layer, _ in others}
            for counts in (self._fetched, self._unpacked):
                for digest in counts.keys() - needed:
                    del counts[digest]

    def fetched(self, digest: Digest, count: int) -> None:
        """So many bytes of a blob have come; fewer than before once it was begun again."""
        self._fetched[digest] = count

    def unpacked(self, digest: Digest, count: int) -> None:
        """So many bytes of a blob are unpacked."""
        self._unpacked[digest] = count

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
            for layer, present in next((layers for name, layers in self._pulls if name == ref), ())
        )

    def under_way(self) -> tuple[str, ...]:
        """The refs that are being pulled."""
        return tuple(dict.fromkeys(ref for ref, _ in self._pulls))

    def totals(self) -> dict[str, float]:
        """Compressed bytes of the layers that pulls under way need, each layer once: wanted, fetched, unpacked."""
        layers = {layer.digest: layer for ref in self.under_way() for layer in self.of(ref)}.values()
        return {
            "wanted": sum(layer.size for layer in layers),
            "fetched": sum(layer.fetched for layer in layers),
            "unpacked": sum(layer.unpacked for layer in layers),
        }
