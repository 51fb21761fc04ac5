"""From the node's user namespace into a pod's: how a container's init is born where it has rights over the container.

What belongs to a user namespace has to be made inside it: a pid namespace whose /proc can be mounted there, a mount
namespace that the container's root may change. What comes from the node has to be taken outside: the layers, the
volumes, the device nodes. So with a user namespace init is two processes::

    monitor ──clone3──▶ first: takes all mounts of the node's as descriptors, becomes the pod's root, joins
                          │ clone3(CLONE_PARENT)                                               (and exits)
    monitor ◀──child────▶ init: attaches them in its own mount namespace

The second is the monitor's child as well, in the pod's user namespace from birth. The monitor hears of it by ``born``.
"""

from __future__ import annotations

import os

from cri_py.kernel import syscalls
from cri_py.kernel.constants import (
    CLONE_NEWCGROUP,
    CLONE_NEWNS,
    CLONE_PARENT,
    PR_SET_DUMPABLE,
)
from cri_py.runtime.child import Parent


def become_root() -> None:
    """Be root of the user namespace that was just joined: until then the node's ids are nobody there."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.prctl(PR_SET_DUMPABLE, 0)  # a change of ids has set it to what fs.suid_dumpable says


def cross(holder_fd: int, joined: int, new: int, parent: Parent) -> None:
    """Join the namespaces ``joined`` of the process behind ``holder_fd``, the user namespace first, and go on as
    another process, in the namespaces ``new`` of its own. Returns in that one alone."""
    # In one call, with the rights of the node's root: the holder can't be looked into from inside.
    syscalls.setns(holder_fd, joined)
    become_root()
    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = syscalls.clone3(CLONE_PARENT | CLONE_NEWNS | new & ~CLONE_NEWCGROUP, exit_signal=0)
    if pid != 0:
        parent.say_born(pid)
        os.write(tell, b"b")
        os._exit(0)
    os.close(tell)
    # Not before the monitor has it in its queue who init is; if the first was killed before that, nobody would know.
    if os.read(told, 1) != b"b":
        os._exit(0)
    os.close(told)
    if new & CLONE_NEWCGROUP:
        syscalls.unshare(CLONE_NEWCGROUP)
