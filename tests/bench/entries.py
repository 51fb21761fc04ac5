"""Unpack one layer of very many entries: seconds, and how far the memory grows after the first thousands.

    .venv/bin/python -m tests.bench.entries [--count 1000000] [--every 100] [--most 32768] [--work DIR]

Without a registry and without a daemon: what one unpacking process does. The layer is made while it is read, so that
it takes no memory itself: every hundredth entry is a directory, ten of the others are hard links and symlinks. With
``--every 1`` there are directories alone.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cri_py.images import layers
from cri_py.images.layers import unpack
from cri_py.model import Digest

SETTLED = 5_000  # entries after which all that is loaded once is loaded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=100, help="which entries are directories")
    parser.add_argument("--most", type=int, default=layers.DESCRIBED_MAX, help="directories that are remembered")
    parser.add_argument("--work", type=Path, help="a directory on the disk to be measured")
    parsed = parser.parse_args()
    setattr(layers, "DESCRIBED_MAX", parsed.most)  # noqa: B010 (which is final for all but this)
    hasher = hashlib.sha256()
    for block in blocks(parsed.count, parsed.every):
        hasher.update(block)
    work = Path(tempfile.mkdtemp(prefix="cribench-entries-", dir=parsed.work))
    try:
        layer, source = work / "layer", Blocks(parsed.count, parsed.every)
        layer.mkdir()
        began = time.monotonic()
        unpacked = unpack(
            source,
            str(layer),
            size=parsed.count * tarfile.BLOCKSIZE,
            diff_id=Digest(f"sha256:{hasher.hexdigest()}"),
            lowest=True,
            subject="the layer",
            watch=lambda _: None,
        )
        seconds = round(time.monotonic() - began, 2)
        grown_kib = peak_kib() - source.settled_kib
        print(json.dumps({"inodes": unpacked.inodes, "seconds": seconds, "grown_kib": grown_kib}))
    finally:
        shutil.rmtree(work)
    return 0


def blocks(count: int, every: int) -> Iterator[bytes]:
    """The tar of ``count`` entries, one after the other."""
    directory, file = "", ""
    for number in range(count):
        member = tarfile.TarInfo()
        if number % every == 0:
            directory = f"d{number}"
            member.name, member.type, member.mode = directory, tarfile.DIRTYPE, 0o755
        elif number % 10 == 0:
            member.name = f"{directory}/l{number}"
            member.type, member.linkname = (tarfile.LNKTYPE, file) if number % 20 else (tarfile.SYMTYPE, "elsewhere")
        else:
            file = member.name = f"{directory}/f{number}"
        yield member.tobuf(tarfile.USTAR_FORMAT)
    yield bytes(2 * tarfile.BLOCKSIZE)


class Blocks:
    """The same as a blob, and what the process had taken when it had got going."""

    def __init__(self, count: int, every: int) -> None:
        self._blocks = blocks(count, every)
        self._read = 0
        self.settled_kib = 0

    def read(self, size: int, /) -> bytes:
        portion = b"".join(itertools.islice(self._blocks, size // tarfile.BLOCKSIZE))
        if self._read <= SETTLED * tarfile.BLOCKSIZE < self._read + len(portion):
            self.settled_kib = peak_kib()
        self._read += len(portion)
        return portion


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
