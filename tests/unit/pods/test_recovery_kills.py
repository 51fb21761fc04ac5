"""What recovery ends when it meets monitors that nobody can speak with."""

from __future__ import annotations

import os
import signal
import subprocess

from cri_py.model import SandboxId
from cri_py.pods.recovery import kill_monitor

SANDBOX = SandboxId("a" * 64)


def test_a_monitor_is_killed() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        kill_monitor(SANDBOX, process.pid, "it hangs")
        assert process.wait(60) == -signal.SIGKILL


def test_a_monitor_that_has_ended_meanwhile_is_no_failure() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    kill_monitor(SANDBOX, pid, "it hangs")
