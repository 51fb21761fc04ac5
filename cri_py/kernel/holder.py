"""The holder's program: some 130 bytes of machine code that wait for ever.

One ELF header, one program header and a loop around a syscall. A process can hardly be smaller: it costs 8 kB, where
a pause program in C, statically linked, takes a hundred.
"""

from __future__ import annotations

import os
import platform
import struct

_BASE = 0x400000
_HEADERS = 64 + 56

_CODE = {
    "x86_64": bytes.fromhex("b822000000 0f05 ebf7".replace(" ", "")),  # again: mov eax, SYS_pause; syscall; jmp again
    # again: mov x0..x4, 0; mov w8, SYS_ppoll; svc 0; b again
    "aarch64": struct.pack(
        "<8I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0x52800928, 0xD4000001, 0x17FFFFF9
    ),
}
_MACHINE = {"x86_64": 62, "aarch64": 183}  # e_machine, elf(5)


def program(machine: str = "") -> bytes:
    """The holder's ELF image for ``machine`` (as ``uname -m`` prints it; ours by default), elf(5)."""
    machine = machine or platform.machine()
    code = _CODE[machine]
    size = _HEADERS + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, _MACHINE[machine], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return identity + header + segment + code


def write_program(path: str) -> None:
    """Put the program at ``path`` if it is not there yet, whole or not at all.

    Nobody but root may read it: who executes what it can't read can't be traced, and a look through /proc/PID/root,
    from a container that shares the holder's pid and user namespaces, would show the node's files (ptrace(2)).
    """
    if os.path.exists(path):
        return
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o711), "wb") as file:
        file.write(program())
    os.rename(temporary, path)
