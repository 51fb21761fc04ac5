"""Runs a seccomp filter on made-up system calls: the part of the kernel's classic BPF that libseccomp emits."""

from __future__ import annotations

import struct

X86_64 = 0xC000003E  # AUDIT_ARCH_*
I386 = 0x40000003
ALLOW = 0x7FFF0000
ERRNO = 0x00050000


def verdict(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> int:
    """What seccomp(2) would return for the call: an action, with ERRNO the number in the low half."""
    padded = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    memory = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    accumulator, counter = 0, 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, counter * 8)
        counter += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", memory, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            counter += value
        elif code == 0x06:
            return int(value)
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            counter += if_true if holds else if_false
