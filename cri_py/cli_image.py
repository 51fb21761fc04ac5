"""``cri-py image …``: the images of a node, from the command line.

Each command takes the config, its own arguments and where to print; what it changes, a running daemon changes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TextIO

from cri_py.config import Config
from cri_py.errors import FailedPrecondition, NotFound
from cri_py.images import offline
from cri_py.images.offline import Outcome
from cri_py.images.progress import LayerProgress
from cri_py.pods.ledger import recorded_images
from cri_py.rpc.images_client import ImagesClient, Listed

_BAR: Final = 30
_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_SHOWN_HEX: Final = 12
_PLAIN_S: Final = 1.0  # between two lines where there is no terminal


def pull(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image pull REF``: a bar per layer on a terminal, elsewhere a line now and then."""
    show = _Bars(out) if out.isatty() else _Lines(out)
    with ImagesClient(config.listen) as client:
        for step in client.pull(parsed.ref):
            if step.image_id:
                show.end()
                out.write(f"{step.image_id}\n")
            else:
                show.layers(step.layers)
    return 0


def ls(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image ls``."""
    with ImagesClient(config.listen) as client:
        images = client.images()
    out.write(_as_json(images) if parsed.json else _as_table(images))
    return 0


def inspect(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image inspect REF``: names, size, layers and the image's config, as JSON."""
    with ImagesClient(config.listen) as client:
        found = client.inspect(parsed.ref)
    if found is None:
        raise NotFound(f"there is no image {parsed.ref!r}", hint="cri-py image ls lists those that are here")
    document = _fields(found.image) | {"chainIDs": list(found.chain_ids), "config": json.loads(found.config or b"null")}
    out.write(json.dumps(document, indent=2) + "\n")
    return 0


def tag(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image tag REF TAG``."""
    with ImagesClient(config.listen) as client:
        out.write(client.tag(parsed.ref, parsed.tag) + "\n")
    return 0


def rm(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image rm REF…``: a tag goes alone while the image has others, an id goes with all."""
    with ImagesClient(config.listen) as client:
        for ref in parsed.refs:
            client.remove(ref)
            out.write(f"{ref}\n")
    return 0


def check(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image check``: exit status 1 if something is wrong, and still is."""
    repair = parsed.repair and not parsed.dry_run
    try:
        used = partial(recorded_images, config.server.root)
        outcome = offline.check(config, used, deep=parsed.deep, repair=repair)
    except FailedPrecondition:  # the store belongs to a running daemon, which mends it around its pulls
        with ImagesClient(config.listen) as client:
            found = client.check(deep=parsed.deep, repair=True)
            outcome = Outcome(found, client.check(deep=parsed.deep, repair=False))
    out.write(as_text(outcome, repair=parsed.repair, dry_run=parsed.dry_run))
    return 1 if outcome.left else 0


def as_text(outcome: Outcome, *, repair: bool, dry_run: bool) -> str:
    """For people: a line each, a summary as the last one."""
    lines = [str(trouble) for trouble in outcome.found]
    count, left = len(outcome.found), len(outcome.left)
    if not count:
        summary = "nothing is wrong"
    elif repair and not dry_run:
        summary = f"{count} found, {count - left} repaired" + (f", {left} left" if left else "")
    elif repair:
        summary = f"{count} would be repaired: layers unpacked again, orphans deleted, images without blobs forgotten"
    else:
        summary = f"{count} found; --repair mends, --repair --dry-run tells what that does"
    return "\n".join([*lines, summary]) + "\n"


# ------------------------------------------------------------------ progress


class _Bars:
    """A line per layer, drawn over the one before (ECMA-48 cursor movements), as many as the terminal has."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._seen: Sequence[LayerProgress] = ()
        self._drawn = 0

    def layers(self, layers: Sequence[LayerProgress]) -> None:
        columns, rows = shutil.get_terminal_size()
        # A line that is wrapped or has scrolled away can't be drawn over.
        lines = [line[: columns - 1] for line in _fitting(layers, max(rows - 1, 1))]
        back = f"\x1b[{self._drawn}A\x1b[J" if self._drawn else ""
        self._out.write(back + "".join(f"\r{line}\n" for line in lines))
        self._out.flush()
        self._seen, self._drawn = layers, len(lines)

    def end(self) -> None:
        """The image is here: so is all of every layer, whatever was seen last."""
        if self._seen:
            self.layers([replace(layer, fetched=layer.size, unpacked=layer.size) for layer in self._seen])


class _Lines:
    """A line for the whole pull, at most one a second."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._said = 0.0

    def layers(self, layers: Sequence[LayerProgress]) -> None:
        now = time.monotonic()
        if now - self._said < _PLAIN_S:
            return
        self._said = now
        size, fetched = sum(layer.size for layer in layers), sum(layer.fetched for layer in layers)
        done = sum(layer.unpacked >= layer.size for layer in layers)
        self._out.write(f"{_human(fetched)} of {_human(size)} fetched, {done} of {len(layers)} layers unpacked\n")
        self._out.flush()

    def end(self) -> None:
        """There is nothing to finish."""


def _fitting(layers: Sequence[LayerProgress], rows: int) -> list[str]:
    """A bar for each layer; if there are more than rows, for those in motion and the next, and a line for the rest."""
    if len(layers) <= rows:
        return [_bar(layer) for layer in layers]
    ranked = sorted(range(len(layers)), key=lambda position: _rank(layers[position]))
    shown = sorted(ranked[: rows - 1])
    rest = [layers[position] for position in ranked[rows - 1 :]]
    there = sum(layer.unpacked >= layer.size for layer in rest)
    return [*(_bar(layers[position]) for position in shown), f"and {len(rest)} more, {there} of them here"]


def _rank(layer: LayerProgress) -> int:
    """Those that move first, then those that wait, then those that are here."""
    if layer.unpacked >= layer.size:
        return 2
    return 0 if layer.fetched else 1


def _bar(layer: LayerProgress) -> str:
    short = layer.digest.partition(":")[2][:_SHOWN_HEX]
    if layer.present:
        return f"{short} already here"
    if layer.unpacked >= layer.size:
        return f"{short} [{'=' * _BAR}] {_human(layer.size)} unpacked"
    unpacked, fetched = (_BAR * part // max(layer.size, 1) for part in (layer.unpacked, layer.fetched))
    drawn = "=" * unpacked + "-" * (fetched - unpacked)
    return f"{short} [{drawn:{_BAR}}] {_human(layer.fetched)} of {_human(layer.size)}"


# ------------------------------------------------------------------ listings


def _as_table(images: Iterable[Listed]) -> str:
    rows = [("IMAGE", "ID", "SIZE")]
    for image in sorted(images, key=lambda image: (list(image.tags), image.id)):
        short = image.id.partition(":")[2][:_SHOWN_HEX]
        rows += [(name, short, _human(image.size)) for name in image.tags or image.digests or ["<none>"]]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "".join(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}\n" for row in rows)


def _as_json(images: Iterable[Listed]) -> str:
    return json.dumps([_fields(image) for image in images], indent=2) + "\n"


def _fields(image: Listed) -> dict[str, object]:
    return {
        "id": image.id,
        "tags": list(image.tags),
        "digests": list(image.digests),
        "size": image.size,
        "pinned": image.pinned,
    }


def _human(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    amount = float(count)
    for unit in _UNITS:
        if amount < 1000 or unit == _UNITS[-1]:
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
