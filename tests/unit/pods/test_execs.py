"""What a further process of a container is asked for with."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
from typing import Any

import pytest

from cri_py import model
from cri_py.cgroups.v2 import V2
from cri_py.config import RuntimeConfig
from cri_py.errors import DeadlineExceeded, Unavailable
from cri_py.pods.execs import Execs
from tests.leaks import open_descriptors
from tests.unit.pods import builders


def test_no_daemon_gives_an_exec_the_name_of_another_daemon_s() -> None:
    """Its cgroup is called so, and sessions outlive the daemon; in a container each daemon may have pid 1."""
    names = set()
    for _ in range(2):
        execs = Execs(RuntimeConfig(), V2("/g"), executing)
        names |= {execs.prepare(made(), ["true"]).name for _ in range(2)}
    assert len(names) == 4


class SlowMonitor:
    """Its commands run until they are killed."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Event] = {}

    async def request(self, op: str, *, name: str, **_: Any) -> dict[str, Any]:
        if op == "exec":
            self.running[name] = asyncio.Event()
            await self.running[name].wait()
        else:
            self.running.pop(name).set()
        return {"code": 137}


@pytest.mark.parametrize("turns", range(4))
async def test_whoever_leaves_at_any_moment_leaves_no_command_behind(turns: int) -> None:
    monitor, execs = SlowMonitor(), Execs(RuntimeConfig(), V2("/g"), executing)
    asked = asyncio.create_task(execs.run(monitor, execs.prepare(made(), ["true"]), 0))  # type: ignore[arg-type]
    for _ in range(turns):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert not monitor.running


class MonitorThatHangs:
    """It answers nothing, until it dies."""

    def __init__(self) -> None:
        self.dead = asyncio.Event()

    async def request(self, op: str, **_: Any) -> dict[str, Any]:
        if op == "exec":
            await self.dead.wait()
            raise Unavailable("the pod's monitor is gone")
        raise DeadlineExceeded(f"the pod's monitor did not answer {op}")


async def test_a_monitor_that_dies_after_it_hung_is_told_to_nobody_twice(caplog: pytest.LogCaptureFixture) -> None:
    monitor, execs = MonitorThatHangs(), Execs(RuntimeConfig(), V2("/g"), executing)
    with pytest.raises(DeadlineExceeded, match="kill_exec"):
        async with asyncio.timeout(0):
            await execs.run(monitor, execs.prepare(made(), ["true"]), 0)  # type: ignore[arg-type]
    monitor.dead.set()
    await asyncio.sleep(0)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_without_descriptors_a_command_is_refused_and_none_is_lost() -> None:
    execs = Execs(RuntimeConfig(), V2("/g"), executing)
    prepared = execs.prepare(made(), ["true"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for free in range(6):  # it opens six
        before = open_descriptors()
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + free, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await execs.run(SlowMonitor(), prepared, 1)  # type: ignore[arg-type]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert open_descriptors() == before


def made() -> model.Container:
    return model.Container(
        id=model.ContainerId("c" * 64),
        sandbox_id=model.SandboxId("a" * 64),
        config=builders.container(),
        image_id=model.ImageId("sha256:" + "0" * 64),
        image_ref="",
        created_at=model.Nanos(0),
        state=model.Running(model.Nanos(0), 1, 1),
        log_path="",
        cgroup="/x",
        user=model.User(0, 0, ()),
    )


def executing(_: model.Container) -> tuple[dict[str, Any], None]:
    return {"process": {"args": ["sleep"], "env": [], "cwd": "/"}}, None
