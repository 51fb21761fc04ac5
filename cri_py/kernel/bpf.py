"""bpf(2), as far as the device rules of cgroup v2 need it: load a program, attach it to a cgroup, ask, detach.

The program itself is built by ``cgroups.devices``. An attached program belongs to its cgroup and goes with it, so its
descriptor needn't be kept.
"""

from __future__ import annotations

import ctypes
import os
import struct

from cri_py.errors import KernelError
from cri_py.kernel import syscalls

BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6  # where it is attached
BPF_F_ALLOW_MULTI = 2  # beside others; each of them and each of the parents' must agree

_PROG_LOAD, _PROG_GET_FD_BY_ID, _PROG_ATTACH, _PROG_DETACH, _PROG_QUERY = 5, 13, 8, 9, 16
_NR_BPF = 321 if os.uname().machine == "x86_64" else 280
_LOG_BYTES = 65536

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char], act: str, subject: str) -> int:
    if syscalls.failpoint is not None:
        syscalls.failpoint("bpf", subject)
    result = int(_libc.syscall(_NR_BPF, command, attributes, ctypes.c_size_t(len(attributes))))
    if result < 0:
        number = ctypes.get_errno()
        raise KernelError(number, os.strerror(number), f"bpf {act}", subject)
    return result


def _attributes(layout: str, *values: int | bytes) -> ctypes.Array[ctypes.c_char]:
    packed = struct.pack(layout, *values)
    return ctypes.create_string_buffer(packed, len(packed))


def load_device_program(instructions: bytes, name: str = "cri_py_devices") -> int:
    """Load a program of type cgroup device, 8 bytes an instruction; returns its descriptor, close-on-exec.

    Where the kernel's verifier refuses it, the error carries the verifier's words.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def load(level: int) -> int:
        attributes = _attributes(
            "=2I2Q2IQ2I16s2I",
            BPF_PROG_TYPE_CGROUP_DEVICE,
            len(instructions) // 8,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            level,
            _LOG_BYTES if level else 0,
            ctypes.addressof(log) if level else 0,
            0,
            0,
            name.encode()[:15],
            0,
            BPF_CGROUP_DEVICE,
        )
        return _bpf(_PROG_LOAD, attributes, "PROG_LOAD", name)

    try:
        return load(0)
    except KernelError as refused:
        try:
            return load(1)
        except KernelError as error:
            words = log.value.decode(errors="replace").strip().replace("\n", "; ")
            raise KernelError(
                error.errno or 0, f"{error.strerror}: {words or 'no verifier log'}", error.syscall, name
            ) from refused


def attach_device_program(cgroup: int, program: int) -> None:
    """Let ``program`` decide about devices in the cgroup v2 directory ``cgroup``, beside any other that is there."""
    attributes = _attributes("=5I", cgroup, program, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI, 0)
    _bpf(_PROG_ATTACH, attributes, "PROG_ATTACH", f"cgroup fd {cgroup}")


def detach_device_program(cgroup: int, program: int) -> None:
    """Take ``program`` off the cgroup again."""
    _bpf(_PROG_DETACH, _attributes("=5I", cgroup, program, BPF_CGROUP_DEVICE, 0, 0), "PROG_DETACH", f"fd {cgroup}")


def device_programs(cgroup: int) -> tuple[int, ...]:
    """The ids of the device programs attached to the cgroup itself; the kernel takes 64 at most."""
    ids = (ctypes.c_uint32 * 64)()
    attributes = _attributes("=4IQ2I", cgroup, BPF_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), 64, 0)
    _bpf(_PROG_QUERY, attributes, "PROG_QUERY", f"cgroup fd {cgroup}")
    return tuple(ids[: struct.unpack_from("=I", attributes.raw, 24)[0]])


def program_fd(number: int) -> int:
    """A descriptor of the loaded program with this id."""
    return _bpf(_PROG_GET_FD_BY_ID, _attributes("=3I", number, 0, 0), "PROG_GET_FD_BY_ID", str(number))
