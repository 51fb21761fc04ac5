"""Who waits for a holder, and how it is told what went wrong. No root needed."""

from __future__ import annotations

import os
import signal

import pytest

from cri_py.kernel import steps
from cri_py.kernel.constants import CLONE_PARENT
from cri_py.kernel.steps import REPORT_FD, SCRATCH, Step, Then
from cri_py.runtime import holder
from cri_py.runtime.child import ChildError
from cri_py.runtime.exec import StepFailed

NO_USERS = holder.Users(b"", b"", b"")
BORN = (
    Step("fcntl", (REPORT_FD, 2, 1)),
    Step("clone3", ((CLONE_PARENT, *[0] * 10), 88), Then.FORK),
    Step("read", (REPORT_FD, SCRATCH, 1)),
)


def spawn(*then: Step) -> int:
    program = steps.in_memory(steps.program((*BORN, *then)))
    try:
        return holder.spawn(program, program, NO_USERS)
    finally:
        os.close(program)


def ended() -> int:
    """The exit code of the one child there is, negative for a signal."""
    return os.waitstatus_to_exitcode(os.wait()[1])


def test_it_is_there_when_it_executes_its_program() -> None:
    argv, envp = steps.vector([b"true\0"]), steps.vector([])
    pid = spawn(Step("execve", (b"/bin/true\0", argv, envp)))
    assert os.waitpid(pid, 0) == (pid, 0)


def test_a_step_that_fails_is_told_by_its_number_and_the_process_ended() -> None:
    with pytest.raises(StepFailed) as failed:
        spawn(Step("chdir", (b"/nowhere\0",)))
    assert failed.value.report == (len(BORN), 2)
    assert ended() in (128, -signal.SIGKILL)


def test_one_that_never_executes_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holder, "_EXECVE_S", 0.05)
    with pytest.raises(ChildError, match="did not execute"):
        spawn(Step("read", (REPORT_FD, SCRATCH, 1)))
    assert ended() == -signal.SIGKILL
