"""Compressed layers become plain bytes, piece by piece, with a bound on what comes out.

What a layer is compressed with is read from its first bytes: media types in the wild are wrong too often.
RFC 1952 (gzip, members may follow each other), RFC 8878 (zstd).
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from cri_py.errors import DataLoss, ResourceExhausted, Unimplemented

READ_BYTES: Final = 1 << 16  # what is left is copied at each end of a gzip member: tiny ones shall cost little
PIECE_BYTES: Final = 1 << 18  # at most this much comes out at once, whatever the ratio
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


class Source(Protocol):
    """Compressed bytes from where they stand: a file, also one that still grows."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, waited for; none at the end."""
        ...


class _Frame(Protocol):
    """One zstd frame being read, as both libraries offer it."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, compressed: bytes, max_length: int) -> bytes: ...


def inflate(blob: Source, subject: str, limit: int) -> Iterator[bytes]:
    """Yield the plain bytes of ``blob`` in pieces of at most PIECE_BYTES.

    Raises DataLoss if the stream is damaged or cut, ResourceExhausted after ``limit`` bytes (a bomb), Unimplemented
    if zstd is needed and not installed. ``subject`` names the layer in messages.
    """
    first = blob.read(READ_BYTES)
    while len(first) < len(_ZSTD_MAGIC) and (more := blob.read(READ_BYTES)):
        first += more
    if first.startswith(_GZIP_MAGIC):
        pieces = _gunzip(blob, first, subject)
    elif first.startswith(_ZSTD_MAGIC):
        pieces = _unzstd(blob, first, subject)
    else:
        pieces = _plain(blob, first)
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > limit:
            raise ResourceExhausted(f"{subject} holds more than {limit >> 20} MiB", hint="is it a compression bomb?")
        yield piece


def _plain(blob: Source, first: bytes) -> Iterator[bytes]:
    piece = first
    while piece:
        yield piece
        piece = blob.read(READ_BYTES)


def _gunzip(blob: Source, first: bytes, subject: str) -> Iterator[bytes]:
    compressed = first
    gzip = _zlib()
    try:
        while compressed.startswith(_GZIP_MAGIC[: len(compressed)]) and compressed:
            member = gzip.decompressobj(wbits=31)
            while not member.eof:
                if piece := member.decompress(compressed, PIECE_BYTES):
                    yield piece
                compressed = member.unconsumed_tail or (b"" if member.eof else blob.read(READ_BYTES))
                if not compressed and not member.eof and not piece:
                    raise DataLoss(f"{subject} ends in the middle of its gzip stream")
            # Another member may follow; zero padding or anything else ends the stream, as for gzip(1).
            compressed = member.unused_data or blob.read(READ_BYTES)
            if len(compressed) == 1:
                compressed += blob.read(READ_BYTES)
    except gzip.error as error:
        raise DataLoss(f"{subject} is damaged: {error}") from error


def _unzstd(blob: Source, first: bytes, subject: str) -> Iterator[bytes]:
    new_frame, failure = _zstd()
    compressed = first
    try:
        while compressed:
            frame = new_frame()
            while not frame.eof:
                if piece := frame.decompress(compressed, PIECE_BYTES):
                    yield piece
                compressed = b""
                if frame.needs_input and not frame.eof:
                    compressed = blob.read(READ_BYTES)
                    if not compressed:
                        raise DataLoss(f"{subject} ends in the middle of its zstd stream")
            compressed = frame.unused_data or blob.read(READ_BYTES)
    except failure as error:
        raise DataLoss(f"{subject} is damaged: {error}") from error


def _zlib() -> Any:
    """isal's inflate takes half the time (ISA-L's igzip); without the library, the standard one."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


def _zstd() -> tuple[Callable[[], _Frame], type[Exception]]:
    """Loaded by the first layer that needs it: few do."""
    for name in ("compression.zstd", "backports.zstd"):  # the former since Python 3.14
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.ZstdDecompressor, module.ZstdError
    raise Unimplemented(
        "zstd layers need a library that is not installed", hint="install the Python package backports.zstd"
    )
