"""What the daemon tells about itself: its log, and all its Prometheus series.

Log lines are events with named values. ``request_id`` and ``deadline`` belong to the call that runs; the gRPC edge sets
them, and every line that is written below it carries the id. Counters and histograms are used as they stand here;
a :class:`Reading` is a gauge whose owner answers when somebody looks, so nothing is updated for nobody.
"""

from __future__ import annotations

import functools
import logging
import platform
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Final, ParamSpec, Protocol, TextIO, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.typing import Processor

from cri_py.errors import ConfigError

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""Of the call that runs, "" outside of one."""

deadline: Final[ContextVar[float | None]] = ContextVar("deadline", default=None)
"""When the caller of the call that runs stops waiting, in seconds of time.monotonic(); None: never."""


# ------------------------------------------------------------------ series

REGISTRY: Final = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for


class Reading(Collector):
    """A gauge that is read when it is looked at. ``label`` is the name of its one label, "" for none."""

    def __init__(self, name: str, documentation: str, label: str = "") -> None:
        self.name = name
        self._documentation = documentation
        self._labels = [label] if label else []
        self._source: Callable[[], Mapping[str, float]] = dict
        REGISTRY.register(self)

    def read_by(self, source: Callable[[], Mapping[str, float]]) -> None:
        """``source`` answers label value → number; a gauge without label uses the key "".

        It is called on the event loop at every scrape, so it must not wait.
        """
        self._source = source

    def describe(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(self.name, self._documentation, labels=self._labels)

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self._documentation, labels=self._labels)
        for label, number in self._source().items():
            family.add_metric([label] if self._labels else [], number)
        yield family


_RPC_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STAGE_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_PULL_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)

RPC_SECONDS: Final = Histogram(
    "cri_py_rpc_seconds", "How long calls took, by method", ["method"], buckets=_RPC_BUCKETS, registry=REGISTRY
)
STAGE_SECONDS: Final = Histogram(
    "cri_py_stage_seconds",
    "How long the steps of a pod's start took that succeeded; those of a sandbox run side by side",
    ["stage"],
    buckets=_STAGE_BUCKETS,
    registry=REGISTRY,
)
STAGE_ERRORS: Final = Counter(
    "cri_py_stage_errors", "Steps of a pod's start that failed, by stage", ["stage"], registry=REGISTRY
)
RPC_ERRORS: Final = Counter(
    "cri_py_rpc_errors",
    "Calls that did not end with OK, by method and gRPC status",
    ["method", "code"],
    registry=REGISTRY,
)
PODS: Final = Reading("cri_py_pods", "Sandboxes by state: ready, notready", "state")
CONTAINERS: Final = Reading("cri_py_containers", "Containers by state: created, running, exited, lost", "state")
PULL_BYTES: Final = Counter("cri_py_pull_bytes", "Bytes fetched from registries", registry=REGISTRY)
PULL_ATTEMPTS: Final = Counter(
    "cri_py_pull_failed_attempts",
    "Requests to registries that failed, be it that others succeeded",
    registry=REGISTRY,
)
PULL_SECONDS: Final = Histogram(
    "cri_py_pull_seconds", "How long pulls that succeeded took", buckets=_PULL_BUCKETS, registry=REGISTRY
)
PULL_ERRORS: Final = Counter("cri_py_pull_errors", "Pulls that failed, by gRPC status", ["code"], registry=REGISTRY)
STREAM_SECONDS: Final = Histogram(
    "cri_py_stream_seconds",
    "How long streaming sessions lasted, by kind: exec, attach, portforward",
    ["kind"],
    buckets=(0.1, 1.0, 10.0, 60.0, 600.0, 3600.0),
    registry=REGISTRY,
)
STREAM_BYTES: Final = Counter(
    "cri_py_stream_bytes", "What streaming sessions carried, by kind and direction", ["kind", "to"], registry=REGISTRY
)
STREAM_ERRORS: Final = Counter(
    "cri_py_stream_errors", "Streaming sessions that ended by an error, by kind", ["kind"], registry=REGISTRY
)
IMAGES: Final = Reading("cri_py_images", "Images in the store")
PULLS: Final = Reading("cri_py_pulls", "Pulls under way whose manifest is here")
PULL_PROGRESS: Final = Reading(
    "cri_py_pull_progress_bytes", "Layers of the pulls under way: compressed bytes wanted, fetched, unpacked", "step"
)
NETWORK_SECONDS: Final = Histogram(
    "cri_py_network_seconds",
    "How long pods took to get and to let go of their network, by act: attach, detach",
    ["act"],
    buckets=_STAGE_BUCKETS,
    registry=REGISTRY,
)
NETWORK_ERRORS: Final = Counter(
    "cri_py_network_errors", "Networks that could not be attached or detached, by act", ["act"], registry=REGISTRY
)
STORE_SECONDS: Final = Histogram(
    "cri_py_store_seconds",
    "How long records took until they were written, by database: pods, images",
    ["store"],
    buckets=_STAGE_BUCKETS,
    registry=REGISTRY,
)
STORE_ERRORS: Final = Counter(
    "cri_py_store_errors", "Records that could not be written, by database", ["store"], registry=REGISTRY
)
STORE_BYTES: Final = Reading("cri_py_store_bytes", "Size of the databases with their write-ahead logs", "store")
EXITS: Final = Counter(
    "cri_py_container_exits",
    "Containers that ended, by reason: Completed, Error, OOMKilled, …",
    ["reason"],
    registry=REGISTRY,
)
MONITORS: Final = Reading("cri_py_monitors", "Monitors that the daemon is connected to")
MONITOR_MEMORY: Final = Reading("cri_py_monitor_memory_bytes", "PSS of all monitors and the spawner")
MONITORS_LOST: Final = Counter(
    "cri_py_monitors_lost", "Monitors that died before their pod was stopped", registry=REGISTRY
)
SPAWNER_STARTS: Final = Counter("cri_py_spawner_starts", "How often a spawner was started", registry=REGISTRY)
EVENT_QUEUE_DEPTH: Final = Reading("cri_py_event_queue_depth", "Events that wait for the slowest subscriber")
EVENTS_DROPPED: Final = Counter(
    "cri_py_events_dropped", "Events that a subscriber missed because it did not read", registry=REGISTRY
)
LOG_LINES_DROPPED: Final = Counter(
    "cri_py_log_lines_dropped", "Lines of containers that could not be written to their log", registry=REGISTRY
)
RECOVERY_SECONDS: Final = Gauge(
    "cri_py_recovery_seconds", "How long the last start took to compare records with reality", registry=REGISTRY
)
BUILD: Final = Gauge("cri_py_build_info", "Always 1", ["version", "python"], registry=REGISTRY)

ProcessCollector(registry=REGISTRY)  # the process_* series that every dashboard knows


Metadata = Iterable[tuple[str, str | bytes]]
"""What gRPC carries beside a request."""


class Spans(Protocol):
    """What makes spans of a trace; see cri_py.rpc.tracing."""

    def call(self, name: str, metadata: Metadata, /) -> AbstractContextManager[object]: ...
    def stage(self, name: str, attributes: Mapping[str, str], /) -> AbstractContextManager[object]: ...


class Tracing:
    """Spans where traces are asked for, and nothing else."""

    spans: Spans | None = None

    def call(self, name: str, metadata: Callable[[], Metadata | None]) -> AbstractContextManager[object]:
        """For as long as a call takes; ``metadata`` tells what came with it, the caller's trace among it."""
        return _NO_SPAN if self.spans is None else self.spans.call(name, metadata() or ())

    def stage(self, name: str, **attributes: str) -> AbstractContextManager[object]:
        """For as long as a stage takes; ``attributes`` say what it works on."""
        return _NO_SPAN if self.spans is None else self.spans.stage(name, attributes)


