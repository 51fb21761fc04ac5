"""SELinux's labels where the kernel keeps them: on files, on mounts, on processes (selinux(8), xattr(7), mount(8))."""

from __future__ import annotations

import os
from contextlib import suppress

# Takes the label that the process has from its next execve on; a line, as AppArmor's own file beside it takes one.
EXEC_FILE = "/proc/self/attr/exec"
KEY_FILE = "/proc/self/attr/keycreate"  # the same for keys that it makes, until that execve
_XATTR = "security.selinux"


def with_context(options: str, label: str) -> str:
    """A file system's options for mount(2), with the label that all its files get; "" is none.

    Quoted, as a label's categories are divided by a comma like options are.
    """
    return ",".join(filter(None, (options, f'context="{label}"' if label else "")))


def give(path: str, label: str, *, follow: bool = False) -> None:
    """Label a file, if it has not that label already. Raises OSError: ENOTSUP where the file system keeps no labels."""
    wanted = label.encode()
    with suppress(OSError):  # it has none, or the kernel doesn't say: then giving it one tells what is wrong
        if os.getxattr(path, _XATTR, follow_symlinks=follow).rstrip(b"\0") == wanted:
            return
    os.setxattr(path, _XATTR, wanted, follow_symlinks=follow)
