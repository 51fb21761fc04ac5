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


class FrameReader:
    """Reads what a server sends, however it is cut: whole messages in one frame each, not masked."""

    def __init__(self) -> None:
        self._partial = bytearray()

    @property
    def within(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._partial)

    def read(self, received: bytes) -> list[tuple[int, bytes]]:
        """(opcode, payload) of each frame that is whole by now."""
        self._partial += received
        found, at = [], 0
        while (frame := self._frame(at)) is not None:
            opcode, start, end = frame
            found.append((opcode, bytes(self._partial[start:end])))
            at = end
        del self._partial[:at]
        return found

    def _frame(self, at: int) -> tuple[int, int, int] | None:
        """The opcode of the frame at ``at`` and where its payload begins and ends; None if it is cut."""
        if len(self._partial) < at + 2:
            return None
        first, size = self._partial[at], self._partial[at + 1]
        assert first & 0x80, "the server sends fragments"
        assert not size & 0x80, "the server masks"
        start = at + 2
        if size >= 126:
            start += 2 if size == 126 else 8
            if len(self._partial) < start:
                return None
            size = int.from_bytes(self._partial[at + 2 : start], "big")
        return (first & 0x0F, start, start + size) if len(self._partial) >= start + size else None


def frames(sent: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of each frame in what a server sent, all of which must be whole."""
    reader = FrameReader()
    found = reader.read(sent)
    assert not reader.within, "the server's last frame is cut"
    return found
