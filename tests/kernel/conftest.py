"""Groups of the test's own, and processes to put into them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cri_py.cgroups import Cgroups
from cri_py.cgroups.v2 import V2
from cri_py.errors import KernelError
from tests.kernel.node import NODE, UNIFIED, VERSIONS, Act, MakeMember, own_name


@pytest.fixture(params=VERSIONS)
def groups(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    """The cgroups of the node, or v2 below a group of its own; whatever a test left behind is ended and removed."""
    if request.param == "v1" or isinstance(NODE, V2):
        yield NODE
        return
    own = f"{UNIFIED}/{own_name()}"
    os.mkdir(own)
    yield V2(own)
    os.rmdir(own)


@pytest.fixture
def top(groups: Cgroups) -> Iterator[str]:
    path = f"/{own_name()}"
    groups.create(path, {}, pod=True)
    yield path
    with suppress(KernelError):  # a missing group
        groups.thaw(path)
    groups.kill(path, 10)
    groups.remove(path)


@pytest.fixture
def member() -> Iterator[MakeMember]:
    """Forks a child that enters by ``enter``, runs ``act`` and then waits to be killed; returns its pid."""
    pids: list[int] = []

    def fork(enter: Act, act: Act = signal.pause) -> int:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                enter()
                os.write(writing, b"1")
                act()
            finally:
                os._exit(3)
        pids.append(pid)
        os.close(writing)
        try:
            assert os.read(reading, 1) == b"1", "the child could not enter"
        finally:
            os.close(reading)
        return pid

    yield fork
    for pid in pids:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
