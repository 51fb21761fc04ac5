"""OCI artifacts as files: each blob under the name that its layer's title gives it (image-spec annotations.md).

Nothing is copied: the files are further links to the blobs, which stay as they are, since they are only mounted to be
read. A container keeps its links, whatever becomes of the artifact.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
from collections.abc import Mapping

import msgspec

from cri_py.errors import DataLoss, Internal
from cri_py.images.content import Content
from cri_py.images.reference import parse_digest
from cri_py.model import Digest

_TITLE = "org.opencontainers.image.title"


class _LayerJson(msgspec.Struct):
    digest: str
    annotations: dict[str, str] | None = None


class _ManifestJson(msgspec.Struct):
    layers: list[_LayerJson]


def files_of(manifest: bytes, subject: str) -> dict[str, Digest]:
    """Relative paths and what lies there. A layer without a title goes by the hex digits of its digest.

    Raises DataLoss for a title that is no place inside, or that another has: an artifact must not choose where on the
    node its files are made.
    """
    try:
        layers = msgspec.json.decode(manifest, type=_ManifestJson).layers
    except msgspec.DecodeError as error:
        raise DataLoss(f"the manifest of {subject} can't be read: {error}") from error
    found: dict[str, Digest] = {}
    for layer in layers:
        digest = parse_digest(layer.digest)
        title = (layer.annotations or {}).get(_TITLE) or digest.partition(":")[2]
        path = posixpath.normpath(title)
        if path.startswith(("/", "..")) or path == "." or "\0" in path or path in found:
            raise DataLoss(f"the artifact {subject} has a file {title!r}, which is no place of its own in a directory")
        found[path] = digest
    return found


def lay_out(files: Mapping[str, Digest], content: Content, directory: str) -> None:
    """Make ``directory``, with the files in it. Blocks. Raises NotFound if a blob is gone, Internal."""
    try:
        os.makedirs(directory, 0o755)
        for path, digest in files.items():
            content.open(digest).close()  # for its error
            target = os.path.join(directory, path)
            os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
            os.chmod(content.path(digest), 0o644)  # every user of the container may read it
            _link(content.path(digest), target)
    except OSError as error:
        raise Internal(f"the files of an artifact can't be laid out in {directory}: {error}") from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copyfile(source, target)
