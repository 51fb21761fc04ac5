"""Programs that are lists of system calls, run on this machine and, by qemu, on the other."""

from __future__ import annotations

import errno
import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.kernel import elf, steps
from cri_py.kernel.steps import FORKED, REPORT_FD, SCRATCH, Report, Step, Then, Words, read_report, vector

MACHINES = ("x86_64", "aarch64")
EXIT = Step("exit_group", (7,))
ABSENT = b"/nowhere/at/all\0"
ASSEMBLERS = {name: "as" if name == platform.machine() else f"{name}-linux-gnu-as" for name in MACHINES}


class Run:
    """What a program has said and how it ended."""

    def __init__(self, program: Path, machine: str, inherited: Sequence[int] = ()) -> None:
        runner = [] if machine == platform.machine() else [f"qemu-{machine}"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            place = f"exec {REPORT_FD}>&{theirs.fileno()}; exec " + " ".join([*runner, str(program)])
            fds = (theirs.fileno(), *inherited)
            self.code = subprocess.run(["bash", "-c", place], pass_fds=fds, timeout=60, check=False).returncode
            theirs.close()
            self.reports: list[Report] = []
            while message := ours.recv(64):
                self.reports.append(read_report(message))


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(tmp_path: Path, machine: str) -> object:
    def run(*wanted: Step) -> Run:
        program = tmp_path / "program"
        program.write_bytes(steps.program(wanted, machine))
        program.chmod(0o755)
        return Run(program, machine)

    return run


def failing(then: Then = Then.MUST, path: bytes = ABSENT) -> Step:
    return Step("openat", (-100, path, os.O_RDONLY), then)


@pytest.mark.parametrize("name", MACHINES)
def test_the_code_is_what_its_source_assembles_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "code.s").write_text(steps.SOURCES[name])
    subprocess.run([ASSEMBLERS[name], "-o", tmp_path / "code.o", tmp_path / "code.s"], check=True)
    copy = ASSEMBLERS[name].replace("as", "objcopy") if "-" not in ASSEMBLERS[name] else f"{name}-linux-gnu-objcopy"
    subprocess.run([copy, "-O", "binary", "-j", ".text", tmp_path / "code.o", tmp_path / "code"], check=True)
    start = 64 + 4 * 56
    assembled = (tmp_path / "code").read_bytes()
    assert steps.program([EXIT], name)[start : start + len(assembled)] == assembled


def test_steps_are_carried_out_in_order_until_one_ends_the_process(run, tmp_path: Path) -> None:
    file = os.fsencode(tmp_path / "made") + b"\0"
    made = run(
        Step("openat", (-100, file, os.O_WRONLY | os.O_CREAT, 0o600)),
        Step("write", (4, b"first ", 6), Then.MAY),
        Step("mkdirat", (-100, os.fsencode(tmp_path / "directory") + b"\0", 0o700)),
        EXIT,
        Step("mkdirat", (-100, os.fsencode(tmp_path / "never") + b"\0", 0o700)),
    )
    assert (made.code, made.reports) == (7, [])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory", "made", "program"]


def test_a_step_that_must_succeed_ends_the_program_with_its_number_and_errno(run) -> None:
    ended = run(Step("umask", (0o22,)), failing(), EXIT)
    assert (ended.code, ended.reports) == (128, [Report(1, errno.ENOENT)])


def test_a_step_that_may_fail_is_passed_over(run) -> None:
    assert run(failing(Then.MAY), EXIT).code == 7


def test_of_several_tries_the_first_failure_that_is_no_missing_file_is_told(run, tmp_path: Path) -> None:
    plain = tmp_path / "not-executable"
    plain.write_text("")
    plain.chmod(0o644)
    argv, envp = vector([b"x\0"]), vector([])
    tries = [Step("execve", (path, argv, envp), Then.TRY) for path in (ABSENT, os.fsencode(plain) + b"\0", b"/\0")]
    assert run(*tries, Step("", (), Then.GIVE_UP)).reports == [Report(3, errno.EACCES)]
    assert run(tries[0], Step("", (), Then.GIVE_UP)).reports == [Report(1, errno.ENOENT)]


def test_execve_gets_arguments_and_environment(run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f'#!/bin/sh\necho "$1 $2 $NAME" > {tmp_path}/said\nexit 5\n')
    script.chmod(0o755)
    argv = vector([b"script\0", b"one\0", b"t w o\0"])
    executed = run(Step("execve", (os.fsencode(script) + b"\0", argv, vector([b"NAME=value\0"])), Then.TRY))
    assert (executed.code, executed.reports) == (5, [])
    assert (tmp_path / "said").read_text() == "one t w o value\n"


def test_the_parent_tells_what_a_fork_returned_and_ends(run) -> None:
    forked = run(Step("setsid", (), Then.FORK), EXIT)  # returns a number above 0, as a fork does in the parent
    assert forked.code == 128
    assert [(report.step, report.number > 1) for report in forked.reports] == [(FORKED, True)]


