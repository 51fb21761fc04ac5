"""The fork server: one small process without threads, from which every monitor is forked.

It is executed, never forked, so it has nothing of grpc in it; it loads what a monitor will need and freezes it, so
that the monitors share those pages. It holds no state: it may die at any time and be replaced.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

from cri_py.cgroups import Cgroups, detect
from cri_py.kernel import faults, syscalls
from cri_py.kernel.fds import receive as receive_fds
from cri_py.monitor import protocol, transport
from cri_py.monitor.crilog import LineCutter
from cri_py.monitor.process import main as become_monitor

_FDS = 4
_WARM_ROUNDS = 20


def serve(control: socket.socket, cgroups: Cgroups) -> None:
    """Make monitors until the daemon's end is closed. One request, one fork; the monitor answers by itself."""
    while True:
        frame, fds = receive_fds(control, protocol.PACKET_BYTES, _FDS)
        if not frame:
            return
        request = protocol.decode(frame)
        if syscalls.clone3(0) == 0:
            control.close()
            become_monitor(request, fds, cgroups)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def main(control_fd: int) -> None:
    """Entry: ``python -m cri_py.monitor.spawner FD``."""
    syscalls.set_process_name("cri-spawner")
    _set_signals(os.getpid())
    cgroups = detect()
    _warm_up()
    faults.arm(faults.MONITORS)
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=control_fd), cgroups)


def _set_signals(spawner: int) -> None:
    """For this process and, inherited, for all monitors: setting them there would cost each its own copy of pages."""

    def reap(_number: int, _frame: object) -> None:
        """The spawner's children are monitors, which need no witness; a monitor's are collected in its loop."""
        if os.getpid() != spawner:
            return
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return

    signal.signal(signal.SIGCHLD, reap)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # monitor and spawner end by the daemon's word, or its silence


def _warm_up() -> None:
    """Run what every monitor runs, often enough for the interpreter to specialise it (PEP 659): code that changes
    only here is shared by all monitors."""
    for number in range(_WARM_ROUNDS):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        poll = select.epoll()
        poll.register(ours, select.EPOLLIN)
        transport.send(theirs, protocol.answer(number, {"text": "", "list": [1], "none": None, "yes": True}))
        poll.poll(0)
        transport.receive(ours)
        cutter = LineCutter("stdout")
        cutter.feed(b"line\nrest", number)
        cutter.end(number)
        for closing in (poll, ours, theirs):
            closing.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
