"""Spans for OpenTelemetry: one for each call, as a part of its caller's trace, and below it one for each stage.

Off, and then nothing of OpenTelemetry is imported, unless the standard environment variables name a collector:
OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. Its other variables (headers, certificate, sampler,
OTEL_SERVICE_NAME …) are read by its own SDK: opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from cri_py import telemetry
from cri_py.errors import ConfigError

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_S: Final = 5.0


class Spans:
    """What ``telemetry.TRACING`` asks; ``provider`` is OpenTelemetry's TracerProvider."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import propagate, trace  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("cri_py")
        self._extract = propagate.extract
        self._server = trace.SpanKind.SERVER

    def call(self, name: str, metadata: telemetry.Metadata) -> AbstractContextManager[object]:
        """A call's span; an error that leaves it makes it a failed one."""
        carried = {key: value for key, value in metadata if isinstance(value, str)}
        span: AbstractContextManager[object] = self._tracer.start_as_current_span(
            name,
            context=self._extract(carried),
            kind=self._server,
            attributes={"rpc.system": "grpc", "rpc.method": name},
        )
        return span

    def stage(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """A stage's, below the span that is current where it begins."""
        span: AbstractContextManager[object] = self._tracer.start_as_current_span(name, attributes=dict(attributes))
        return span

    async def stop(self) -> None:
        """Send what is left, for some seconds at most: a collector that is gone must not hold up the daemon's end."""
        telemetry.TRACING.spans = None
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._provider.force_flush, int(_FLUSH_S * 1000))
        await loop.run_in_executor(None, self._provider.shutdown)


def start(environment: Mapping[str, str], exporter: Callable[[], Any] | None = None) -> Spans | None:
    """Trace from now on if the environment asks for it, else None. Raises ConfigError where OpenTelemetry is missing.

    ``exporter`` makes what spans are handed to, in a test.
    """
    asked = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if asked is None or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"{asked} asks for traces, but OpenTelemetry is not installed: {error}",
            hint="pip install 'cri_py[tracing]', or take the variable away",
        ) from error
    name = environment.get("OTEL_SERVICE_NAME") or "cri_py"
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor((exporter or OTLPSpanExporter)()))
    telemetry.TRACING.spans = spans = Spans(provider)
    return spans
