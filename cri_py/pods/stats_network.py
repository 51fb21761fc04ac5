"""What went through a pod's interfaces, as /proc/PID/net/dev of its holder tells (proc_pid_net(5)).

A file below /proc/PID/net keeps the network namespace it was opened in for as long as it is open, and with it the
pod's address: none is kept. What is kept is the holder's directory in /proc. It holds nothing, costs a third less than
the full path, and is never another process's when the pid is used again.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from cri_py.errors import KernelError

_READ_BYTES: Final = 65536
_GONE: Final = (errno.ENOENT, errno.ESRCH, errno.EINVAL)  # EINVAL: a zombie has no network namespace


class Interface(NamedTuple):
    """Counters since the interface was made: bytes, packets, errors, dropped packets, each way."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class HolderNetwork:
    """The interfaces in the network namespace of one process. Whoever made it closes it."""

    def __init__(self, pid: int) -> None:
        try:
            self._directory: int | None = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._directory = None  # it died; its pod will be told

    def interfaces(self) -> tuple[Interface, ...]:
        """All but the loopback; none where the process has ended."""
        if self._directory is None:
            return ()
        try:
            fd = os.open("net/dev", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                text = b"".join(iter(lambda: os.read(fd, _READ_BYTES), b""))  # a read gives 4 KiB, 30 lines, at most
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _GONE:
                return ()
            raise KernelError(error.errno or 0, error.strerror or str(error), "read", "net/dev of a holder") from error
        return parse(text)

    def close(self) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


def parse(text: bytes) -> tuple[Interface, ...]:
    """The lines of net/dev below its two headlines, less the loopback's."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, numbers = line.partition(b":")
        if name.strip() == b"lo":
            continue
        counts = [int(word) for word in numbers.split()]
        found.append(Interface(os.fsdecode(name.strip()), *counts[:4], *counts[8:12]))
    return tuple(found)
