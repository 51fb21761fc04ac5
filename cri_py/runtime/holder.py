"""The holder: the process that keeps a pod's namespaces alive.

It is a program of ours of some 130 bytes, one ELF header, one program header and a loop around a syscall that waits
for ever. It is executed with SIGCHLD ignored, so that the kernel reaps its children, also where it is pid 1 of a
shared pid namespace. A process can hardly be smaller: it costs 8 kB.
"""

from __future__ import annotations

import os
import platform
import signal
import struct
from typing import Any

from cri_py.cgroups import Cgroups
from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUTS, PR_SET_PDEATHSIG
from cri_py.runtime.child import Parent, keep_only

_BASE = 0x400000
_HEADERS = 64 + 56

_CODE = {
    "x86_64": bytes.fromhex("b822000000 0f05 ebf7".replace(" ", "")),  # again: mov eax, SYS_pause; syscall; jmp again
    # again: mov x0..x4, 0; mov w8, SYS_ppoll; svc 0; b again
    "aarch64": struct.pack(
        "<8I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0x52800928, 0xD4000001, 0x17FFFFF9
    ),
}
_MACHINE = {"x86_64": 62, "aarch64": 183}  # e_machine, elf(5)


def program(machine: str = "") -> bytes:
    """The holder's ELF image for ``machine`` (as ``uname -m`` prints it; ours by default), elf(5)."""
    machine = machine or platform.machine()
    code = _CODE[machine]
    size = _HEADERS + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, _MACHINE[machine], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return identity + header + segment + code


def write_program(path: str) -> None:
    """Put the program at ``path`` if it is not there yet, whole or not at all."""
    if os.path.exists(path):
        return
    temporary = f"{path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755), "wb") as file:
        file.write(program())
    os.rename(temporary, path)


def spawn(request: dict[str, Any], netns_fd: int, cgroups: Cgroups) -> int:
    """Start the holder; returns its pid once it executes. Raises ChildError with the cause if it can't.

    ``request``: program (path), hostname ("" keeps the host's UTS namespace), ipc and pid (bool: own namespace),
    sysctls ({name: value}), cgroup (path). ``netns_fd`` is the pod's network namespace, -1 for the host's.
    """
    flags = (CLONE_NEWIPC if request["ipc"] else 0) | (CLONE_NEWPID if request["pid"] else 0)
    flags |= CLONE_NEWUTS if request["hostname"] else 0
    parent = Parent()
    pid = syscalls.clone3(flags)
    if pid == 0:
        parent.run_child(lambda: _become(request, netns_fd, cgroups, parent))
    parent.started()
    try:
        parent.expect_exec(timeout_s=10.0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    return pid


def _become(request: dict[str, Any], netns_fd: int, cgroups: Cgroups, parent: Parent) -> None:
    syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cgroups.enter(request["cgroup"])
    if netns_fd >= 0:
        syscalls.setns(netns_fd, CLONE_NEWNET)
    if request["hostname"]:
        syscalls.sethostname(request["hostname"])
    for name, value in request["sysctls"].items():
        _set_sysctl(name, value)
    keep_only(parent.child_fd, null_stdio=True)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.chdir("/")
    os.execve(request["program"], ["cri-holder"], {})


def _set_sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:
        file.write(value)
