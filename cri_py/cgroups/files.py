"""The few acts on a cgroup filesystem; each failure is a KernelError with the file and, for a write, the value."""

from __future__ import annotations

import errno
import os

from cri_py.errors import KernelError
from cri_py.kernel import syscalls

_READ_BYTES = 65536


def _error(error: OSError, act: str, subject: str) -> KernelError:
    return KernelError(error.errno or 0, error.strerror or str(error), act, subject)


def _begin(act: str, subject: str) -> None:
    if syscalls.failpoint is not None:
        syscalls.failpoint(act, subject)


def write(file: str, *texts: str) -> None:
    """Write each text by a write(2) of its own, which is what a cgroup file takes as one command."""
    for text in texts:
        _begin("write", f"{text} to {file}")
    text = texts[0]
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for text in texts:  # the error below names the one that failed
                os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise _error(error, "write", f"{text} to {file}") from error


def write_if_there(file: str, text: str) -> None:
    """As ``write``, but nothing where the group is gone or goes meanwhile."""
    try:
        write(file, text)
    except KernelError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def open_to_read(path: str, flags: int = 0) -> int:
    """A descriptor of a file or group, close-on-exec; the caller owns it."""
    _begin("open", path)
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise _error(error, "open", path) from error


def read_again(fd: int, subject: str) -> bytes:
    """An open file from its beginning; nothing where its group is gone."""
    try:
        return os.pread(fd, _READ_BYTES, 0)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return b""
        raise _error(error, "read", subject) from error


def read(file: str) -> bytes:
    """The whole file."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, _READ_BYTES):
                parts.append(part)
        finally:
            os.close(fd)
    except OSError as error:
        raise _error(error, "read", file) from error
    return b"".join(parts)


def read_if_there(file: str) -> bytes:
    """The whole file; nothing where the group is gone or goes while it is read (ENODEV)."""
    try:
        return read(file)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return b""
        raise


def make(directory: str) -> list[str]:
    """Make a group and the parents that are missing; returns those that were made, the outermost first."""
    _begin("mkdir", directory)
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return []
    except FileNotFoundError:
        made = make(os.path.dirname(directory))
        try:
            return made + make(directory)
        except KernelError:
            for group in reversed(made):
                drop(group)
            raise
    except OSError as error:
        raise _error(error, "mkdir", directory) from error
    return [directory]


def make_one(directory: str) -> None:
    """Make a group that must be new, below a parent that must be there."""
    _begin("mkdir", directory)
    try:
        os.mkdir(directory, 0o755)
    except OSError as error:
        raise _error(error, "mkdir", directory) from error


def drop(directory: str) -> bool:
    """Remove one group; a missing one is fine. False where processes or groups are in it still."""
    _begin("rmdir", directory)
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise _error(error, "rmdir", directory) from error
    return True


def below(directory: str) -> list[str]:
    """The child groups of a group, full paths in order; none where it is missing."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _error(error, "scandir", directory) from error


def tree(directory: str) -> list[str]:
    """The group and all below it, parents before children."""
    found = [directory]
    for group in found:  # grows while it is walked
        found.extend(below(group))
    return found
