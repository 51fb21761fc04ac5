"""``cri-py image import | export | build | commit``: images without a registry, from the command line."""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from cri_py import telemetry
from cri_py.config import Config
from cri_py.errors import FailedPrecondition, Internal, InvalidArgument, NotFound
from cri_py.images import offline
from cri_py.images.building import Wishes
from cri_py.images.layerize import layer_pieces
from cri_py.pods.ledger import recorded_images
from cri_py.rpc.daemon_client import is_there
from cri_py.rpc.exchange_client import ExchangeClient

_PIECE: Final = 1 << 20


def take(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image import PATH``: to the daemon, or into the store of one that does not run.

    Who names a daemon by its socket alone means its store, not the one that is there by default.
    """
    pieces = _read(parsed.path)
    taken: list[tuple[str, ...]]
    if is_there(config.listen):
        with ExchangeClient(config.listen) as client:
            taken = [(image.id, *image.tags) for image in client.take(pieces, parsed.tag)]
    else:
        telemetry.configure_logging("warning", config.log.format, sys.stderr)  # of a store that is opened here
        used = partial(recorded_images, config.server.root)
        taken = [(image.id, *image.repo_tags) for image in offline.take(config, used, pieces, parsed.tag)]
    out.writelines(f"{' '.join(names)}\n" for names in taken)
    return 0


def give(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image export REF…``."""
    with ExchangeClient(config.listen) as client:
        pieces = client.give(parsed.refs)
        if parsed.layout:
            _write_layout(parsed.output, pieces)
        elif parsed.output != "-":
            _write_file(parsed.output, pieces)
        elif out.isatty():
            raise InvalidArgument("an archive is nothing for a terminal", hint="name a file by --output")
        else:
            sys.stdout.buffer.writelines(pieces)
            sys.stdout.buffer.flush()
    return 0


def build(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image build DIR --tag TAG``."""
    if not os.path.isdir(parsed.directory):
        raise NotFound(f"{parsed.directory} is no directory", hint="name the one that is to be the image's root")
    unlabelled = [label for label in parsed.label if not label.partition("=")[0]]
    if unlabelled:
        raise InvalidArgument(f"{unlabelled[0]!r} is no label", hint="give --label KEY=VALUE")
    wishes = Wishes(
        platform=parsed.platform,
        entrypoint=parsed.entrypoint,
        cmd=parsed.cmd,
        env=parsed.env,
        working_dir=parsed.workdir,
        user=parsed.user,
        labels=dict(_pair(label) for label in parsed.label),
        exposed_ports=parsed.expose,
        volumes=parsed.volume,
        stop_signal=parsed.stop_signal,
    )
    with ExchangeClient(config.listen) as client:
        out.write(client.build(layer_pieces(parsed.directory), parsed.tag, wishes).id + "\n")
    return 0


def commit(config: Config, parsed: argparse.Namespace, out: TextIO) -> int:
    """``cri-py image commit CONTAINER --tag TAG``."""
    with ExchangeClient(config.listen) as client:
        out.write(client.commit(parsed.container, parsed.tag).id + "\n")
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _read(path: str) -> Iterator[bytes]:
    """An archive's bytes; those of a directory are its tar, links as they are."""
    if path == "-":
        return _pieces(sys.stdin.buffer)
    if os.path.isdir(path):
        return layer_pieces(path)
    try:
        return _pieces(open(path, "rb"))
    except OSError as error:
        raise NotFound(f"{path} can't be read: {error.strerror}") from error


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece


def _write_file(path: str, pieces: Iterator[bytes]) -> None:
    """All of it, or nothing."""
    temporary = Path(f"{path}.{os.urandom(4).hex()}")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
        temporary.replace(path)
    except OSError as error:
        raise Internal(f"{path} can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


class _Joined:
    """Pieces as a file that is read from front to back."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        while not self._rest and (piece := next(self._pieces, None)) is not None:
            self._rest = memoryview(piece)
        found, self._rest = self._rest[:size], self._rest[size:]
        return bytes(found)


def _write_layout(path: str, pieces: Iterator[bytes]) -> None:
    """A directory that is new or empty, with the members of the archive; as it was before if they don't all come."""
    if path == "-":
        raise InvalidArgument("a layout is a directory", hint="name it by --output")
    if os.path.isdir(path) and os.listdir(path):
        raise FailedPrecondition(f"{path} is not empty", hint="name a directory that does not exist")
    joined: Any = _Joined(pieces)
    try:
        with ExitStack() as undo, tarfile.open(fileobj=joined, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                target = Path(path, member.name)
                if content is None or ".." in target.parts or member.name.startswith("/"):
                    raise Internal(f"the daemon sent {member.name}, which is no file of a layout")
                for parent in reversed(target.parents):
                    if not parent.exists():
                        parent.mkdir()
                        undo.callback(parent.rmdir)
                with target.open("xb") as file:
                    undo.callback(target.unlink)
                    file.writelines(_pieces(content))  # type: ignore[arg-type]
            undo.pop_all()
    except (OSError, tarfile.TarError) as error:
        raise Internal(f"{path} can't be written: {error}") from error
