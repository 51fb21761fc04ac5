"""The CRI log format (kubernetes: pkg/kubelet/kuberuntime/logs; KEP "CRI logging"). Pure.

A line is ``RFC3339Nano stdout|stderr P|F text\\n``: F ends a line of the program, P is a piece of one that goes on.
"""

from __future__ import annotations

import time


def stamp(nanos: int) -> bytes:
    """RFC 3339 in UTC with nine digits, as every reader of these logs parses it."""
    seconds, rest = divmod(nanos, 1_000_000_000)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), rest)


class LineCutter:
    """Turns the bytes of one stream into log lines; keeps what has no end yet.

    The lines of one ``feed`` share a timestamp, that of their arrival: the fast path is then a single replace in C.
    """

    def __init__(self, stream: str, line_bytes: int = 16384) -> None:
        self._full = b" %s F " % stream.encode()
        self._part = b" %s P " % stream.encode()
        self._limit = line_bytes
        self._rest = b""

    def feed(self, data: bytes, nanos: int) -> bytes:
        """Log lines for all that is complete; a piece that has reached the limit is complete as ``P``."""
        head, newline, tail = data.rpartition(b"\n")
        if not newline:
            return self._keep(self._rest + data, nanos)
        body = self._rest + head
        self._rest = b""
        prefix = stamp(nanos) + self._full
        if self._all_short(body):
            lines = prefix + body.replace(b"\n", b"\n" + prefix) + b"\n"
        else:
            lines = b"".join(self._split(line, nanos) for line in body.split(b"\n"))
        return lines + self._keep(tail, nanos)

    def end(self, nanos: int) -> bytes:
        """What is left when the stream has ended: a last line without its newline, closed by ``F``."""
        rest, self._rest = self._rest, b""
        return stamp(nanos) + self._full + rest + b"\n" if rest else b""

    def _all_short(self, body: bytes) -> bool:
        """Whether no line exceeds the limit: hops from newline to newline, each as far as the limit allows."""
        position, length, limit = 0, len(body), self._limit
        while length - position > limit:
            found = body.rfind(b"\n", position, position + limit + 1)
            if found < 0:
                return False
            position = found + 1
        return True

    def _keep(self, tail: bytes, nanos: int) -> bytes:
        """Keep an unfinished line, less the full pieces that it has already."""
        pieces = []
        prefix = stamp(nanos) + self._part if len(tail) > self._limit else b""
        while len(tail) > self._limit:
            pieces.append(prefix + tail[: self._limit] + b"\n")
            tail = tail[self._limit :]
        self._rest = tail
        return b"".join(pieces)

    def _split(self, line: bytes, nanos: int) -> bytes:
        pieces = self._keep(line, nanos)
        last, self._rest = self._rest, b""
        return pieces + stamp(nanos) + self._full + last + b"\n"
