"""Programs run without a fork."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from cri_py.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from cri_py.network import program
from cri_py.network.program import Ended, run
from tests.leaks import open_descriptors

HANGING = ["/bin/sh", "-c", "tail -f /dev/null & wait"]


async def test_a_program_gets_its_input_and_gives_output_and_status() -> None:
    ended = await run(["/bin/sh", "-c", "cat; echo oops >&2; exit 3"], b"text\n", deadline_s=60)
    assert ended == Ended(3, b"text\n", b"oops\n")
    assert ended.told == "oops\ntext"


async def test_an_input_longer_than_a_pipe_is_read_whole() -> None:
    ended = await run(["/usr/bin/wc", "-c"], bytes(300_000), deadline_s=60)
    assert ended.output.strip() == b"300000"


async def test_a_program_has_the_environment_that_it_is_given_and_no_other() -> None:
    ended = await run(["/usr/bin/env"], environment={"A": "b"}, deadline_s=60)
    assert ended.output == b"A=b\n"


async def test_a_program_killed_by_a_signal_has_a_negative_code() -> None:
    assert (await run(["/bin/sh", "-c", "kill -9 $$"], deadline_s=60)).code == -9


async def test_what_outlives_a_program_with_its_output_open_is_not_waited_for() -> None:
    ended = await run(["/bin/sh", "-c", "sleep 600 & echo $!"], deadline_s=60)
    os.kill(int(ended.output), 9)


async def test_a_program_that_floods_is_killed() -> None:
    others = _children()
    with pytest.raises(ResourceExhausted, match="/bin/sh wrote more than 1000 bytes and was killed"):
        await run(["/bin/sh", "-c", "exec cat /dev/zero"], deadline_s=60, limit=1000)
    assert _children() == others


async def test_a_program_that_hangs_is_killed_with_all_that_it_started() -> None:
    before, others = sorted(open_descriptors()), _children()
    with pytest.raises(DeadlineExceeded, match=r"/bin/sh did not end within 0\.2 s"):
        await run(HANGING, environment={"PATH": os.environ["PATH"], "MARK": str(os.getpid())}, deadline_s=0.2)
    assert sorted(open_descriptors()) == before
    assert _children() == others
    assert not _marked(f"MARK={os.getpid()}".encode())


async def test_a_cancelled_run_leaves_no_program() -> None:
    others = _children()  # another test's daemon may be one
    task = asyncio.create_task(run(HANGING, deadline_s=60))
    await asyncio.sleep(0)  # it runs up to its first wait, so the program is there
    assert len(_children()) == len(others) + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _children() == others


async def test_a_program_that_can_not_be_executed_is_unavailable(tmp_path: Path) -> None:
    before = sorted(open_descriptors())
    with pytest.raises(Unavailable, match="can't be executed: No such file"):
        await run([str(tmp_path / "nft")], deadline_s=1)
    assert sorted(open_descriptors()) == before


def _marked(word: bytes) -> list[str]:
    """Living processes with a word in their environment."""
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and word in _environment(pid)]


def _environment(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has gone
        return b""


def _children() -> list[str]:
    return [pid for task in os.listdir("/proc/self/task") for pid in _children_of(task)]


def _children_of(task: str) -> list[str]:
    try:
        return Path(f"/proc/self/task/{task}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


async def test_one_that_the_kernel_does_not_let_die_is_reaped_later_and_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here it is simply not killed."""
    monkeypatch.setattr(program, "_DYING_S", 0.02)
    monkeypatch.setattr(os, "killpg", lambda pid, _: held.append(pid))
    held: list[int] = []
    with pytest.raises(DeadlineExceeded):
        await run(["/bin/sleep", "1000"], deadline_s=0.05)
    monkeypatch.undo()
    os.kill(held[0], signal.SIGKILL)
    waiting = next(thread for thread in threading.enumerate() if thread.name == f"reap-{held[0]}")
    waiting.join(60)
    with pytest.raises(ProcessLookupError):
        os.kill(held[0], 0)
