"""User namespaces: their mappings (user_namespaces(7)), and one as a descriptor for id-mapped mounts.

A mapping is the text of /proc/PID/uid_map: lines of first id inside, first id outside, length. Imports are few: this
module is loaded into the process from which every monitor is forked.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWUSER

Mappings = list[dict[str, Any]]  # OCI's linux.uidMappings: [{containerID, hostID, size}]


def text_of(mappings: Mappings) -> str:
    """OCI's mappings as the kernel reads them."""
    return "".join(f"{each['containerID']} {each['hostID']} {each['size']}\n" for each in mappings)


def outside(mappings: Mappings, inside: int) -> int:
    """The node's id of the namespace's id ``inside``; -1 if it is not mapped, and without mappings itself."""
    if not mappings:
        return inside
    for each in mappings:
        offset = inside - int(each["containerID"])
        if 0 <= offset < each["size"]:
            return int(each["hostID"]) + offset
    return -1


def write_mappings(pid: int, uid_map: str | bytes, gid_map: str | bytes) -> None:
    """Map the ids of the new user namespace of ``pid``, once and for all. Raises OSError.

    By a process with rights above it, so that setgroups(2) stays allowed inside.
    """
    for name, lines in (("uid_map", uid_map), ("gid_map", gid_map)):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, os.fsencode(lines))  # in one write, or the kernel refuses the second
        finally:
            os.close(fd)


def open_new(uid_map: str, gid_map: str) -> int:
    """A descriptor of a new user namespace in which no process is: all that an id-mapped mount needs (2 ms).

    The caller, which must be single-threaded, owns it. It may be in another pid namespace than its /proc shows.
    """
    told, tell = os.pipe2(os.O_CLOEXEC)
    child = syscalls.clone3(CLONE_NEWUSER)
    if child == 0:
        os.write(tell, os.fsencode(os.readlink("/proc/self")))
        while True:
            signal.pause()
    os.close(tell)
    try:
        shown = int(os.read(told, 32))
        write_mappings(shown, uid_map, gid_map)
        return os.open(f"/proc/{shown}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(told)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
