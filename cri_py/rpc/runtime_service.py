"""RuntimeService: decode, one call down, encode. What a method lacks here answers UNIMPLEMENTED (see ``methods``)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.pods.metrics import SandboxMetrics
from cri_py.pods.stats import ContainerUsage, SandboxUsage
from cri_py.rpc import answers, convert, listing, pod_metrics
from cri_py.rpc.convert import object_id
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.stats import StatsEncoding

KUBELET_API_VERSION: Final = "0.1.0"
RUNTIME_NAME: Final = "cri_py"
RUNTIME_VERSION: Final = "0.1.0"
CRI_VERSION: Final = "v1"


class Sandboxes(Protocol):
    async def run(self, config: model.SandboxConfig, handler: str) -> model.SandboxId: ...
    async def stop(self, sandbox_id: str, /) -> None: ...
    async def remove(self, sandbox_id: str, /) -> None: ...
    def find(self, sandbox_id: str, /) -> model.Sandbox: ...
    def list(self, wanted: model.SandboxFilter, /) -> Sequence[model.Sandbox]: ...
    def verbose(self, sandbox: model.Sandbox) -> dict[str, str]: ...


class Containers(Protocol):
    async def create(
        self, sandbox_id: str, config: model.ContainerConfig, sandbox_config: model.SandboxConfig | None
    ) -> model.ContainerId: ...
    async def start(self, container_id: str, /) -> None: ...
    async def stop(self, container_id: str, timeout_s: int, /) -> None: ...
    async def remove(self, container_id: str, /) -> None: ...
    def find(self, container_id: str, /) -> model.Container: ...
    def list(self, wanted: model.ContainerFilter, /) -> Sequence[model.Container]: ...
    def verbose(self, container: model.Container) -> dict[str, str]: ...
    async def reopen_log(self, container_id: str, /) -> None: ...
    async def exec_sync(self, container_id: str, command: Sequence[str], timeout_s: int, /) -> model.ExecResult: ...


class Streams(Protocol):
    """Each returns the URL of a session."""

    def exec(self, container_id: str, command: Sequence[str], stdio: model.Stdio, /) -> str: ...
    def attach(self, container_id: str, stdio: model.Stdio, /) -> str: ...
    def port_forward(self, sandbox_id: str, ports: Sequence[int], /) -> str: ...


class Updates(Protocol):
    async def container(self, container_id: str, asked: model.LinuxResources, /) -> None: ...
    async def sandbox(
        self, sandbox_id: str, overhead: model.LinuxResources | None, resources: model.LinuxResources | None, /
    ) -> None: ...


class Statistics(Protocol):
    async def container(self, container_id: str, /) -> ContainerUsage: ...
    async def containers(self, wanted: model.ContainerFilter, /) -> Sequence[ContainerUsage]: ...
    async def sandbox(self, sandbox_id: str, /) -> SandboxUsage: ...
    async def sandboxes(self, wanted: model.SandboxFilter, /) -> Sequence[SandboxUsage]: ...


class PodMetrics(Protocol):
    async def sandboxes(self) -> Sequence[SandboxMetrics]: ...


class Events(Protocol):
    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[model.Event]]: ...


class Node(Protocol):
    def conditions(self) -> Sequence[model.Condition]: ...
    def verbose(self) -> dict[str, str]: ...
    def cgroup_driver(self) -> str: ...
    async def update_pod_cidr(self, cidr: str) -> None: ...
    def handlers(self) -> Sequence[str]: ...
    def features(self) -> model.Features: ...


class RuntimeService:
    """The methods bear the names of the RPCs."""

    def __init__(
        self,
        *,
        sandboxes: Sandboxes,
        containers: Containers,
        streams: Streams,
        updates: Updates,
        statistics: Statistics,
        metrics: PodMetrics,
        events: Events,
        node: Node,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._streams = streams
        self._updates = updates
        self._statistics = statistics
        self._metrics = metrics
        self._events = events
        self._node = node
        self._sandbox_listing = listing.sandboxes()
        self._container_listing = listing.containers()
        self._stats = StatsEncoding()

    # ---------------------------------------------------------------- node

    async def Version(self, _: pb.VersionRequest) -> pb.VersionResponse:
        return pb.VersionResponse(
            version=KUBELET_API_VERSION,
            runtime_name=RUNTIME_NAME,
            runtime_version=RUNTIME_VERSION,
            runtime_api_version=CRI_VERSION,
        )

    async def Status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        features = self._node.features()
        handler = answers.handler_features(features)
        return pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=[answers.condition(c) for c in self._node.conditions()]),
            info=self._node.verbose() if request.verbose else {},
            runtime_handlers=[pb.RuntimeHandler(name=name, features=handler) for name in self._node.handlers()],
            features=answers.runtime_features(features),
        )

    async def RuntimeConfig(self, _: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        return pb.RuntimeConfigResponse(linux=answers.runtime_configuration(self._node.cgroup_driver()))

    async def UpdateRuntimeConfig(self, request: pb.UpdateRuntimeConfigRequest) -> pb.UpdateRuntimeConfigResponse:
        if cidr := request.runtime_config.network_config.pod_cidr:
            await self._node.update_pod_cidr(cidr)
        return pb.UpdateRuntimeConfigResponse()

    # ----------------------------------------------------------- sandboxes

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        config = convert.sandbox_config(request.config)
        return pb.RunPodSandboxResponse(pod_sandbox_id=await self._sandboxes.run(config, request.runtime_handler))

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        await self._sandboxes.stop(object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
        await self._sandboxes.remove(object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        overhead = convert.resources(request.overhead) if request.HasField("overhead") else None
        resources = convert.resources(request.resources) if request.HasField("resources") else None
        await self._updates.sandbox(object_id(request.pod_sandbox_id, "pod_sandbox_id"), overhead, resources)
        return pb.UpdatePodSandboxResourcesResponse()

    async def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest) -> pb.PodSandboxStatusResponse:
        sandbox = self._sandboxes.find(object_id(request.pod_sandbox_id, "pod_sandbox_id"))
        containers = self._containers.list(model.ContainerFilter(sandbox_id=sandbox.id))
        return pb.PodSandboxStatusResponse(
            status=answers.sandbox_status(sandbox),
            info=self._sandboxes.verbose(sandbox) | {"config": answers.asked(pb.PodSandboxConfig, sandbox.config.raw)}
            if request.verbose
            else {},
            containers_statuses=[answers.container_status(c) for c in containers],
            timestamp=time.time_ns(),
        )

    async def ListPodSandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        return self._sandbox_listing.whole(self._sandboxes.list(convert.sandbox_filter(request.filter)))

    async def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest) -> AsyncIterator[bytes]:
        for part in self._sandbox_listing.parts(self._sandboxes.list(convert.sandbox_filter(request.filter))):
            yield part

    # ---------------------------------------------------------- containers

    async def CreateContainer(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        sandbox_id = object_id(request.pod_sandbox_id, "pod_sandbox_id")
        config = convert.container_config(request.config)
        given = convert.sandbox_config(request.sandbox_config) if request.HasField("sandbox_config") else None
        return pb.CreateContainerResponse(container_id=await self._containers.create(sandbox_id, config, given))

    async def StartContainer(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        await self._containers.start(object_id(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        container_id = object_id(request.container_id, "container_id")
        await self._containers.stop(container_id, _seconds(request.timeout))
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
        await self._containers.remove(object_id(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    async def ContainerStatus(self, request: pb.ContainerStatusRequest) -> pb.ContainerStatusResponse:
        container = self._containers.find(object_id(request.container_id, "container_id"))
        return pb.ContainerStatusResponse(
            status=answers.container_status(container),
            info=self._containers.verbose(container)
            | {"config": answers.asked(pb.ContainerConfig, container.config.raw)}
            if request.verbose
            else {},
        )

    async def ListContainers(self, request: pb.ListContainersRequest) -> bytes:
        return self._container_listing.whole(self._containers.list(convert.container_filter(request.filter)))

    async def StreamContainers(self, request: pb.StreamContainersRequest) -> AsyncIterator[bytes]:
        for part in self._container_listing.parts(self._containers.list(convert.container_filter(request.filter))):
            yield part

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        container_id = object_id(request.container_id, "container_id")
        await self._updates.container(container_id, convert.resources(request.linux))
        return pb.UpdateContainerResourcesResponse()

    async def ReopenContainerLog(self, request: pb.ReopenContainerLogRequest) -> pb.ReopenContainerLogResponse:
        await self._containers.reopen_log(object_id(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        container_id = object_id(request.container_id, "container_id")
        if not request.cmd:
            raise InvalidArgument(f"cmd is empty: ExecSync in {container_id} has nothing to run")
        result = await self._containers.exec_sync(container_id, tuple(request.cmd), _seconds(request.timeout))
        return pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.code)

    async def Exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        container_id = object_id(request.container_id, "container_id")
        return pb.ExecResponse(url=self._streams.exec(container_id, tuple(request.cmd), convert.stdio(request)))

    async def Attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        container_id = object_id(request.container_id, "container_id")
        return pb.AttachResponse(url=self._streams.attach(container_id, convert.stdio(request)))

    async def PortForward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        sandbox_id = object_id(request.pod_sandbox_id, "pod_sandbox_id")
        return pb.PortForwardResponse(url=self._streams.port_forward(sandbox_id, tuple(request.port)))

    # ---------------------------------------------------------- statistics

    async def ContainerStats(self, request: pb.ContainerStatsRequest) -> bytes:
        container_id = object_id(request.container_id, "container_id")
        return self._stats.containers([await self._statistics.container(container_id)])

    async def ListContainerStats(self, request: pb.ListContainerStatsRequest) -> bytes:
        return self._stats.containers(await self._statistics.containers(convert.container_stats_filter(request.filter)))

    async def StreamContainerStats(self, request: pb.StreamContainerStatsRequest) -> AsyncIterator[bytes]:
        found = await self._statistics.containers(convert.container_stats_filter(request.filter))
        for part in self._stats.container_parts(found):
            yield part

    async def PodSandboxStats(self, request: pb.PodSandboxStatsRequest) -> bytes:
        sandbox_id = object_id(request.pod_sandbox_id, "pod_sandbox_id")
        return self._stats.sandboxes([await self._statistics.sandbox(sandbox_id)])

    async def ListPodSandboxStats(self, request: pb.ListPodSandboxStatsRequest) -> bytes:
        return self._stats.sandboxes(await self._statistics.sandboxes(convert.sandbox_stats_filter(request.filter)))

    async def StreamPodSandboxStats(self, request: pb.StreamPodSandboxStatsRequest) -> AsyncIterator[bytes]:
        found = await self._statistics.sandboxes(convert.sandbox_stats_filter(request.filter))
        for part in self._stats.sandbox_parts(found):
            yield part

    async def ListMetricDescriptors(self, _: pb.ListMetricDescriptorsRequest) -> pb.ListMetricDescriptorsResponse:
        return pod_metrics.descriptors()

    async def ListPodSandboxMetrics(self, _: pb.ListPodSandboxMetricsRequest) -> bytes:
        return pod_metrics.whole(await self._metrics.sandboxes())

    async def StreamPodSandboxMetrics(self, _: pb.StreamPodSandboxMetricsRequest) -> AsyncIterator[bytes]:
        for part in pod_metrics.parts(await self._metrics.sandboxes()):
            yield part

    # -------------------------------------------------------------- events

    async def GetContainerEvents(self, _: pb.GetEventsRequest) -> AsyncIterator[pb.ContainerEventResponse]:
        async with self._events.subscribe() as events:
            async for event in events:
                yield answers.event(event)


def _seconds(timeout: int) -> int:
    if timeout < 0:
        raise InvalidArgument(f"timeout is {timeout} s; it must not be negative")
    return timeout
