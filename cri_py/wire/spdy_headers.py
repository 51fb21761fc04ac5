"""Header blocks of SPDY/3: names and values, counted, compressed by zlib with a dictionary that both sides know.

One compressor and one decompressor live as long as a connection, so blocks must be written in the order in which they
were made. SPDY/3.1 section 2.6.10; the dictionary is fixed there, its Adler-32 is e3c6a7c2.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from cri_py.wire.violation import ProtocolError, Rule

MAX_EXPANDED: Final = 64 << 10
MAX_NAMES: Final = 256

_WORDS: Final = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_CODES: Final = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
_TEXT: Final = (
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug "
    "Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words = (word.replace("_", " ").encode() for word in _WORDS.split())
    counted = b"".join(struct.pack(">I", len(word)) + word for word in words)
    return counted + _CODES.encode() + _TEXT.encode()


DICTIONARY: Final = _dictionary()


class HeaderWriter:
    """Compresses the blocks of one direction of a connection."""

    def __init__(self) -> None:
        # 2 KiB of window hold more than we ever say twice, and cost 10 kB instead of 260.
        self._zlib = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, 11, 4, zdict=DICTIONARY)

    def write(self, headers: Mapping[str, str]) -> bytes:
        block = [struct.pack(">I", len(headers))]
        for name, value in headers.items():
            for text in (name.lower().encode("latin-1"), value.encode("latin-1")):
                block += (struct.pack(">I", len(text)), text)
        return self._zlib.compress(b"".join(block)) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class HeaderReader:
    """Expands the blocks of the other direction, each within MAX_EXPANDED."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def read(self, block: bytes | memoryview) -> dict[str, str]:
        """Headers by lower-case name; several values of one name stay joined by NUL."""
        try:
            expanded = self._zlib.decompress(block, MAX_EXPANDED + 1)
        except zlib.error as error:
            raise ProtocolError(Rule.HEADER_BLOCK, f"a header block can't be expanded: {error}") from error
        if len(expanded) > MAX_EXPANDED or self._zlib.unconsumed_tail:
            raise ProtocolError(Rule.HEADER_BLOCK_SIZE, f"a header block expands to more than {MAX_EXPANDED} bytes")
        if self._zlib.eof:
            raise ProtocolError(Rule.HEADER_BLOCK, "a header block ends the compression that all of them share")
        return _parse(expanded)


def _parse(block: bytes) -> dict[str, str]:
    (count,) = struct.unpack_from(">I", block) if len(block) >= 4 else (-1,)
    if count > MAX_NAMES:
        raise ProtocolError(Rule.HEADER_BLOCK_SIZE, f"a header block has {count} names")
    texts = list(_texts(block))
    if len(texts) != 2 * count:
        raise ProtocolError(Rule.HEADER_BLOCK, f"a header block says {count} names and holds {len(texts)} texts")
    headers: dict[str, str] = {}
    for name, value in zip(texts[::2], texts[1::2], strict=True):
        if not name or name in headers or name != name.lower():
            raise ProtocolError(Rule.HEADER_BLOCK, f"the name of header {name[:80]!r} is empty, repeated or upper-case")
        headers[name] = value
    return headers


def _texts(block: bytes) -> Iterator[str]:
    at = 4
    while at < len(block):
        (size,) = struct.unpack_from(">I", block, at) if at + 4 <= len(block) else (MAX_EXPANDED,)
        at += 4 + size
        if at > len(block):
            raise ProtocolError(Rule.HEADER_BLOCK, "a header block ends within a text")
        yield block[at - size : at].decode("latin-1")
