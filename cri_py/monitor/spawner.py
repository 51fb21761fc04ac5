"""The fork server: one small process without threads, from which every monitor is forked.

It is executed, never forked, so it has nothing of grpc in it; it loads what a monitor will need and freezes it, so
that the monitors share those pages. It holds no state: it may die at any time and be replaced.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from cri_py.kernel import syscalls
from cri_py.monitor import protocol
from cri_py.monitor.process import main as become_monitor

_FDS = 4


def serve(control: socket.socket) -> None:
    """Make monitors until the daemon's end is closed. One request, one fork; the monitor answers by itself."""
    while True:
        frame, fds, _, _ = socket.recv_fds(control, protocol.PACKET_BYTES, _FDS, socket.MSG_CMSG_CLOEXEC)
        if not frame:
            return
        request = protocol.decode(frame)
        if syscalls.clone3(0) == 0:
            control.close()
            become_monitor(request, fds)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def main(control_fd: int) -> None:
    """Entry: ``python -m cri_py.monitor.spawner FD``."""
    syscalls.set_process_name("cri-spawner")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the monitors; each sets its own handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the daemon's terminal is the daemon's business
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=control_fd))


if __name__ == "__main__":
    main(int(sys.argv[1]))
