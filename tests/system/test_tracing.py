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
    wanted = {"RunPodSandbox", "monitor", "holder", "sandbox cgroup", "attach"}
    found: dict[str, Any] = {}
    while wanted - set(found):
        span = collector.get(timeout=20)
        if span.trace_id.hex() == TRACE:
            found[span.name] = span
    call = found["RunPodSandbox"]
    assert call.parent_span_id.hex() == "b7ad6b7169203331"
    for name in wanted - {"RunPodSandbox"}:
        assert found[name].parent_span_id == call.span_id
        assert call.start_time_unix_nano <= found[name].start_time_unix_nano
        assert found[name].end_time_unix_nano <= call.end_time_unix_nano
