"""What a disk holds, as far as it matters for images and containers."""

from __future__ import annotations

import os


def of_another_disk(directory: str, apart_from: str) -> tuple[int, int] | None:
    """Bytes and inodes of all that is on a directory's disk, as statvfs(3) tells without a walk.

    None if it is the disk of ``apart_from``, too, or there is no such directory.
    """
    try:
        apart = os.stat(directory).st_dev != os.stat(apart_from).st_dev
        disk = os.statvfs(directory)
    except FileNotFoundError:
        return None
    if not apart:
        return None
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize, disk.f_files - disk.f_ffree
