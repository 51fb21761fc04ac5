"""The CDI files of the node: found, kept as long as they don't change, and asked for devices by name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import structlog

from cri_py.cdi.documents import Document, parse, qualified
from cri_py.cdi.edits import Edits
from cri_py.errors import FailedPrecondition, InvalidArgument, NotFound

log = structlog.get_logger()
_FILE_BYTES: Final = 1 << 20

_Stamp = tuple[int, int, int]
"""Inode, size and time of change in ns: a file that has the same is the same."""


class Registry:
    """Looks at the directories whenever devices are asked for, so there is nothing to be told or to miss.

    ``directories`` are in the order of their weight: of two that have a device the later wins.
    """

    def __init__(self, directories: Sequence[str]) -> None:
        self._directories = directories
        self._known: dict[str, tuple[_Stamp, Document | str]] = {}

    def edits(self, names: Sequence[str]) -> Edits:
        """What all of ``names`` ask for together, each once. Blocking.

        What the devices of one file have in common comes before the first of them. Raises NotFound for a device that
        no file has, FailedPrecondition for one that two files of the same directory have.
        """
        levels = [list(self._documents(directory)) for directory in self._directories]
        asked, seen = Edits(), set()
        for name in dict.fromkeys(names):
            document, device = self._find(levels, name)
            if document.path not in seen:
                seen.add(document.path)
                asked += document.common
            asked += document.devices[device]
        return asked

    def _find(self, levels: Sequence[Sequence[Document]], name: str) -> tuple[Document, str]:
        kind, device = qualified(name)
        for level in reversed(levels):
            found = [document for document in level if document.kind == kind and device in document.devices]
            if len(found) > 1:
                raise FailedPrecondition(
                    f"the CDI device {name} is described twice, in {found[0].path} and in {found[1].path}",
                    hint="remove one of them",
                )
            if found:
                return found[0], device
        bad = [cause for _, cause in self._known.values() if isinstance(cause, str)]
        raise NotFound(
            f"there is no CDI device {name} on this node"
            + (f"; files that could not be taken: {'; '.join(sorted(bad))}" if bad else ""),
            hint=f"its vendor's file belongs into {' or '.join(self._directories)}",
        )

    def _documents(self, directory: str) -> Iterator[Document]:
        """The directory's good files; a bad one is named once in the log and keeps nobody from the others."""
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith((".json", ".yaml")))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        paths = [os.path.join(directory, name) for name in names]
        for gone in [path for path in self._known if os.path.dirname(path) == directory and path not in paths]:
            del self._known[gone]
        for path in paths:
            known = self._known.get(path)
            stamp, document = self._read(path, known)
            if known is None or known[0] != stamp:
                self._known[path] = stamp, document
                if isinstance(document, str):
                    log.warning("a CDI file can't be taken", file=path, cause=document)
            if isinstance(document, Document):
                yield document

    @staticmethod
    def _read(path: str, known: tuple[_Stamp, Document | str] | None) -> tuple[_Stamp, Document | str]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            return (0, 0, 0), f"{path}: {error.strerror}"
        try:
            found = os.fstat(fd)
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if known is not None and known[0] == stamp:
                return known
            if not stat.S_ISREG(found.st_mode) or found.st_size > _FILE_BYTES:
                return stamp, f"{path}: no file of at most {_FILE_BYTES} bytes"
            return stamp, parse(os.read(fd, _FILE_BYTES), path)
        except InvalidArgument as error:
            return stamp, str(error)
        finally:
            os.close(fd)
