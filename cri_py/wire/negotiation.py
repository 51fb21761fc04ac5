"""The head of a request that wants streams: which protocol both sides speak, and the answer to it as bytes.

SPDY: ``Upgrade: SPDY/3.1`` and the sub-protocols in ``X-Stream-Protocol-Version``; WebSocket: RFC 6455 section 4.2,
with the sub-protocols in ``Sec-WebSocket-Protocol``. Of those the client's first that we have is taken.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from cri_py.wire import channels
from cri_py.wire.channels import Agreement, Transport

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}

Header: TypeAlias = tuple[str, str]


class Refusal(NamedTuple):
    """``answer`` is a whole HTTP response, after which the connection ends."""

    status: int
    text: str
    answer: bytes


def negotiate(
    method: str, headers: Iterable[Header], *, forward: bool, ports: Sequence[int] = ()
) -> Agreement | Refusal:
    """Answer a request head. ``headers``: names in any case, several of one name allowed. ``forward``: a port-forward,
    else a remote command. ``ports``: those that the session may forward; without them only protocols that name the
    port themselves can be had."""
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value)
    upgrades = {word.lower() for word in _words(fields, "upgrade")}
    if "upgrade" in {word.lower() for word in _words(fields, "connection")}:
        if "websocket" in upgrades:
            ours = channels.FORWARD_BY_WEBSOCKET if forward else channels.COMMAND_BY_WEBSOCKET
            return _by_websocket(method, fields, ours[:1] if forward and not ports else ours)
        if "spdy/3.1" in upgrades:
            return _by_spdy(fields, channels.FORWARD_BY_SPDY if forward else channels.COMMAND_BY_SPDY)
    return refuse(400, "unable to upgrade: ask for SPDY/3.1 or websocket by Connection: Upgrade")


def _by_spdy(fields: dict[str, list[str]], ours: Sequence[str]) -> Agreement | Refusal:
    theirs = list(_words(fields, "x-stream-protocol-version"))
    if not theirs:
        return refuse(400, "unable to upgrade: X-Stream-Protocol-Version names no protocol")
    chosen = _choose(theirs, ours)
    if chosen is None:
        accepted = [("X-Accepted-Stream-Protocol-Versions", name) for name in ours]
        return refuse(403, _nothing_shared(theirs, ours), accepted)
    answer = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", chosen)]
    return Agreement(Transport.SPDY, chosen, _head("101 Switching Protocols", answer))


def _by_websocket(method: str, fields: dict[str, list[str]], ours: Sequence[str]) -> Agreement | Refusal:
    if method != "GET":
        return refuse(405, f"a WebSocket is opened by GET, not by {method}", [("Allow", "GET")])
    if fields.get("sec-websocket-version") != ["13"]:
        return refuse(426, "Sec-WebSocket-Version has to be 13", [("Sec-WebSocket-Version", "13")])
    key = fields.get("sec-websocket-key", [])
    if len(key) != 1 or not _is_key(key[0]):
        return refuse(400, "Sec-WebSocket-Key has to be 16 bytes in base64")
    theirs = list(_words(fields, "sec-websocket-protocol"))
    chosen = _choose(theirs or [channels.UNNAMED], ours)
    if chosen is None:
        return refuse(403, _nothing_shared(theirs, ours))
    digest = hashlib.sha1(key[0].encode() + _GUID, usedforsecurity=False).digest()
    accept = binascii.b2a_base64(digest, newline=False).decode()
    answer = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
    if chosen:
        answer.append(("Sec-WebSocket-Protocol", chosen))
    return Agreement(Transport.WEBSOCKET, chosen, _head("101 Switching Protocols", answer))


def _words(fields: dict[str, list[str]], name: str) -> Iterator[str]:
    """The comma-separated words of all headers of a name."""
    for value in fields.get(name, []):
        yield from filter(None, (word.strip() for word in value.split(",")))


def _choose(theirs: Sequence[str], ours: Sequence[str]) -> str | None:
    return next((name for name in theirs if name in ours), None)


def _is_key(text: str) -> bool:
    try:
        return len(binascii.a2b_base64(text.encode("ascii"), strict_mode=True)) == 16
    except ValueError:
        return False


def _nothing_shared(theirs: Sequence[str], ours: Sequence[str]) -> str:
    asked = ", ".join(theirs)[:200] or "none"
    return f"unable to negotiate protocol: the client has {asked}, the server {', '.join(filter(None, ours))}"


def refuse(status: int, text: str, headers: Sequence[Header] = ()) -> Refusal:
    """A whole response. ``status``: 4xx or 500; ``text``: for a person."""
    body = f"{text}\n".encode("utf-8", "replace")
    plain = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Connection", "close")]
    line = f"{status} {_REASONS.get(status, 'Error')}"
    return Refusal(status, text, _head(line, [*plain, *headers]) + body)


def _head(line: str, headers: Sequence[Header]) -> bytes:
    lines = [f"HTTP/1.1 {line}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")
