"""Maps of sparse files: where in a file its stored bytes belong. GNU's old format and the PAX formats 0.0, 0.1 and 1.0.

GNU tar manual, "Storing Sparse Files" and "Sparse Formats". Pure: bytes in, values out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cri_py.errors import DataLoss

BLOCK: Final = 512
EXTENTS_MAX: Final = 100_000
SIZE_MAX: Final = 1 << 44  # bytes; what ext4 can address
_OLD_IN_HEADER: Final = 4  # of 24 bytes each, from byte 386
_OLD_IN_BLOCK: Final = 21

Extent = tuple[int, int]
"""Offset and length in bytes of one stretch that is stored; what lies between is zeros."""


def old_map(header: bytes, more: Callable[[], bytes], number: Callable[[bytes], int], subject: str) -> list[Extent]:
    """The map of a header of type ``S``; ``more`` gives the blocks that continue it, which follow the header."""
    extents = _old_extents(header, 386, _OLD_IN_HEADER, number)
    continues = header[482] != 0
    while continues:
        if len(extents) > EXTENTS_MAX:
            raise _damaged(subject)
        block = more()
        extents += _old_extents(block, 0, _OLD_IN_BLOCK, number)
        continues = block[504] != 0
    return extents


def old_size(header: bytes, number: Callable[[bytes], int]) -> int:
    """The size of the file with its holes, in bytes."""
    return number(header[483:495])


def _old_extents(block: bytes, start: int, count: int, number: Callable[[bytes], int]) -> list[Extent]:
    found = []
    for at in range(start, start + 24 * count, 24):
        if block[at + 12] == 0:
            break
        found.append((number(block[at : at + 12]), number(block[at + 12 : at + 24])))
    return found


def pax_map(words: Sequence[bytes], subject: str) -> list[Extent]:
    """Offsets and lengths in turn, as the PAX formats 0.0 (a record each) and 0.1 (one record, commas) have them."""
    if len(words) % 2 or len(words) > 2 * EXTENTS_MAX:
        raise _damaged(subject)
    numbers = [_decimal(word, subject) for word in words]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def stored_map(take_block: Callable[[], bytes], subject: str) -> tuple[list[Extent], int]:
    """The map before the content (PAX 1.0): lines of decimal numbers, padded to blocks; and the bytes that it takes."""
    blocks = take_block()
    while b"\n" not in blocks:
        if len(blocks) > BLOCK:
            raise _damaged(subject)
        blocks += take_block()
    count = _decimal(blocks.partition(b"\n")[0], subject)
    if count > EXTENTS_MAX:
        raise _damaged(subject)
    parts, lines, taken = [blocks], blocks.count(b"\n"), len(blocks)
    while lines < 1 + 2 * count:
        block = take_block()
        if b"\n" not in block:
            raise _damaged(subject)
        parts.append(block)
        lines, taken = lines + block.count(b"\n"), taken + len(block)
    return pax_map(b"".join(parts).split(b"\n")[1 : 1 + 2 * count], subject), taken


def checked(extents: Iterable[Extent], stored: int, size: int, subject: str) -> tuple[Extent, ...]:
    """Raise DataLoss unless the extents ascend, lie in a file of ``size`` bytes and take ``stored`` bytes together."""
    whole = tuple(extents)
    end = 0
    for offset, length in whole:
        if offset < end or length < 0:
            raise _damaged(subject)
        end = offset + length
    if end > size or not 0 <= size <= SIZE_MAX or sum(length for _, length in whole) != stored:
        raise _damaged(subject)
    return whole


def _decimal(word: bytes, subject: str) -> int:
    if not word.isdigit() or len(word) > 19:
        raise _damaged(subject)
    return int(word)


def _damaged(subject: str) -> DataLoss:
    return DataLoss(f"{subject} holds a sparse file whose map is damaged")
