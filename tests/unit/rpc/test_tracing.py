"""Traces: off and unloaded, or a span for each call in its caller's trace, with its stages below it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cri_py import telemetry
from cri_py.errors import ConfigError
from cri_py.rpc import tracing
from cri_py.rpc.gen import api_pb2 as pb

ASKED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
METADATA = (("traceparent", f"00-{TRACE}-{SPAN}-01"), ("binary-bin", b"\xff"))


@pytest.fixture
async def seen() -> AsyncIterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    spans = tracing.start(ASKED, lambda: exporter)
    assert spans is not None
    yield exporter
    await spans.stop()


def finished(exporter: InMemorySpanExporter) -> list[Any]:
    assert telemetry.TRACING.spans is not None
    telemetry.TRACING.spans._provider.force_flush()  # type: ignore[attr-defined]
    return list(exporter.get_finished_spans())


async def test_a_call_goes_on_with_its_callers_trace(world: Any, seen: InMemorySpanExporter) -> None:
    await world.runtime.Version(pb.VersionRequest(), metadata=METADATA)
    (span,) = finished(seen)
    assert (span.name, span.kind) == ("Version", SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.attributes == {"rpc.system": "grpc", "rpc.method": "Version"}
    assert span.resource.attributes["service.name"] == "cri_py"


async def test_without_a_caller_a_call_begins_a_trace(world: Any, seen: InMemorySpanExporter) -> None:
    await world.runtime.Version(pb.VersionRequest())
    (span,) = finished(seen)
    assert span.parent is None


async def test_a_call_that_fails_is_a_failed_span(world: Any, seen: InMemorySpanExporter) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await world.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id="missing"))
    (span,) = finished(seen)
    assert span.status.status_code is StatusCode.ERROR
    assert "missing" in span.events[0].attributes["exception.message"]


async def test_stages_stand_below_what_they_belong_to(seen: InMemorySpanExporter) -> None:
    @telemetry.stage("inner")
    async def inner() -> None: ...

    @telemetry.stage("outer")
    async def outer() -> None:
        await inner()

    await outer()
    below, above = finished(seen)
    assert (below.name, above.name) == ("inner", "outer")
    assert below.parent.span_id == above.context.span_id


@pytest.mark.parametrize("environment", [{}, {"OTEL_SERVICE_NAME": "x"}, ASKED | {"OTEL_SDK_DISABLED": "true"}])
def test_nothing_is_traced_unless_a_collector_is_named(environment: dict[str, str]) -> None:
    assert tracing.start(environment) is None
    assert telemetry.TRACING.spans is None


def test_off_nothing_of_it_is_imported() -> None:
    code = "import sys, cri_py.app; assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_it_is_missing_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT.*cri_py\[tracing\]"):
        tracing.start(ASKED)
