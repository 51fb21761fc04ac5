"""What monitoring is told of pods and containers: whose a number is, and which are left out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cri_py import model
from cri_py.model import NotReady
from cri_py.pods import metrics_series as series
from cri_py.pods.metrics import Metrics, PodMetrics, SandboxMetrics, labels_of
from tests.unit.pods.stats_world import CREATED, ENDED, NOW, POD, RUNNING, World, running


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def read(world: World) -> list[SandboxMetrics]:
    ledger: Any = world.ledger
    metrics = PodMetrics(
        ledger=ledger, statistics=world.statistics, layers_directory=str(world.root), clock=lambda: NOW
    )
    return list(await metrics.sandboxes())


def numbers(metrics: Metrics) -> dict[tuple[str, ...], int]:
    return {(point.series.name, *point.values): point.number for point in metrics.points}


def test_a_container_is_named_as_the_kubelet_names_it() -> None:
    assert labels_of(POD, RUNNING) == ("app", "/pod/c1", "shop/app:1", RUNNING.id, "shop", "web")
    given = model.ImageSpec("sha256:1", user_specified_image="shop/app:latest")
    named = replace(RUNNING, config=replace(RUNNING.config, image=given))
    assert labels_of(POD, named)[2] == "shop/app:latest"


def test_a_pods_own_group_has_no_container() -> None:
    assert labels_of(POD) == ("", "/pod", "", "", "shop", "web")


async def test_a_container_has_its_groups_its_layers_and_its_own_times(world: World) -> None:
    (found,) = await read(world)
    first, created = found.containers
    told = numbers(first)
    assert told["container_cpu_usage_seconds_total", "total"] == 1_000_000_000
    assert told["container_memory_working_set_bytes",] == 4000
    assert told["container_spec_memory_limit_bytes",] == 8192
    assert told["container_start_time_seconds",] == NOW  # when it was started, and not when it was made
    assert told["container_last_seen",] == NOW
    assert any(name[0] == "container_fs_usage_bytes" for name in told)
    assert numbers(created)["container_start_time_seconds",] == CREATED.created_at


async def test_what_the_kernel_does_not_count_is_left_out(world: World) -> None:
    (found,) = await read(world)
    names = {point.series for point in found.containers[0].points}
    assert series.OF_COUNTERS["cpu_waiting_ns"] not in names
    assert series.HUGE_PAGES not in names
    assert series.READ_BYTES not in names  # these groups have no controller of block I/O


async def test_what_has_ended_is_not_told(world: World) -> None:
    (found,) = await read(world)
    assert [each.id for each in found.containers] == [RUNNING.id, CREATED.id]
    assert ENDED.id not in [each.id for each in found.containers]
    world.ledger.pods[POD.id] = replace(POD, state=NotReady(NOW, "stopped"))
    assert await read(world) == []


async def test_a_pods_network_is_told_as_cadvisor_tells_it(world: World) -> None:
    world.ledger.pods[POD.id] = replace(
        POD, state=model.Ready(1, os.getpid()), attachment=model.Attachment("/netns", ("10.0.0.2",))
    )
    (found,) = await read(world)
    networks = [each for each in found.own if each.labels[0] == "POD"]
    assert all(point.series in series.NETWORK.values() for each in networks for point in each.points)
    assert all(each.labels[3] == POD.id for each in networks)


async def test_kills_are_not_told_of_a_pod_whose_counter_misses_its_containers(world: World) -> None:
    for path in ("pod", "pod/c1"):
        (world.root / "memory" / path / "memory.oom_control").write_text("oom_kill 3\n")
    (found,) = await read(world)
    assert ("container_oom_events_total",) not in numbers(found.own[0])
    assert numbers(found.containers[0])["container_oom_events_total",] == 3


async def test_a_group_that_cannot_be_read_costs_its_own_numbers_only(world: World) -> None:
    (world.root / "memory/pod/c2/memory.failcnt").mkdir()  # reading a directory is EISDIR
    (found,) = await read(world)
    whole, broken = found.containers
    assert ("container_cpu_usage_seconds_total", "total") in numbers(whole)
    assert ("container_cpu_usage_seconds_total", "total") not in numbers(broken)
    assert numbers(broken)["container_last_seen",] == NOW
