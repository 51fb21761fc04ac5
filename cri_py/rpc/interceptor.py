"""What every call passes: it gets an id and a deadline, is measured and logged once, and its error becomes a status.

The only code that knows gRPC statuses. Each call runs in a task of its own, so context variables that are set here end
with it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import grpc
import structlog

from cri_py import telemetry
from cri_py.errors import CriError, DeadlineExceeded, Unavailable

log = structlog.get_logger()

Context = Any  # grpc.aio.ServicerContext; grpc ships no types

STATUSES: Final = {status.name: status for status in grpc.StatusCode}
STATUS_NAMES: Final = {status.value[0]: status.name for status in grpc.StatusCode}

# A status travels in a header, where a byte may take three (%FF); gRPC's default limit for all headers is 8 KiB.
MAX_DETAILS_BYTES: Final = 2000
MAX_SUBJECT: Final = 512  # an image ref with a digest has some 300 characters at most

READ_NAMES: Final = frozenset({"Version", "RuntimeConfig", "ImageFsInfo", "Check", "Watch"})
READ_PREFIXES: Final = ("List", "Stream")
READ_SUFFIXES: Final = ("Status", "Stats")
ENDLESS: Final = frozenset({"GetContainerEvents", "Watch"})
_FIELDS: Final[dict[type[Any], frozenset[str]]] = {}
QUIET_FAILURES: Final = frozenset({"NOT_FOUND", "UNIMPLEMENTED", "CANCELLED"})


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """For unary and streaming calls alike."""

    def __init__(self) -> None:
        self._endless: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._handlers: dict[str, Any] = {}  # by method: they don't change

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = self._handlers.get(details.method)
        if handler is None:
            handler = await continuation(details)
            if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
                return None
            handler = self._handlers[details.method] = self._intercepted(details.method.rsplit("/", 1)[-1], handler)
        return handler

    def _intercepted(self, name: str, handler: Any) -> Any:
        decoder, encoder = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, handler.unary_stream), decoder, encoder)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(name, handler.stream_unary), decoder, encoder)
        return grpc.unary_unary_rpc_method_handler(self._unary(name, handler.unary_unary), decoder, encoder)

    def end_endless_calls(self) -> None:
        """End the calls that would never end by themselves with UNAVAILABLE, so that a stop need not wait for them."""
        self._stopping = True
        for task in self._endless:
            task.cancel()

    def _unary(self, name: str, behaviour: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            async with self._observed(name, request, context):
                return await behaviour(request, context)

        return call

    def _stream(self, name: str, behaviour: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        """Not a generator: when the client leaves, the cancellation must reach this frame, not only gRPC's loop."""

        async def call(request: Any, context: Context) -> None:
            async with self._observed(name, request, context):
                if name in ENDLESS:
                    await self._endless_stream(behaviour(request, context), context)
                else:
                    await _pass_on(behaviour(request, context), context)

        return call

    async def _endless_stream(self, parts: Any, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._endless.add(task)
        try:
            await _pass_on(parts, context)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            raise Unavailable("the runtime is stopping", hint="connect again") from None
        finally:
            self._endless.discard(task)

    @asynccontextmanager
    async def _observed(self, name: str, request: Any, context: Context) -> AsyncIterator[None]:
        started = time.perf_counter()
        code, failure, unexpected = "OK", "", None
        telemetry.request_id.set(call_id := secrets.token_hex(4))
        structlog.contextvars.bind_contextvars(request_id=call_id, **subjects(request))
        try:
            with telemetry.TRACING.call(name, context.invocation_metadata):
                _set_deadline(name, context)
                yield
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if _remaining(context) == 0 else "CANCELLED"
            raise
        except grpc.aio.AbortError:
            code = STATUS_NAMES.get(context.code(), "UNKNOWN")
            raise
        except CriError as error:
            code, failure = error.code, str(error)
            await _abort(context, code, failure)
        except Exception as error:
            code, failure, unexpected = "INTERNAL", f"{name}: {type(error).__name__}: {error}", error
            await _abort(context, code, f"{failure} (a fault of cri_py: its log tells more about request {call_id})")
        finally:
            _record(name, code, time.perf_counter() - started, failure, unexpected)


async def _pass_on(parts: Any, context: Context) -> None:
    if not hasattr(parts, "__aiter__"):  # a coroutine that writes by itself, as the health service's Watch
        await parts
        return
    async with aclosing(parts):
        async for part in parts:
            await context.write(part)


def subjects(request: Any) -> dict[str, str]:
    """What a request is about, for the log: ids as they are, the name of a pod or container to be, an image."""
    told = _telling(type(request))
    found: dict[str, str] = {}
    for key in ("pod_sandbox_id", "container_id"):
        if key in told and (value := getattr(request, key)):
            found[key] = value
    if "config" in told:
        metadata = request.config.metadata
        namespace = getattr(metadata, "namespace", "")
        found["name"] = f"{namespace}/{metadata.name}" if namespace else metadata.name
    if value := (request.image.image if "image" in told else "") or (request.ref if "ref" in told else ""):
        found["image"] = value
    return {key: clipped(value, MAX_SUBJECT) for key, value in found.items()}


def clipped(text: str, limit: int) -> str:
    """A request may hold 64 MiB, a log line should not."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def _telling(kind: type[Any]) -> frozenset[str]:
    """The fields of a message; none of what is no message."""
    if kind not in _FIELDS:
        descriptor = getattr(kind, "DESCRIPTOR", None)
        _FIELDS[kind] = frozenset(descriptor.fields_by_name) if descriptor is not None else frozenset()
    return _FIELDS[kind]


def _remaining(context: Context) -> float | None:
    """Seconds until the caller stops waiting, 0 if that is past; None: it waits for ever."""
    remaining = context.time_remaining()
    return None if remaining is None else max(0.0, remaining)


def _set_deadline(name: str, context: Context) -> None:
    remaining = _remaining(context)
    if remaining is None:
        return
    if remaining == 0:
        raise DeadlineExceeded(f"{name}: the deadline had passed before the call began")
    telemetry.deadline.set(time.monotonic() + remaining)


async def _abort(context: Context, code: str, details: str) -> None:
    raw = details.encode(errors="replace")
    if len(raw) > MAX_DETAILS_BYTES:
        raw = raw[:MAX_DETAILS_BYTES] + "…".encode()
    await context.abort(STATUSES.get(code, grpc.StatusCode.UNKNOWN), raw.decode(errors="ignore"))


def _record(name: str, code: str, seconds: float, failure: str, unexpected: Exception | None) -> None:
    telemetry.RPC_SECONDS.labels(name).observe(seconds)
    told: dict[str, Any] = {"method": name, "code": code, "ms": round(seconds * 1000, 2)}
    if code == "OK":
        (log.debug if is_read(name) else log.info)("rpc", **told)
        return
    telemetry.RPC_ERRORS.labels(name, code).inc()
    if failure:
        told["error"] = clipped(failure, MAX_DETAILS_BYTES)
    if unexpected is not None:
        log.error("rpc", **told, exc_info=unexpected)
    elif code in QUIET_FAILURES:
        (log.debug if is_read(name) else log.info)("rpc", **told)
    else:
        log.warning("rpc", **told)


def is_read(name: str) -> bool:
    """Whether an RPC only looks; the kubelet calls these all the time, so they are logged at debug."""
    return name in READ_NAMES or name.startswith(READ_PREFIXES) or name.endswith(READ_SUFFIXES)