_NO_SPAN: Final = nullcontext()
TRACING: Final = Tracing()

_P = ParamSpec("_P")
_T = TypeVar("_T")
Act = Callable[_P, Coroutine[Any, Any, _T]]


def timed(seconds: Histogram, errors: Counter, label: str) -> Callable[[Act[_P, _T]], Act[_P, _T]]:
    """Tell, under ``label``, how long calls that succeed take, and how many don't. A caller who left is no error."""
    observe, count = seconds.labels(label).observe, errors.labels(label).inc

    def decorate(act: Act[_P, _T]) -> Act[_P, _T]:
        @functools.wraps(act)
        async def timed_act(*arguments: _P.args, **named: _P.kwargs) -> _T:
            begun = time.perf_counter()
            try:
                with TRACING.stage(label):
                    answer = await act(*arguments, **named)
            except Exception:
                count()
                raise
            observe(time.perf_counter() - begun)
            return answer

        return timed_act

    return decorate


def spanned(name: str) -> Callable[[Act[_P, _T]], Act[_P, _T]]:
    """A span for each call, and no series."""

    def decorate(act: Act[_P, _T]) -> Act[_P, _T]:
        @functools.wraps(act)
        async def spanned_act(*arguments: _P.args, **named: _P.kwargs) -> _T:
            with TRACING.stage(name):
                return await act(*arguments, **named)

        return spanned_act

    return decorate


def stage(name: str) -> Callable[[Act[_P, _T]], Act[_P, _T]]:
    """``timed`` for a step of a pod's start."""
    return timed(STAGE_SECONDS, STAGE_ERRORS, name)


for _kind in ("exec", "attach", "portforward"):  # what never happened is 0, and not unknown
    STREAM_SECONDS.labels(_kind)
    STREAM_ERRORS.labels(_kind)
    for _to in ("container", "client"):
        STREAM_BYTES.labels(_kind, _to)
for _reason in ("Completed", "Error", "OOMKilled"):
    EXITS.labels(_reason)


def set_version(version: str) -> None:
    """Tell what ``cri_py_build_info`` says."""
    BUILD.clear()
    BUILD.labels(version, platform.python_version()).set(1)


def exposition(accept: str) -> tuple[str, bytes]:
    """All series in the format that the Accept header asks for: content type and body."""
    encode, content_type = choose_encoder(accept)
    return content_type, encode(REGISTRY)


# --------------------------------------------------------------------- log


def configure_logging(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Send structlog and the standard library's loggers to ``stream``.

    ``level`` is debug, info, warning or error; ``form`` is text, json, or auto: text on a terminal, JSON otherwise.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"log.level is {level!r}", hint="use debug, info, warning or error")
    if form not in {"auto", "text", "json"}:
        raise ConfigError(f"log.format is {form!r}", hint="use auto, text or json")
    text = form == "text" or (form == "auto" and stream.isatty())
    steps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering = _text_rendering(stream) if text else _json_rendering()
    structlog.configure(
        processors=[*steps, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_loggers(number, stream, steps, rendering)


def _text_rendering(stream: TextIO) -> list[Processor]:
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]


def _json_rendering() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=repr)]


def _adopt_standard_loggers(level: int, stream: TextIO, steps: list[Processor], rendering: list[Processor]) -> None:
    """Libraries log through ``logging``; their lines shall look like ours. Below WARNING they chatter."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*steps, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
