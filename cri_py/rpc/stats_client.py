"""The client's end of CRI's statistics, for ``cri-py top``: two calls, joined to a line for each pod and container."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from cri_py.rpc.daemon_client import DaemonClient, as_error
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.gen import api_pb2_grpc as services

_CALL_S: Final = 10.0
_READ: Final = "container_fs_reads_bytes_total"
_WRITTEN: Final = "container_fs_writes_bytes_total"
_THREADS: Final = "container_threads"
_BASE_LABELS: Final = 6  # before those of the series' own: the device


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a pod (``container`` is "") or a container. Counters are totals; None where nobody counts.

    ``cores`` and the pressures (percent of the last 10 s in which some process waited) are of late by themselves.
    """

    id: str
    namespace: str
    pod: str
    container: str
    at: int  # Unix time in ns
    cores: float | None = None
    memory: int | None = None
    available: int | None = None  # memory below the limit; None without one
    read: int | None = None
    written: int | None = None
    received: int | None = None
    transmitted: int | None = None
    threads: int | None = None
    pressure: Mapping[str, float] = field(default_factory=dict)  # cpu, memory, io


class StatsClient(DaemonClient):
    """What the daemon refuses is raised as the same CriError."""

    def __init__(self, listen: str) -> None:
        super().__init__(listen)
        self._stub = services.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def look(self) -> list[Usage]:
        """Each ready pod, followed by its containers that have a cgroup."""
        pods = self._call("ListPodSandboxStats", pb.ListPodSandboxStatsRequest()).stats
        metrics = self._call("ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest()).pod_metrics
        counted = {each.pod_sandbox_id: _summed(each.metrics) for each in metrics}
        counted |= {each.container_id: _summed(each.metrics) for pod in metrics for each in pod.container_metrics}
        found = []
        for pod in pods:
            found.append(_of_pod(pod, counted.get(pod.attributes.id, {})))
            found += [
                _of_container(each, pod.attributes.metadata, counted[each.attributes.id])
                for each in pod.linux.containers
                if each.attributes.id in counted
            ]
        return found

    def _call(self, method: str, request: Message) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise as_error(error) from None


def _summed(metrics: Iterable[Any]) -> dict[str, int]:
    """Numbers by name, those of several devices added up."""
    found: dict[str, int] = {}
    for each in metrics:
        if each.name in (_READ, _WRITTEN) or len(each.label_values) == _BASE_LABELS:
            found[each.name] = found.get(each.name, 0) + each.value.value
    return found


def _of_pod(stats: Any, counted: Mapping[str, int]) -> Usage:
    linux, metadata = stats.linux, stats.attributes.metadata
    interfaces = [linux.network.default_interface, *linux.network.interfaces] if linux.HasField("network") else []
    return Usage(
        id=stats.attributes.id,
        namespace=metadata.namespace,
        pod=metadata.name,
        container="",
        received=sum(each.rx_bytes.value for each in interfaces) if interfaces else None,
        transmitted=sum(each.tx_bytes.value for each in interfaces) if interfaces else None,
        **_numbers(linux, counted),
    )


def _of_container(stats: Any, pod: Any, counted: Mapping[str, int]) -> Usage:
    attributes = stats.attributes
    return Usage(attributes.id, pod.namespace, pod.name, attributes.metadata.name, **_numbers(stats, counted))


def _numbers(stats: Any, counted: Mapping[str, int]) -> dict[str, Any]:
    cpu, memory = stats.cpu, stats.memory
    parts = {"cpu": cpu, "memory": memory, "io": stats.io}
    return {
        "at": cpu.timestamp,
        "cores": cpu.usage_nano_cores.value / 1e9 if cpu.HasField("usage_nano_cores") else None,
        "memory": memory.working_set_bytes.value if memory.HasField("working_set_bytes") else None,
        "available": memory.available_bytes.value if memory.HasField("available_bytes") else None,
        "read": counted.get(_READ),
        "written": counted.get(_WRITTEN),
        "threads": counted.get(_THREADS),
        "pressure": {name: part.psi.Some.Avg10 for name, part in parts.items() if part.HasField("psi")},
    }
