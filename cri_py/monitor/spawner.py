"""The fork server: one small process without threads, from which every monitor is forked.

It is executed, never forked, so it has nothing of grpc in it; it loads what a monitor will need and freezes it, so
that the monitors share those pages. It holds no state: it may die at any time and be replaced.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import suppress

from cri_py.cgroups import Cgroups, detect
from cri_py.kernel import faults, procfs, syscalls
from cri_py.kernel.constants import PR_SET_DUMPABLE
from cri_py.kernel.fds import receive as receive_fds
from cri_py.monitor import protocol
from cri_py.monitor.process import main as become_monitor
from cri_py.monitor.rehearsal import rehearse, settle

_FDS = 4


def serve(control: socket.socket, cgroups: Cgroups) -> None:
    """Make monitors until the daemon's end is closed. One request, one fork; the monitor answers by itself."""
    child_fd = syscalls.signalfd(signal.SIGCHLD)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(child_fd, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        if child_fd in ready:
            _reap(child_fd)
        if control.fileno() not in ready:
            continue
        frame, fds = receive_fds(control, protocol.PACKET_BYTES, _FDS)
        if not frame:
            return
        if syscalls.clone3(0) == 0:
            control.close()
            os.close(child_fd)
            become_monitor(os.fsdecode(frame), fds, cgroups)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def main(control_fd: int) -> None:
    """Entry: ``python -m cri_py.monitor.spawner FD``."""
    procfs.set_own_name("cri-spawner")
    _set_signals()
    syscalls.prctl(
        PR_SET_DUMPABLE, 0
    )  # inherited by the monitors: what enters a container must not be traced from there
    cgroups = detect()
    rehearse()
    faults.arm(faults.MONITORS)
    _filling = settle()
    serve(socket.socket(fileno=control_fd), cgroups)


def _reap(child_fd: int) -> None:
    """The spawner's children are monitors. How one died that was not told to end, nobody else can say."""
    os.read(child_fd, 128)
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[1]:
                _tell_death(*ended)
    except ChildProcessError:
        return


def _tell_death(pid: int, status: int) -> None:
    """On the daemon's own stderr, which is its log."""
    how = (
        b"was killed by signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else b"ended with %d" % (status >> 8)
    )
    with suppress(OSError):  # a log that takes nothing must not end the spawner
        os.write(2, b"cri-spawner: the monitor %d %b\n" % (pid, how))


def _set_signals() -> None:
    """For this process and, inherited, for all monitors: setting them there would cost each its own copy of pages.

    SIGCHLD is blocked and read from a descriptor. A handler in Python would run in the middle of anything.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # monitor and spawner end by the daemon's word, or its silence


if __name__ == "__main__":
    main(int(sys.argv[1]))
