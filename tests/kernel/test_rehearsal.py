"""What the spawner plays through before it forks leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from cri_py.monitor import rehearsal
from tests.leaks import open_descriptors

pytestmark = pytest.mark.root


def children() -> list[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read().split()


def in_child(body: object) -> int:
    """Run ``body`` in a fork of one thread, as the spawner is; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
            assert callable(body)
            body()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_rehearsal_leaves_no_descriptor_and_no_process() -> None:
    def body() -> None:
        rehearsal.rehearse()  # imports and caches, once
        before = open_descriptors()
        rehearsal.rehearse()
        assert open_descriptors() == before
        assert children() == []

    assert in_child(body) == 0


_PAGES_OF_CODE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
from cri_py.monitor import packing, rehearsal

def pages():
    return len({id(code) >> 12 for code in packing.code_that_runs(rehearsal._play)})

before = pages()
packing.pack(packing.code_that_runs(rehearsal._play))
print(before, pages())
"""


def test_packed_code_lies_on_fewer_pages() -> None:
    """In a fresh interpreter, as the spawner is: some 100 pages become some 40."""
    said = subprocess.run([sys.executable, "-c", _PAGES_OF_CODE], check=True, capture_output=True, text=True).stdout
    before, after = map(int, said.split())
    assert after < before * 0.6


def test_what_settles_the_memory_fills_holes_and_no_more() -> None:
    def body() -> None:
        filling = rehearsal.settle()
        assert 0 < len(filling) < 100_000
        starts = [id(each) % (16 << 10) for each in filling]
        assert starts.count(48) >= 25  # of nearly every size one stands at the beginning of a pool

    assert in_child(body) == 0
