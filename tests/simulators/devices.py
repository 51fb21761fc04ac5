"""What limits are hit with: a disk of our own whose I/O the kernel counts, and huge pages that nobody else uses."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_POOL: Final = Path("/proc/sys/vm/nr_hugepages")
_HUGE: Final = 2 << 20
_DISK_BYTES: Final = 32 << 20


@contextlib.contextmanager
def made_loop_device(directory: Path) -> Iterator[str]:
    """The path of a block device of 32 MB, over a file in ``directory``."""
    file = directory / "disk"
    with file.open("wb") as disk:
        disk.truncate(_DISK_BYTES)
    made = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@contextlib.contextmanager
def huge_page_pool(pages: int) -> Iterator[int]:
    """That many more huge pages than there were on the node; yields their size in bytes."""
    before = _POOL.read_text()
    _POOL.write_text(str(int(before) + pages))
    try:
        assert int(_POOL.read_text()) == int(before) + pages, "the node's memory is in too small pieces"
        yield _HUGE
    finally:
        _POOL.write_text(before)
