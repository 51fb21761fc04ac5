"""The holder's program, byte by byte for both machines, and running on this one."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from cri_py.kernel.holder import pause_filter, program, write_program
from tests.simulators.seccomp_machine import ALLOW, ERRNO, I386, X86_64, verdict

TEXT = 64 + 56


@pytest.mark.parametrize(("machine", "number", "size"), [("x86_64", 62, 129), ("aarch64", 183, 152)])
def test_the_image_is_a_static_elf_of_one_segment(machine: str, number: int, size: int) -> None:
    image = program(machine)
    assert len(image) == size
    assert image[:7] == b"\x7fELF\x02\x01\x01"  # 64 bits, little endian
    kind, of, _, entry, segments = struct.unpack_from("<HHIQQ", image, 16)
    assert (kind, of, segments) == (2, number, 64)
    what, rights, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", image, 64)
    assert (what, rights, offset) == (1, 5, 0)  # loaded; read and execute, never write
    assert in_file == in_memory == size
    assert entry == address + TEXT


def test_x86_64_pauses_in_a_loop() -> None:
    assert program("x86_64")[TEXT:] == bytes.fromhex("b822000000 0f05 ebf7")
    jump = struct.unpack("b", program("x86_64")[-1:])[0]
    assert 9 + jump == 0  # back to the first instruction


def test_aarch64_polls_nothing_in_a_loop() -> None:
    *_, number, call, jump = struct.unpack("<8I", program("aarch64")[TEXT:])
    assert (number >> 5) & 0xFFFF == 73  # w8 = ppoll
    assert call == 0xD4000001  # svc #0
    offset = (jump & 0x3FFFFFF) - (1 << 26)
    assert offset == -7  # back to the first instruction


def test_its_filter_lets_it_wait_and_nothing_else() -> None:
    bpf = pause_filter("x86_64")
    allowed = {number for number in range(500) if verdict(bpf, number) == ALLOW}
    assert allowed == {1, 15, 34, 219, 231, 322}
    for arch, number in ((X86_64, 272), (X86_64, 0x40000022), (I386, 34)):  # unshare, x32, another ABI
        assert verdict(bpf, number, arch=arch) == ERRNO | 1
    bpf = pause_filter("aarch64")
    assert verdict(bpf, 73, arch=0xC00000B7) == ALLOW
    assert verdict(bpf, 97, arch=0xC00000B7) == verdict(bpf, 34) == ERRNO | 1


def test_nobody_needs_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "holder"
    path.write_bytes(b"of an earlier version")
    write_program(str(path))
    assert path.stat().st_mode & 0o777 == 0o111
    assert path.read_bytes() == program()


def test_it_runs_and_waits_until_it_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "holder"
    write_program(str(path))
    write_program(str(path))  # a second daemon finds it there
    assert [entry.name for entry in tmp_path.iterdir()] == ["holder"]
    with subprocess.Popen([path]) as holder:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{holder.pid}/stat").read_text().split(") ")[1][0] != "S":
            assert time.monotonic() < deadline
        holder.send_signal(signal.SIGCHLD)
        os.kill(holder.pid, signal.SIGSTOP)
        os.kill(holder.pid, signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            holder.wait(timeout=0.05)
        holder.terminate()
        assert holder.wait(timeout=60) == -signal.SIGTERM
