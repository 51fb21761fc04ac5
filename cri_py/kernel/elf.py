"""The smallest programs: an ELF image that is written down byte by byte, elf(5)."""

from __future__ import annotations

import platform
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

CODE_ADDRESS = 0x400000
PAGE = 0x1000
_HEADER, _ENTRY = 64, 56  # sizes of the file header and of a program header
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine
_LOAD, _STACK = 1, 0x6474E551  # p_type
_EXECUTE, _WRITE, _READ = 1, 2, 4  # p_flags


class Segment(NamedTuple):
    """What the kernel puts at ``address``, a multiple of the page size: ``content``, then zeroes up to ``size``."""

    address: int
    content: bytes
    size: int
    writable: bool = False


def machine_or_ours(machine: str) -> str:
    """``machine`` as ``uname -m`` prints it; the one we run on where it is empty."""
    return machine or platform.machine()


def image(code: bytes, segments: Sequence[Segment] = (), machine: str = "") -> bytes:
    """A static program that begins with the first byte of ``code``, at CODE_ADDRESS plus all headers."""
    count = 1 + len(segments) + bool(segments)
    start = _HEADER + count * _ENTRY
    whole = start + len(code)
    headers = [struct.pack("<IIQQQQQQ", _LOAD, _READ | _EXECUTE, 0, CODE_ADDRESS, CODE_ADDRESS, whole, whole, PAGE)]
    parts = [code]
    for address, content, size, writable in segments:
        offset = 0
        if content:
            parts.append(bytes(-whole % PAGE))
            offset = whole + -whole % PAGE
            parts.append(content)
            whole = offset + len(content)
        rights = _READ | (_WRITE if writable else 0)
        headers.append(
            struct.pack(
                "<IIQQQQQQ", _LOAD, rights, offset, address, address, len(content), max(size, len(content)), PAGE
            )
        )
    if segments:  # without this one the stack would be executable
        headers.append(struct.pack("<IIQQQQQQ", _STACK, _READ | _WRITE, 0, 0, 0, 0, 0, 16))
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    number = _MACHINES[machine_or_ours(machine)]
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, number, 1, CODE_ADDRESS + start, _HEADER, 0, 0, _HEADER, _ENTRY, count, 0, 0, 0
    )
    return b"".join((identity, header, *headers, *parts))
