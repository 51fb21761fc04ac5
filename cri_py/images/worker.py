"""A process that unpacks layers, one after the other, for the daemon (``workers`` is its other end).

Not a thread of the daemon: the interpreter's lock would let one layer be unpacked at a time, and a layer that makes the
library, the interpreter or the kernel fail ends a process that is replaced. It dies with the daemon, in the middle of a
write if need be: nothing that it makes counts before the daemon has recorded it.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from cri_py.errors import Aborted, CriError, Internal, ResourceExhausted
from cri_py.images import unpacking
from cri_py.images.layers import Unpacked, plain_most, unpack
from cri_py.images.unpacking import Done, Failed, Frame, Job, Reached, Ready, Starved
from cri_py.kernel import fds
from cri_py.kernel.syscalls import prctl

if TYPE_CHECKING:
    from cri_py.model import Digest

MEMORY_BYTES: Final = 256 << 20  # zstd's largest usual window takes 128 MiB; what a wicked layer takes ends there
REPORT_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


class Growing:
    """The blob, as far as it has come; whoever reads on waits until more has."""

    def __init__(self, fd: int, job: Job, connection: socket.socket) -> None:
        self._fd = fd
        self._available = job.available
        self._whole = job.whole
        self._connection = connection
        self.position = 0

    def read(self, size: int, /) -> bytes:
        while self.position >= self._available and not self._whole:
            self._await_more()
        piece = os.read(self._fd, min(size, self._available - self.position))
        self.position += len(piece)
        return piece

    def vouch(self, plain: int) -> None:
        """Wait until so much of the blob has come that ``plain`` bytes may be in it.

        The size that a manifest claims proves nothing before all has come: a small bomb may claim to be a large layer.
        """
        while plain > plain_most(self._available) and not self._whole:
            self._await_more()

    def _await_more(self) -> None:
        self._connection.send(unpacking.encode(Starved(self._available)))
        frame = unpacking.decode(self._connection.recv(unpacking.PACKET_LIMIT) or _gone())
        if not isinstance(frame, Ready):
            raise Internal(f"the daemon answered {frame!r} to who waits for a blob")
        self._available, self._whole = frame


def serve(connection: socket.socket) -> None:
    """Unpack what the daemon asks for until it closes the connection."""
    while True:
        packet, received = fds.receive(connection, unpacking.PACKET_LIMIT, 1)
        if not packet:
            return
        job = unpacking.decode(packet)
        if not isinstance(job, Job) or len(received) != 1:
            raise Internal(f"no job came but {job!r} with {len(received)} descriptors")
        try:
            frames = _finish(_work(job, received[0], connection))
        except CriError as error:
            frames = [Failed(type(error).__name__, error.message, error.hint)]
        except MemoryError:
            message = f"{job.subject} takes more than {MEMORY_BYTES >> 20} MiB of memory to unpack"
            frames = [Failed(ResourceExhausted.__name__, message, "it has very many or very deep directories")]
        except OSError as error:
            frames = [Failed(Internal.__name__, f"{job.subject} can't be unpacked: {error}", "")]
        finally:
            os.close(received[0])
        for frame in frames:
            connection.send(unpacking.encode(frame))


def _work(job: Job, fd: int, connection: socket.socket) -> Unpacked:
    blob = Growing(fd, job, connection)
    reported, plain = time.monotonic(), 0

    def watch(count: int) -> None:
        nonlocal reported, plain
        plain += count
        blob.vouch(plain)
        if time.monotonic() - reported > REPORT_S:
            connection.send(unpacking.encode(Reached(blob.position)))
            reported = time.monotonic()

    diff_id: Digest = job.diff_id  # type: ignore[assignment] # model is not imported for the sake of a name
    return unpack(blob, job.target, size=job.size, diff_id=diff_id, lowest=job.lowest, subject=job.subject, watch=watch)


def _finish(unpacked: Unpacked) -> list[Frame]:
    return [*unpacking.implied_frames(unpacked.implied), Done(*unpacked[:3])]


def _gone() -> bytes:
    raise Aborted("the daemon has gone")


def run(fd: int, daemon: int) -> None:
    """The process: ``fd`` is the socket to the daemon, whose pid is ``daemon``."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon:
        return  # it died before that took effect
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the daemon ends us in its own order
    gc.disable()  # nothing here makes cycles, and a layer of many files would have all of them looked at often
    os.umask(0)  # files get their mode when they are made
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with socket.socket(fileno=fd) as connection:
        serve(connection)


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]))
