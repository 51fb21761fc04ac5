"""A real daemon sends its spans to a collector that stands where the environment says."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.gen import api_pb2_grpc as services
from tests.simulators.busybox import BUSYBOX, CUSTOM
from tests.system.daemon import Daemon

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
TRACE = "0af7651916cd43dd8448eb211c80319c"
METADATA = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[queue.Queue[Any]]:
    """Takes spans over OTLP; the environment names it to whatever is started."""
    taken: queue.Queue[Any] = queue.Queue()

    def export(request: ExportTraceServiceRequest, _: object) -> ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    taken.put(span)
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export, ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield taken
    server.stop(None).wait()


def test_the_start_of_a_pod_is_one_trace_with_its_stages(
    collector: queue.Queue[Any], make_daemon: Callable[[str], Daemon]
) -> None:
    kubelet = make_daemon("").kubelet
    stub = services.RuntimeServiceStub(kubelet.channel)
    made = stub.RunPodSandbox(pb.RunPodSandboxRequest(config=kubelet.pod_config()), metadata=METADATA, timeout=30)
    assert made.pod_sandbox_id
    wanted = {"monitor", "holder", "sandbox cgroup", "attach"}
    found = spans_of(collector, "RunPodSandbox", wanted)
    call = found["RunPodSandbox"]
    assert call.parent_span_id.hex() == "b7ad6b7169203331"
    for name in wanted:
        assert found[name].parent_span_id == call.span_id


def spans_of(collector: queue.Queue[Any], call: str, wanted: set[str]) -> dict[str, Any]:
    """The spans of our trace by their names, once all that are wanted have come."""
    found: dict[str, Any] = {}
    while ({call} | wanted) - set(found):
        span = collector.get(timeout=20)
        if span.trace_id.hex() == TRACE:
            found[span.name] = span
    for name in wanted:
        assert found[call].start_time_unix_nano <= found[name].start_time_unix_nano, name
        assert found[name].end_time_unix_nano <= found[call].end_time_unix_nano, name
    return found


def test_a_pull_is_one_trace_with_its_stages(collector: queue.Queue[Any], make_daemon: Callable[[str], Daemon]) -> None:
    kubelet = make_daemon("").kubelet
    for image in (BUSYBOX, CUSTOM):
        kubelet.RemoveImage(image=pb.ImageSpec(image=image))
    stub = services.ImageServiceStub(kubelet.channel)
    stub.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=CUSTOM)), metadata=METADATA, timeout=30)
    stages = {"fetch manifest", "verify signatures", "resolve image", "fetch blob", "unpack layer", "sync disk"}
    found = spans_of(collector, "PullImage", stages | {"record image"})
    assert found["PullImage"].parent_span_id.hex() == "b7ad6b7169203331"
    for name in ("fetch blob", "unpack layer"):
        (attribute,) = found[name].attributes
        assert attribute.key == "digest"
        assert attribute.value.string_value.startswith("sha256:")


def test_create_and_start_of_a_container_are_in_their_callers_trace(
    collector: queue.Queue[Any], make_daemon: Callable[[str], Daemon]
) -> None:
    kubelet = make_daemon("").kubelet
    pod, config = kubelet.run_pod(), kubelet.container_config("sleep", "1000")
    kubelet.make_log_directory(pod, config)
    stub = services.RuntimeServiceStub(kubelet.channel)
    create = pb.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    made = stub.CreateContainer(create, metadata=METADATA, timeout=30)
    spans_of(collector, "CreateContainer", {"container document", "container cgroup", "container init"})
    stub.StartContainer(pb.StartContainerRequest(container_id=made.container_id), metadata=METADATA, timeout=30)
    spans_of(collector, "StartContainer", {"container start"})
