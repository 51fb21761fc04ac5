"""What a child says before execve reaches its parent; end of file means that it executes. No root needed."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition, StartError
from cri_py.runtime.child import ERROR, READY, Parent, arrange, keep_only, said_text


def fork(body: Callable[[Parent], None]) -> tuple[Parent, int]:
    parent = Parent()
    pid = os.fork()
    if pid == 0:
        parent.run_child(lambda: body(parent))
    parent.started()
    return parent, pid


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_end_of_file_means_that_the_program_runs() -> None:
    parent, pid = fork(lambda _: os.execv("/bin/true", ["true"]))
    assert parent.hear() == []
    parent.close()
    assert code_of(pid) == 0


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StartError('exec: "x": not found'), 'exec: "x": not found'),
        (OSError(2, "No such file or directory"), "No such file"),
        (ValueError(), "ValueError"),
        (StartError("\udcff is no text"), "\udcff is no text"),
    ],
)
def test_an_error_before_execve_reaches_the_parent_in_its_words(error: Exception, text: str) -> None:
    def fail(_: Parent) -> None:
        raise error

    parent, pid = fork(fail)
    said = parent.hear()
    assert said[:2] == [ERROR, b"failed"]
    assert text in said_text(said)
    parent.close()
    assert code_of(pid) == 128


def test_an_error_longer_than_a_frame_is_cut_and_still_understood() -> None:
    def fail(_: Parent) -> None:
        raise StartError("x" * 200_000)

    parent, pid = fork(fail)
    assert parent.hear() == [ERROR, b"failed", b"x" * 4096]
    parent.close()
    code_of(pid)


def test_what_the_node_lacks_is_told_from_what_fails() -> None:
    def fail(_: Parent) -> None:
        raise FailedPrecondition("no such volume")

    parent, pid = fork(fail)
    assert parent.hear() == [ERROR, b"state", b"no such volume"]
    parent.close()
    code_of(pid)


def test_a_child_that_dies_silently_ends_the_conversation() -> None:
    parent, pid = fork(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    assert parent.hear() == []
    parent.close()
    assert code_of(pid) == -signal.SIGKILL


def test_a_child_waits_for_the_word() -> None:
    def wait(parent: Parent) -> None:
        keep_only(parent.child_fd)  # the parent's end above all: it would keep the conversation open
        parent.say_ready(17, b'{"user":null}')
        os._exit(7 if parent.await_go() else 8)

    for go, code in ((True, 7), (False, 8)):
        parent, pid = fork(wait)
        assert parent.hear() == [READY, b"17", b'{"user":null}']
        if go:
            parent.go()
        else:
            parent.close()
        assert code_of(pid) == code
        if go:
            parent.close()


def test_a_descriptor_travels_up_and_is_close_on_exec() -> None:
    def send(parent: Parent) -> None:
        read_end, write_end = os.pipe()
        os.write(write_end, b"through")
        parent.say_ready(17, b"{}", read_end)
        os._exit(0)

    parent, pid = fork(send)
    said, fd = parent.hear_with_descriptor()
    assert said == [READY, b"17", b"{}"]
    assert os.read(fd, 10) == b"through"
    assert not os.get_inheritable(fd)
    os.close(fd)
    parent.close()
    code_of(pid)


def open_in_child(body: Callable[[], None], report: Path) -> dict[int, str]:
    """The descriptors that a child has after ``body``: {number: target}."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
            names = os.listdir("/proc/self/fd")
            lines = []
            for name in names:
                try:
                    lines.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')} {os.get_inheritable(int(name))}")
                except FileNotFoundError:
                    continue  # the one that listed
            report.write_text("\n".join(lines))
            os._exit(0)
        finally:
            os._exit(1)
    assert code_of(pid) == 0
    found = (line.split(" ", 1) for line in report.read_text().splitlines())
    return {int(number): rest for number, rest in found}


def test_keep_only_closes_all_but_what_is_kept(tmp_path: Path) -> None:
    def body() -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        for number in (3, 4, 5, 6, 7, 50, 200):
            os.dup2(null, number)
        keep_only(4, 50)

    assert sorted(open_in_child(body, tmp_path / "fds")) == [0, 1, 2, 4, 50]


def test_keep_only_reaches_as_far_as_descriptors_go(tmp_path: Path) -> None:
    def body() -> None:
        highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
        os.dup2(0, highest)
        keep_only()

    assert sorted(open_in_child(body, tmp_path / "fds")) == [0, 1, 2]


def test_a_child_without_stdio_has_the_null_device_there(tmp_path: Path) -> None:
    def body() -> None:
        keep_only(null_stdio=True)
        (tmp_path / "devices").write_text(" ".join(str(os.fstat(number).st_rdev) for number in (0, 1, 2)))

    assert sorted(open_in_child(body, tmp_path / "fds")) == [0, 1, 2]
    assert (tmp_path / "devices").read_text().split() == [str(os.makedev(1, 3))] * 3


def test_descriptors_are_arranged_though_each_stands_where_another_goes(tmp_path: Path) -> None:
    places = [tmp_path / name for name in "abcde"]

    def body() -> None:
        keep_only()
        for number, place in zip((0, 1, 2, 3, 4), places, strict=True):
            fd = os.open(place, os.O_RDWR | os.O_CREAT)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
        arrange((4, 3), (3, 4), (1, 0), (2, 1), (0, 2))
        keep_only(3, 4)

    found = open_in_child(body, tmp_path / "fds")
    assert {number: (target.split()[0][-1], target.split()[1]) for number, target in found.items()} == {
        0: ("b", "True"),
        1: ("c", "True"),
        2: ("a", "True"),
        3: ("e", "False"),
        4: ("d", "False"),
    }
