"""What the spawner does before it forks, so that each monitor later copies as few pages as it can.

A forked process shares its parent's memory until it writes, and an interpreter writes where one would not think of it.
Four of its habits are over and done with if they happen before the fork:

- Code adapts itself while it runs (PEP 659), and look-ups fill caches. So a monitor is played through here, with a
  daemon and children that only pretend: the same frames, the same forks, until nothing changes any more.
- A new object takes the first hole of its size that the allocator has, wherever that is, and the books on that hole's
  neighbours change too. So the holes are filled, and all new objects of a size begin on one page of their own.
- A call counts a reference in its code object, so the code that runs is put side by side: see ``monitor.packing``.
- The garbage collector writes into every object that it visits: ``gc.freeze`` takes them out of its sight.

What is left are reference counts. A monitor with one running container has 0.9 MB of its own instead of 1.6.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

from cri_py.cgroups import ExecScope
from cri_py.cgroups.v1 import V1
from cri_py.kernel import procfs, steps
from cri_py.kernel.constants import CLONE_PARENT
from cri_py.monitor import protocol
from cri_py.monitor.packing import code_that_runs, pack
from cri_py.monitor.process import Executor, Monitor
from cri_py.runtime import container, holder, mounts
from cri_py.runtime import exec as runtime_exec
from cri_py.runtime.child import Parent

_ROUNDS = 20  # an instruction specialises at the eighth run, what it found wrong it tries again later
_SIZES = range(48, 513, 16)  # of the allocator's blocks that a bytes object can have (Objects/obmalloc.c)
_BYTES_OVERHEAD = 33
_POOL_BYTES = 16 << 10
_POOL_HEADER = 48
_FILLINGS_MOST = 20_000
_ID = "0" * 64
_MOUNTS = [
    {"type": "tmpfs", "source": "tmpfs", "destination": "/dev", "options": ["nosuid", "mode=755", "ro", "slave"]}
]
_PROGRAM = steps.program(
    (
        steps.Step("fcntl", (steps.REPORT_FD, 2, 1)),
        steps.Step("clone3", ((CLONE_PARENT, *[0] * 10), 88), steps.Then.FORK),
        steps.Step("read", (steps.REPORT_FD, steps.SCRATCH, 1)),
        steps.Step("exit_group", (0,)),
    )
)
_DOCUMENT = json.dumps({"process": {"args": ["a"], "noNewPrivileges": True, "oomScoreAdj": 1.5}, "mounts": _MOUNTS})


def rehearse() -> None:
    """Play a monitor's life through, some times. SIGCHLD must be blocked."""
    pack(code_that_runs(_play))
    for _ in range(_ROUNDS):
        procfs.set_own_name("cri-spawner")
        _play()
        _read_document()


def _read_document() -> None:
    """What children do before they touch anything."""
    json.loads(_DOCUMENT)
    mounts.plan(_MOUNTS)
    container.environment_of(["PATH=/bin", "HOME=/"], "/")


def settle() -> list[object]:
    """Fill the allocator's holes and hide all there is from the collector; the filling must be kept."""
    gc.collect()
    filling: list[object] = []
    _fill(filling, object)  # 16 bytes
    _fill(filling, lambda: (1 << 40) + len(filling))  # 32 bytes
    for size in _SIZES:
        _fill(filling, partial(bytes, size - _BYTES_OVERHEAD))
    gc.freeze()
    return filling


def _fill(filling: list[object], make: Callable[[], object]) -> None:
    """Make objects until one is the first in its pool: then there is no hole of that size any more."""
    for _ in range(_FILLINGS_MOST):
        filling.append(make())
        if id(filling[-1]) % _POOL_BYTES == _POOL_HEADER:
            return


# ------------------------------------------------------------------ the play


def _play() -> None:
    """A pod with one container, one line of output and one exec, from up to end."""
    daemon, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spare, listener = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with daemon, spare, open("/dev/null", "rb") as null, open(steps.in_memory(_PROGRAM), "rb") as program:
        monitor = Monitor("/dev/null", ours.detach(), listener.detach(), _NoGroups(()), _PRETENDING)
        monitor.greet()
        for seq, (op, fields, fds) in enumerate(_script(null.fileno(), program.fileno()), 1):
            socket.send_fds(daemon, [protocol.request(op, seq, fields)], fds)
            while _last_answer(daemon) != seq:
                monitor.turn()
        monitor.close()
    _collect()


def _collect() -> None:
    """Those that the play has killed at its end."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _script(null: int, program: int) -> tuple[tuple[str, dict[str, object], tuple[int, ...]], ...]:
    create = {
        **{
            "id": _ID,
            "cgroup": "/pod/container",
            "log": "/dev/null",
            "line_bytes": 16384,
            "stdin": False,
            "stdin_once": False,
            "tty": False,
            "later_hooks": "",
        },
        **protocol.namespace_words(()),
    }
    return (
        ("hold", {"uid_map": "", "gid_map": ""}, (program, null)),
        ("create", {**create, "bundle": ""}, ()),
        ("start", {"id": _ID}, ()),
        ("exec", {"id": _ID, "name": "exec-1"}, (null, null, null, program)),
        ("kill", {"id": _ID, "signal": signal.SIGKILL, "all": False}, ()),
        ("end", {}, ()),
    )


def _last_answer(daemon: socket.socket) -> int:
    """The number of the newest answer that has come; 0 for none."""
    seq = 0
    while True:
        try:
            frame = daemon.recv(protocol.PACKET_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seq
        seq = max(seq, protocol.parse_reply(frame).seq)


# The children: they say what real ones say and do nothing.


def _pretend_init(world: container.World, _body: bytes) -> None:
    os.write(world.stdio.stdout, b"a line\n")
    world.parent.say_ready(1, b'{"user":null,"notes":[]}')
    world.parent.await_go()
    _pretend_to_run(world.parent)


def _pretend_to_run(parent: Parent) -> None:
    os.close(parent.child_fd)  # as execve does
    signal.pause()


class _NoGroups(V1):
    """A node without cgroups."""

    def exec_scope(self, container_path: str, name: str) -> ExecScope:
        return ExecScope(self, f"{container_path}/{name}", "/dev/null/exec", ())


_PRETENDING = Executor(
    hold=holder.spawn,
    create=partial(container.create, init=_pretend_init),
    exec=runtime_exec.start,
)
