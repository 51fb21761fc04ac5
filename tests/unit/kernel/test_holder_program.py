"""The holder's program, byte by byte for both machines, and running on this one."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from cri_py.kernel.holder import program, write_program

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


def test_it_runs_and_waits_until_it_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "holder"
    write_program(str(path))
    write_program(str(path))  # a second daemon finds it there
    assert [entry.name for entry in tmp_path.iterdir()] == ["holder"]
    with subprocess.Popen([path]) as holder:
        deadline = time.monotonic() + 5
        while Path(f"/proc/{holder.pid}/stat").read_text().split(") ")[1][0] != "S":
            assert time.monotonic() < deadline
        holder.send_signal(signal.SIGCHLD)
        os.kill(holder.pid, signal.SIGSTOP)
        os.kill(holder.pid, signal.SIGCONT)
        with pytest.raises(subprocess.TimeoutExpired):
            holder.wait(timeout=0.05)
        holder.terminate()
        assert holder.wait(timeout=5) == -signal.SIGTERM
