"""What a container wrote: counted by a thread that is never in the way, whatever lies in the tree."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cri_py import model
from cri_py.pods.places import Places
from cri_py.pods.stats_layers import Layers, entries
from tests.leaks import open_descriptors

ID = model.ContainerId("c" * 64)
PERIOD_S = 10.0


def container(state: model.ContainerState) -> Any:
    config = model.ContainerConfig(metadata=model.ContainerMetadata("main"), image=model.ImageSpec("busybox"))
    return model.Container(ID, model.SandboxId("p"), config, model.ImageId("i"), "", model.Nanos(0), state, "", "/c")


RUNNING = container(model.Running(1, 1, model.Nanos(0)))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> model.Nanos:
        return model.Nanos(self.now)


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    directory = Path(Places(str(tmp_path), "").writable(ID)) / "upper"
    directory.mkdir(parents=True)
    return directory


@asynccontextmanager
async def counting(root: Path, clock: Clock) -> AsyncIterator[Layers]:
    layers = Layers(Places(str(root), ""), clock, PERIOD_S)
    task = asyncio.create_task(layers.run())
    yield layers
    layers.close()
    task.cancel()
    await asyncio.wait([task])


async def until_counted(layers: Layers, of: Any = RUNNING, since: int = 0) -> model.FilesystemUsage:
    deadline = time.monotonic() + 60
    while True:
        found = layers.of(of)
        if found is not None and found.at >= since:
            return found
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_bytes_and_inodes_are_those_of_the_disk(tmp_path: Path, upper: Path) -> None:
    (upper / "a").write_bytes(b"x" * 100_000)
    os.link(upper / "a", upper / "the-same")
    (upper / "d").mkdir()
    (upper / "d/link").symlink_to("/")
    blocks = sum(os.lstat(path).st_blocks for path in (upper, upper / "a", upper / "d", upper / "d/link"))
    async with counting(tmp_path, Clock()) as layers:
        assert await until_counted(layers) == model.FilesystemUsage(
            f"{tmp_path}/containers", blocks * 512, 4, model.Nanos(1_000_000_000)
        )


async def test_a_call_gets_the_last_count_and_has_the_next_one_made_when_it_is_due(tmp_path: Path, upper: Path) -> None:
    clock = Clock()
    async with counting(tmp_path, clock) as layers:
        first = await until_counted(layers)
        (upper / "new").write_text("x")
        clock.now += int(PERIOD_S * 1e9) - 1
        assert layers.of(RUNNING) == first
        await asyncio.sleep(0.02)
        assert layers.of(RUNNING) == first
        clock.now += 1
        assert layers.of(RUNNING) == first
        assert (await until_counted(layers, since=clock.now)).inodes_used == first.inodes_used + 1


async def test_an_ended_containers_layer_is_counted_once_more_and_then_known(tmp_path: Path, upper: Path) -> None:
    clock = Clock()
    ended = container(model.Exited(0, model.Nanos(0), model.Nanos(clock.now + 5), "Completed"))
    async with counting(tmp_path, clock) as layers:
        await until_counted(layers)
        (upper / "last-words").write_text("x")
        clock.now += 6
        assert (await until_counted(layers, ended, clock.now)).inodes_used == 2
        (upper / "ours").write_text("not the container's")
        clock.now += int(PERIOD_S * 1e10)
        layers.of(ended)
        await asyncio.sleep(0.02)
        assert layers.of(ended).inodes_used == 2  # type: ignore[union-attr]


async def test_a_layer_that_is_gone_has_no_count_and_holds_nobody_up(tmp_path: Path, upper: Path) -> None:
    other = model.ContainerId("d" * 64)
    async with counting(tmp_path, Clock()) as layers:
        layers.want(other)
        await until_counted(layers)
        layers.forget(ID)
        assert layers.of(RUNNING) is None


async def test_the_first_call_waits_for_the_first_count(tmp_path: Path, upper: Path) -> None:
    async with counting(tmp_path, Clock()) as layers:
        await layers.first([RUNNING])
        assert layers.of(RUNNING) is not None


async def test_a_first_call_waits_no_longer_than_a_call_may_take(tmp_path: Path, upper: Path) -> None:
    layers = Layers(Places(str(tmp_path), ""), Clock(), PERIOD_S)  # nothing counts
    async with asyncio.timeout(60):
        await layers.first([RUNNING])
    assert layers.of(RUNNING) is None
    layers.close()


async def test_no_call_waits_a_second_time_for_a_count_that_takes_long(tmp_path: Path, upper: Path) -> None:
    layers = Layers(Places(str(tmp_path), ""), Clock(), PERIOD_S)  # nothing counts
    await layers.first([RUNNING])
    begun = asyncio.get_running_loop().time()
    for _ in range(20):
        await layers.first([RUNNING])
    assert asyncio.get_running_loop().time() - begun < 0.5
    layers.close()


async def test_where_nobody_asks_nothing_is_counted(
    tmp_path: Path, upper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []

    def measure(_: Layers, path: str) -> tuple[int, int]:
        walked.append(path)
        return 1, 1

    monkeypatch.setattr(Layers, "_measure", measure)
    async with counting(tmp_path, Clock()) as layers:
        await asyncio.sleep(0.05)
        assert not walked
        await layers.first([RUNNING])
    assert walked == [str(upper)]


def test_a_tree_deeper_than_any_path_can_name_is_walked_with_one_descriptor(tmp_path: Path) -> None:
    depth = 3000
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=at)
        below = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    before = len(open_descriptors())
    seen = most = 0
    for _ in entries(str(tmp_path)):
        seen += 1
        if seen % 500 == 0:
            most = max(most, len(open_descriptors()))
    assert seen == depth + 1
    assert most <= before + 4
    _remove_deep(tmp_path)


def _remove_deep(top: Path) -> None:
    """pytest's own removal follows paths."""
    while (top / "deeper").exists():
        (top / "deeper").rename(top / "gone")
        if (top / "gone/deeper").exists():
            (top / "gone/deeper").rename(top / "deeper")
        (top / "gone").rmdir()


def test_a_walk_does_not_follow_a_directory_that_is_moved_away(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "a/b").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("x")
    walk = entries(str(inside))
    seen = [next(walk) for _ in range(3)]  # in, a and b; the walk is in a, and goes into b next
    (inside / "a/b").rename(outside / "b")
    (inside / "a/b").symlink_to(outside)
    assert len(seen) + len(list(walk)) == 3
