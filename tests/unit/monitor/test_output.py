"""Output never blocks and never fails: what can't be written is dropped and counted."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from pathlib import Path

import pytest

from cri_py.monitor.output import LogFile, OutputStream


def texts(path: Path) -> list[bytes]:
    return re.findall(rb" [PF] ([^\n]*)\n", path.read_bytes())


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    log = LogFile(bytes(tmp_path / "pod" / "main" / "0.log"))
    log.open()
    log.write(b"a\n")
    log.close()
    assert (tmp_path / "pod" / "main" / "0.log").read_bytes() == b"a\n"


def test_a_path_that_cannot_be_opened_drops_lines_and_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("cri_py.monitor.output.time.monotonic", lambda: now)
    (tmp_path / "dir").write_text("in the way")
    log = LogFile(bytes(tmp_path / "dir" / "0.log"))
    with pytest.raises(OSError):
        log.open()
    log.write(b"a\nb\n")
    assert log.dropped == 2
    (tmp_path / "dir").unlink()
    log.write(b"c\n")  # too soon
    assert log.dropped == 3
    now += 6
    log.write(b"d\n")
    log.close()
    assert (tmp_path / "dir" / "0.log").read_bytes() == b"d\n"
    assert log.dropped == 3


def test_a_rotated_file_is_let_go_by_reopening(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    log = LogFile(bytes(path))
    log.open()
    log.write(b"old\n")
    path.rename(tmp_path / "0.log.1")
    log.write(b"still old\n")
    log.open()
    log.write(b"new\n")
    log.close()
    assert (tmp_path / "0.log.1").read_bytes() == b"old\nstill old\n"
    assert path.read_bytes() == b"new\n"


class Disk:
    """os.write onto a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, content: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        part = bytes(content)[: self.room]
        self.room -= len(part)
        return self._write(fd, part)

    _write = staticmethod(os.write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    full = Disk(0)
    monkeypatch.setattr("cri_py.monitor.output.os.write", full.write)
    return full


def test_a_line_torn_by_a_full_disk_is_ended_before_the_next_however_long_it_stays_full(
    tmp_path: Path, disk: Disk
) -> None:
    log = LogFile(bytes(tmp_path / "0.log"))
    disk.room = 6
    log.write(b"one\ntwo\nthree\n")
    assert log.dropped == 2  # of two only a part is there
    log.write(b"four\n")
    log.write(b"five\n")
    assert log.dropped == 4
    disk.room = 100
    log.write(b"six\n")
    log.close()
    assert (tmp_path / "0.log").read_bytes() == b"one\ntw\nsix\n"


def test_a_disk_that_is_full_between_two_lines_leaves_no_empty_one(tmp_path: Path, disk: Disk) -> None:
    log = LogFile(bytes(tmp_path / "0.log"))
    disk.room = 4
    log.write(b"one\ntwo\n")
    disk.room = 100
    log.write(b"three\n")
    log.close()
    assert (tmp_path / "0.log").read_bytes() == b"one\nthree\n"


def test_a_new_file_does_not_begin_with_the_end_of_a_torn_line(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "0.log"
    log = LogFile(bytes(path))
    disk.room = 2
    log.write(b"one\n")
    path.rename(tmp_path / "0.log.1")
    disk.room = 100
    log.open()
    log.write(b"two\n")
    log.close()
    assert path.read_bytes() == b"two\n"


def test_a_stream_is_logged_line_by_line_until_its_end(tmp_path: Path) -> None:
    log = LogFile(bytes(tmp_path / "0.log"))
    read_end, write_end = os.pipe()
    stream = OutputStream(read_end, "stdout", log, 100)
    assert stream.read_once()  # nothing there yet: it does not block
    os.write(write_end, b"hello\nwor")
    assert stream.read_once()
    assert texts(tmp_path / "0.log") == [b"hello"]
    os.close(write_end)
    while stream.read_once():
        pass
    assert texts(tmp_path / "0.log") == [b"hello", b"wor"]
    stream.close()
    log.close()


def test_a_drain_takes_what_is_there_and_awaits_nobody(tmp_path: Path) -> None:
    log = LogFile(bytes(tmp_path / "0.log"))
    read_end, write_end = os.pipe()
    stream = OutputStream(read_end, "stdout", log, 100)
    os.write(write_end, b"last\nwords")
    stream.drain()  # the writer is still there
    assert texts(tmp_path / "0.log") == [b"last", b"words"]
    stream.close()
    log.close()
    os.close(write_end)


def test_output_that_nobody_wants_is_read_all_the_same() -> None:
    read_end, write_end = os.pipe()
    stream = OutputStream(read_end, "stdout", None, 100)
    os.write(write_end, b"x\n" * 100)
    os.close(write_end)
    assert stream.read_once()
    assert not stream.read_once()
    stream.close()


def test_a_fifo_at_the_log_s_path_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.log")
    log = LogFile(bytes(tmp_path / "0.log"))
    with pytest.raises(OSError):
        log.open()
    reader = os.open(tmp_path / "0.log", os.O_RDONLY | os.O_NONBLOCK)  # with one a writer could open it
    try:
        with pytest.raises(OSError, match="not a regular file"):
            log.open()
    finally:
        os.close(reader)


def test_a_link_at_the_log_s_path_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "0.log").symlink_to(tmp_path / "elsewhere")
    log = LogFile(bytes(tmp_path / "0.log"))
    with pytest.raises(OSError):
        log.open()
    assert not (tmp_path / "elsewhere").exists()


def test_a_tap_without_its_reader_is_closed_though_nothing_is_said() -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    stream = OutputStream(read_end, "stdout", None, 16384)
    gone, kept = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    for pair in (gone, kept):
        stream.take_tap(pair[1])
    os.close(gone[0])
    stream.drop_unread_taps()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(gone[1])
    os.write(write_end, b"hello")
    stream.read_once()
    assert os.read(kept[0], 10) == b"hello"
    stream.close()
    for fd in (write_end, kept[0]):
        os.close(fd)


def test_a_reader_who_is_behind_for_a_moment_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri_py.monitor.output._STUCK_S", 60)  # as a moment takes on a busy machine
    monkeypatch.setattr("cri_py.monitor.output._PATIENCE_S", 60)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    tap = os.pipe2(os.O_CLOEXEC)
    stream = OutputStream(read_end, "stdout", None, 16384)
    stream.take_tap(tap[1])
    came = bytearray()

    def read() -> None:
        while piece := os.read(tap[0], 4096):
            came.extend(piece)

    fill(tap[1])
    reading = threading.Timer(0.02, read)
    reading.start()
    os.write(write_end, b"the last")
    stream.read_once()
    stream.close()
    reading.join(60)
    assert came.endswith(b"the last")
    for fd in (write_end, tap[0]):
        os.close(fd)


def test_readers_who_never_read_cost_a_stream_two_seconds_at_most_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri_py.monitor.output._STUCK_S", 0.1)
    monkeypatch.setattr("cri_py.monitor.output._PATIENCE_S", 0.5)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    stuck, sound = [os.pipe2(os.O_CLOEXEC) for _ in range(100)], os.pipe2(os.O_CLOEXEC)
    stream = OutputStream(read_end, "stdout", None, 16384)
    for tap in (*stuck, sound):
        stream.take_tap(tap[1])
    for tap in stuck:
        fill(tap[1])
    began = time.monotonic()
    for _ in range(100):
        os.write(write_end, b"x")
        stream.read_once()
    assert time.monotonic() - began < 5, "each by itself would take 10 s"
    assert os.read(sound[0], 1000) == b"x" * 100
    for tap in stuck:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(tap[1])
    stream.close()
    for fd in (write_end, sound[0], *(tap[0] for tap in stuck)):
        os.close(fd)


def fill(fd: int) -> None:
    """Write until a pipe takes no more."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(fd, bytes(4096)):
            pass
