"""The client's end of a WebSocket, in bytes: frames that it sends, right or wrong, and those that it gets."""

from __future__ import annotations

from itertools import cycle

MASK = bytes.fromhex("37fa213d")  # that of the examples in RFC 6455 section 5.7


def frame(
    payload: bytes, opcode: int = 2, *, fin: bool = True, mask: bytes | None = MASK, reserved: int = 0, size: int = -1
) -> bytes:
    """One frame; ``size`` is what its header says, if that is to be a lie."""
    said = len(payload) if size < 0 else size
    masked = 0x80 if mask is not None else 0
    if said < 126:
        length = bytes([masked | said])
    elif said < 1 << 16:
        length = bytes([masked | 126]) + said.to_bytes(2, "big")
    else:
        length = bytes([masked | 127]) + said.to_bytes(8, "big")
    if mask is not None:
        payload = bytes(byte ^ key for byte, key in zip(payload, cycle(mask), strict=False))
    return bytes([(0x80 if fin else 0) | reserved << 4 | opcode]) + length + (mask or b"") + payload


def frames(sent: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of each frame in what a server sent, all of which must be whole and not masked."""
    found = []
    while sent:
        assert sent[0] & 0x80, "the server sends fragments"
        assert not sent[1] & 0x80, "the server masks"
        at, size = 2, sent[1]
        if size >= 126:
            wide = 2 if size == 126 else 8
            at, size = 2 + wide, int.from_bytes(sent[2 : 2 + wide], "big")
        assert len(sent) >= at + size, "the server's last frame is cut"
        found.append((sent[0] & 0x0F, sent[at : at + size]))
        sent = sent[at + size :]
    return found
