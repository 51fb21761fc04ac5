"""The holder's program: some 130 bytes of machine code that wait for ever.

One ELF header, one program header and a loop around a syscall. A process can hardly be smaller: it costs 8 kB, where
a pause program in C, statically linked, takes a hundred.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct

from cri_py.kernel import elf

_CODE = {
    "x86_64": bytes.fromhex("b822000000 0f05 ebf7".replace(" ", "")),  # again: mov eax, SYS_pause; syscall; jmp again
    # again: mov x0..x4, 0; mov w8, SYS_ppoll; svc 0; b again
    "aarch64": struct.pack(
        "<8I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0x52800928, 0xD4000001, 0x17FFFFF9
    ),
}
# AUDIT_ARCH_*, and calls: of the program, of what follows a signal, of the steps that execute it or say why not:
# pause or ppoll, rt_sigreturn, restart_syscall, execveat, write, exit_group
_ALLOWED = {
    "x86_64": (0xC000003E, (34, 15, 219, 322, 1, 231)),
    "aarch64": (0xC00000B7, (73, 139, 128, 281, 64, 94)),
}
MODE = 0o111  # executed, never read: whoever executes it without capabilities is no process to look into


def program(machine: str = "") -> bytes:
    """The holder's ELF image for ``machine`` (as ``uname -m`` prints it; ours by default)."""
    return elf.image(_CODE[elf.machine_or_ours(machine)], machine=machine)


def pause_filter(machine: str = "") -> bytes:
    """A seccomp filter (struct sock_filter, linux/filter.h) under which the program can wait and nothing else."""
    architecture, calls = _ALLOWED[elf.machine_or_ours(machine)]
    beyond = len(calls)
    rows = [(0x20, 0, 0, 4), (0x15, 0, beyond + 1, architecture), (0x20, 0, 0, 0)]
    rows += [(0x15, beyond - position, 0, number) for position, number in enumerate(calls)]
    rows += [(0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


def write_program(path: str) -> None:
    """Put the program at ``path`` if it is not there yet, whole or not at all."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_IMODE(os.stat(path).st_mode) == MODE:
            return
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE), "wb") as file:
        file.write(program())
        os.fchmod(file.fileno(), MODE)
    os.rename(temporary, path)
