"""Volumes that get a container's SELinux label, with all that is in them.

A volume may hold what a container has put there, and another one may change it meanwhile. So links are labelled
themselves and never followed, and names are looked up in directories that are known by their descriptors.
"""

from __future__ import annotations

import errno
import os

from cri_py.errors import FailedPrecondition
from cri_py.kernel import labels
from cri_py.runtime.mounts import MountOp, Progress, is_directory


def relabel(operations: list[MountOp], label: str, progress: Progress) -> None:
    """Label the sources of all operations that ask for it. Raises FailedPrecondition that names the volume."""
    for operation in operations:
        if not operation.relabel:
            continue
        progress.at(operation)
        is_directory(operation)  # for its error
        try:
            relabel_tree(operation.source, label)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                continue  # a file system without labels: the policy says what all of it has
            raise FailedPrecondition(
                f"the volume at {operation.destination} can't be relabelled: {operation.source}: {error.strerror}",
                hint="leave selinux_relabel out for what is read-only or labelled already",
            ) from error


def relabel_tree(path: str, label: str) -> None:
    """A file, or a directory with all that lies below, also on other file systems. Raises OSError."""
    top = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        labels.give(f"/proc/self/fd/{top}", label, follow=True)
        if not os.path.isdir(f"/proc/self/fd/{top}"):
            return
        for _, directories, files, fd in os.fwalk(".", onerror=_refuse, dir_fd=top):
            for name in (*directories, *files):
                _label_entry(f"/proc/self/fd/{fd}/{name}", label)
    finally:
        os.close(top)


def _label_entry(path: str, label: str) -> None:
    try:
        labels.give(path, label)
    except FileNotFoundError:
        return  # gone meanwhile


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
