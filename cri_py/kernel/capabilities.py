"""The capabilities of Linux: names and bits (capabilities(7), include/uapi/linux/capability.h).

Used by the daemon, which writes names into OCI documents, and by the container side, which needs masks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_py.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable

# The position is the kernel's number.
_WORDS = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
NAMES = tuple(f"CAP_{word}" for word in _WORDS.split())
NUMBERS = {name: number for number, name in enumerate(NAMES)}


def canonical(name: str) -> str:
    """The full upper-case name of a capability given in any case, with or without CAP_.

    Raises InvalidArgument if Linux has none of that name.
    """
    upper = name.upper()
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in NUMBERS:
        raise InvalidArgument(f"there is no capability {name!r}", hint="capabilities(7) lists them, or use ALL")
    return full


def mask(names: Iterable[str]) -> int:
    """The bits of ``names``, bit N for capability N. Raises InvalidArgument for an unknown name."""
    bits = 0
    for name in names:
        number = NUMBERS.get(name)
        bits |= 1 << (NUMBERS[canonical(name)] if number is None else number)
    return bits


def names(bits: int) -> tuple[str, ...]:
    """The names of the bits that are set, in the kernel's order; bits that have no name yet are left out."""
    return tuple(name for number, name in enumerate(NAMES) if bits >> number & 1)