def test_the_child_of_a_fork_goes_on(run) -> None:
    assert run(Step("umask", (0,)), Step("umask", (0,), Then.FORK), EXIT).code == 7  # returns 0, as in a child


def test_both_live_after_a_real_fork(tmp_path: Path) -> None:
    program = tmp_path / "program"
    arguments = (0, 0, 0, 0, 17, 0, 0, 0)  # a plain fork, whose end says SIGCHLD
    made = os.fsencode(tmp_path / "by-the-child") + b"\0"
    forked = Step("clone3", (arguments, 64), Then.FORK)
    program.write_bytes(steps.program([forked, Step("mkdirat", (-100, made, 0o700)), EXIT]))
    program.chmod(0o755)
    ended = Run(program, platform.machine())
    assert ended.code == 128
    assert [(report.step, report.number > 1) for report in ended.reports] == [(FORKED, True)]
    assert (tmp_path / "by-the-child").is_dir()


def test_what_a_call_returned_can_be_looked_at(run) -> None:
    directory = Step("getcwd", (SCRATCH, 4096))
    absolute = Step("", (SCRATCH, 0xFF, ord("/"), errno.ENOENT), Then.EXPECT)
    relative = Step("", (SCRATCH, 0xFF, ord("("), errno.ENOENT), Then.EXPECT)
    assert run(directory, absolute, EXIT).code == 7
    refused = run(directory, relative, EXIT)
    assert (refused.code, refused.reports) == (128, [Report(1, errno.ENOENT)])


def test_steps_and_what_they_point_to_can_not_be_written(run, machine: str) -> None:
    assert run(Step("getcwd", (0x10000000, 4096))).reports == [Report(0, errno.EFAULT)]


# ------------------------------------------------------------------ as values


def test_what_two_steps_share_is_there_once() -> None:
    shared = vector([b"argument\0" * 100])
    tries = [Step("execve", (b"/%d\0" % number, shared, shared), Then.TRY) for number in range(9)]
    assert steps.encode(tries, "x86_64").count(b"argument\0" * 100) == 1


@pytest.mark.parametrize("name", MACHINES)
def test_both_machines_know_every_call_by_its_own_number(name: str) -> None:
    numbers = {"x86_64": (157, 59, 308), "aarch64": (167, 221, 268)}[name]
    content = steps.encode([Step("prctl"), Step("execve"), Step("setns")], name)
    assert tuple(int.from_bytes(content[at : at + 8], "little") for at in (0, 64, 128)) == numbers


def test_a_machine_without_code_is_refused_by_name() -> None:
    with pytest.raises(FailedPrecondition, match=r"'riscv64'.*x86_64, aarch64"):
        steps.program([EXIT], "riscv64")


def test_the_image_has_code_that_can_not_be_written_and_no_executable_stack() -> None:
    image = steps.program([EXIT], "x86_64")
    headers = [image[64 + 56 * number :][:56] for number in range(4)]
    rights = [int.from_bytes(header[4:8], "little") for header in headers]
    assert rights == [5, 4, 6, 6]  # read and execute; read; read and write; the stack
    assert len(image) % 8 == 0
    assert int.from_bytes(headers[0][16:24], "little") == elf.CODE_ADDRESS


def test_failures_are_told_in_words_also_by_a_process_that_has_not_written_the_steps() -> None:
    wanted = [
        Step("chdir", (b"/\0",), words=Words("the directory can't be entered")),
        Step("setns", (4, 1), words=Words("setns", {errno.ESRCH: "the container is ending"})),
        Step("", (), Then.EXPECT, Words("it is none", cause=False)),
        Step("umask", (0,)),
    ]
    said = ["the directory can't be entered: permission denied", "the container is ending", "it is none"]
    said.append("umask: operation not permitted")
    failures = [Report(0, errno.EACCES), Report(1, errno.ESRCH), Report(2, errno.EINVAL), Report(3, errno.EPERM)]
    assert [wanted[step].told(number) for step, number in failures] == said
    assert [steps.told(steps.words(wanted), failure) for failure in failures] == said


def test_text_with_a_nul_is_refused_and_bytes_survive() -> None:
    with pytest.raises(ValueError, match=re.escape("'a\\x00b'")):
        steps.text("a\0b")
    assert steps.text("caf\udce9") == b"caf\xe9\0"


def test_a_report_of_another_size_is_none() -> None:
    with pytest.raises(ValueError, match="8 bytes, not 3"):
        read_report(b"abc")


def test_a_program_in_memory_can_be_executed() -> None:
    fd = steps.in_memory(steps.program([EXIT]))
    try:
        pid = os.posix_spawn(f"/proc/self/fd/{fd}", ["x"], {})
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    finally:
        os.close(fd)
