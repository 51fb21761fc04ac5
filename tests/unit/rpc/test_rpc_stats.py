"""Statistics as a client gets them: every number in its field, and left out where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cri_py import model
from cri_py.cgroups.readings import Memory, Pressure, Stall, Swap, Usage
from cri_py.pods.stats import ContainerUsage, GroupUsage, SandboxUsage
from cri_py.pods.stats_network import Interface
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.listing import BATCH
from cri_py.rpc.stats import StatsEncoding

Make = Callable[..., Any]
AT = model.Nanos(77)
PSI = Pressure(Stall(5, 1.0, 2.0, 3.0), Stall(4, 0.5, 0.25, 0.0))
MEMORY = Memory(usage=1000, working_set=600, limit=2000, rss=300, faults=40, major_faults=2)
USAGE = Usage(123, MEMORY, Swap(50, 70), PSI, PSI, PSI)
LAYER = model.FilesystemUsage("/var/lib/cri_py/containers", 4096, 3, model.Nanos(66))
PSI_MESSAGE = pb.PsiStats(
    Some=pb.PsiData(Total=5, Avg10=1.0, Avg60=2.0, Avg300=3.0), Full=pb.PsiData(Total=4, Avg10=0.5, Avg60=0.25)
)
CPU = pb.CpuUsage(timestamp=77, usage_core_nano_seconds={"value": 123}, usage_nano_cores={"value": 9}, psi=PSI_MESSAGE)
MEMORY_MESSAGE = pb.MemoryUsage(
    timestamp=77,
    working_set_bytes={"value": 600},
    available_bytes={"value": 1400},
    usage_bytes={"value": 1000},
    rss_bytes={"value": 300},
    page_faults={"value": 40},
    major_page_faults={"value": 2},
    psi=PSI_MESSAGE,
)
NUMBERS = pb.ContainerStats(
    cpu=CPU,
    memory=MEMORY_MESSAGE,
    writable_layer=pb.FilesystemUsage(
        timestamp=66,
        fs_id=pb.FilesystemIdentifier(mountpoint="/var/lib/cri_py/containers"),
        used_bytes={"value": 4096},
        inodes_used={"value": 3},
    ),
    swap=pb.SwapUsage(timestamp=77, swap_available_bytes={"value": 20}, swap_usage_bytes={"value": 50}),
    io=pb.IoUsage(timestamp=77, psi=PSI_MESSAGE),
)


def of_container(container: model.Container, **changes: Any) -> ContainerUsage:
    made = {"group": GroupUsage(AT, USAGE, 9), "layer": LAYER, "swap_free": 1 << 30, **changes}
    return ContainerUsage(container, **made)


def expected(container: model.Container) -> pb.ContainerStats:
    meta = container.config.metadata
    attributes = pb.ContainerAttributes(
        id=container.id,
        metadata=pb.ContainerMetadata(name=meta.name, attempt=meta.attempt),
        labels=container.config.labels,
        annotations=container.config.annotations,
    )
    stats = pb.ContainerStats(attributes=attributes)
    stats.MergeFrom(NUMBERS)
    return stats


def decoded(usage: ContainerUsage) -> pb.ContainerStats:
    return pb.ContainerStatsResponse.FromString(StatsEncoding().containers([usage])).stats


async def test_a_containers_numbers_come_in_their_fields(world: Any, new_container: Make) -> None:
    container = new_container(1)
    world.statistics.of_containers[container.id] = of_container(container)
    answer = await world.runtime.ContainerStats(pb.ContainerStatsRequest(container_id=container.id))
    assert answer.stats == expected(container)


async def test_the_statistics_of_a_missing_container_or_sandbox_are_not_found(world: Any) -> None:
    for call in (
        world.runtime.ContainerStats(pb.ContainerStatsRequest(container_id="x")),
        world.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id="x")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "field"), [("ContainerStats", "container_id"), ("PodSandboxStats", "pod_sandbox_id")]
)
async def test_an_empty_id_is_invalid(world: Any, method: str, field: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(world.runtime, method)(getattr(pb, f"{method}Request")())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


async def test_a_list_and_its_stream_tell_the_same_of_what_was_asked_for(world: Any, new_container: Make) -> None:
    containers = [new_container(number) for number in range(BATCH + 2)]
    world.statistics.of_containers = {each.id: of_container(each) for each in containers}
    wanted = pb.ContainerStatsFilter(id="0", pod_sandbox_id="f", label_selector={"app": "web"})
    listed = await world.runtime.ListContainerStats(pb.ListContainerStatsRequest(filter=wanted))
    assert list(listed.stats) == [expected(each) for each in containers]
    request = pb.StreamContainerStatsRequest(filter=wanted)
    parts = [list(part.container_stats) async for part in world.runtime.StreamContainerStats(request)]
    assert [len(part) for part in parts] == [BATCH, 2]
    assert [each for part in parts for each in part] == list(listed.stats)
    assert world.statistics.asked == [model.ContainerFilter("0", None, "f", {"app": "web"})] * 2


async def test_a_pods_numbers_come_with_its_network_and_its_containers(
    world: Any, new_sandbox: Make, new_container: Make
) -> None:
    sandbox, container = new_sandbox(1), new_container(2)
    interfaces = (Interface("net1", 1, 0, 2, 0, 3, 0, 4, 0), Interface("eth0", 5, 0, 6, 0, 7, 0, 8, 0))
    usage = SandboxUsage(sandbox, GroupUsage(AT, USAGE, 9, 6), interfaces, (of_container(container),), 0)
    world.statistics.of_sandboxes[sandbox.id] = usage
    wanted = pb.PodSandboxStatsFilter(id="0", label_selector={"a": "b"})
    (stats,) = (await world.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest(filter=wanted))).stats
    assert world.statistics.asked == [model.SandboxFilter("0", None, {"a": "b"})]
    assert (stats.attributes.id, stats.attributes.metadata.name) == (sandbox.id, "pod-1")
    assert (stats.attributes.labels, stats.attributes.annotations) == ({"app": "app-1"}, {"note": "kept"})
    eth0, net1 = (
        pb.NetworkInterfaceUsage(
            name=name, rx_bytes={"value": a}, rx_errors={"value": b}, tx_bytes={"value": c}, tx_errors={"value": d}
        )
        for name, a, b, c, d in (("eth0", 5, 6, 7, 8), ("net1", 1, 2, 3, 4))
    )
    assert stats.linux == pb.LinuxPodSandboxStats(
        cpu=CPU,
        memory=MEMORY_MESSAGE,
        network=pb.NetworkUsage(timestamp=77, default_interface=eth0, interfaces=[net1]),
        process=pb.ProcessUsage(timestamp=77, process_count={"value": 6}),
        containers=[expected(container)],
        io=pb.IoUsage(timestamp=77, psi=PSI_MESSAGE),
    )
    (part,) = [part async for part in world.runtime.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest())]
    assert list(part.pod_sandbox_stats) == [stats]
    single = await world.runtime.PodSandboxStats(pb.PodSandboxStatsRequest(pod_sandbox_id=sandbox.id))
    assert single.stats == stats


async def test_an_empty_stream_has_no_message(world: Any) -> None:
    """KEP-5825."""
    assert [part async for part in world.runtime.StreamContainerStats(pb.StreamContainerStatsRequest())] == []
    assert [part async for part in world.runtime.StreamPodSandboxStats(pb.StreamPodSandboxStatsRequest())] == []


def test_what_the_kernel_does_not_count_is_left_out(new_container: Make) -> None:
    stats = decoded(of_container(new_container(1), group=GroupUsage(AT, Usage(cpu_ns=5), 0), layer=None))
    assert [field.name for field, _ in stats.ListFields()] == ["attributes", "cpu"]
    assert stats.cpu.HasField("usage_nano_cores")
    assert not stats.cpu.HasField("psi")


def test_of_a_container_without_a_group_its_name_and_its_layer_are_told(new_container: Make) -> None:
    stats = decoded(of_container(new_container(1), group=None))
    assert [field.name for field, _ in stats.ListFields()] == ["attributes", "writable_layer"]


def test_without_a_limit_no_available_memory_is_told_and_swap_is_what_the_node_has(new_container: Make) -> None:
    usage = Usage(1, MEMORY._replace(limit=None), Swap(50, None))
    stats = decoded(of_container(new_container(1), group=GroupUsage(AT, usage, 0), swap_free=333))
    assert not stats.memory.HasField("available_bytes")
    assert stats.swap.swap_available_bytes.value == 333


def test_available_swap_is_never_more_than_the_node_has(new_container: Make) -> None:
    assert decoded(of_container(new_container(1), swap_free=7)).swap.swap_available_bytes.value == 7


def test_the_host_network_is_not_told_as_the_pods(new_sandbox: Make) -> None:
    usage = SandboxUsage(new_sandbox(1, attachment=None), GroupUsage(AT, USAGE, 9, 6), None, (), 0)
    stats = pb.PodSandboxStatsResponse.FromString(StatsEncoding().sandboxes([usage])).stats
    assert not stats.linux.HasField("network")
