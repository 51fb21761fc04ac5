"""The holder's program: some 130 bytes of machine code that wait for ever.

One ELF header, one program header and a loop around a syscall. A process can hardly be smaller: it costs 8 kB, where
a pause program in C, statically linked, takes a hundred.
"""

from __future__ import annotations

import os
import struct

from cri_py.kernel import elf

_CODE = {
    "x86_64": bytes.fromhex("b822000000 0f05 ebf7".replace(" ", "")),  # again: mov eax, SYS_pause; syscall; jmp again
    # again: mov x0..x4, 0; mov w8, SYS_ppoll; svc 0; b again
    "aarch64": struct.pack(
        "<8I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0x52800928, 0xD4000001, 0x17FFFFF9
    ),
}


def program(machine: str = "") -> bytes:
    """The holder's ELF image for ``machine`` (as ``uname -m`` prints it; ours by default)."""
    return elf.image(_CODE[elf.machine_or_ours(machine)], machine=machine)


def write_program(path: str) -> None:
    """Put the program at ``path`` if it is not there yet, whole or not at all."""
    if os.path.exists(path):
        return
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755), "wb") as file:
        file.write(program())
    os.rename(temporary, path)
