"""What every call gets: an id, a deadline, one log line, metrics, and a status for its error."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
import structlog

from cri_py import errors, telemetry
from cri_py.rpc import interceptor
from cri_py.rpc.gen import api_pb2 as pb

CONFIG = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="default"))
RUN = pb.RunPodSandboxRequest(config=CONFIG)

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CriError)]


def failing(error: BaseException) -> Any:
    async def fail() -> None:
        raise error

    return fail


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def counted(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
async def test_an_error_becomes_its_status_with_message_and_hint(world: Any, kind: type[errors.CriError]) -> None:
    world.sandboxes.during_run = failing(kind("sandbox web can't run", hint="free some memory"))
    error = await refused(world.runtime.RunPodSandbox(RUN))
    assert error.code().name == kind.code
    told_by_name = (errors.RegistryUnavailable, errors.SignatureValidationFailed)  # which is how a kubelet knows them
    word = f"{kind.__name__}: " if kind in told_by_name else ""
    assert error.details() == f"{word}sandbox web can't run (free some memory)"


async def test_an_unexpected_exception_is_internal_and_logged_once_with_traceback(world: Any) -> None:
    world.sandboxes.during_run = failing(errors.KernelError(2, "No such file or directory", "mount", "overlay on /x"))
    with structlog.testing.capture_logs() as lines:
        error = await refused(world.runtime.RunPodSandbox(RUN))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "KernelError: mount(overlay on /x): No such file or directory" in (error.details() or "")
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["exc_info"].syscall == "mount"


async def test_a_message_too_long_for_a_header_still_arrives(world: Any) -> None:
    world.sandboxes.during_run = failing(errors.NotFound("ü" * 100_000))
    error = await refused(world.runtime.RunPodSandbox(RUN))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert (error.details() or "").endswith("…")


async def test_a_request_that_is_no_message_is_invalid(world: Any) -> None:
    call = world.channel.unary_unary("/runtime.v1.RuntimeService/RunPodSandbox")
    error = await refused(call(b"\x0a\xff\xff"))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "RunPodSandbox" in (error.details() or "")


async def test_an_unknown_method_is_unimplemented(world: Any) -> None:
    call = world.channel.unary_unary("/runtime.v1.RuntimeService/Fly")
    assert (await refused(call(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_every_call_is_logged_once_with_method_code_and_duration(world: Any) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await world.runtime.RunPodSandbox(RUN)
        await refused(world.runtime.StartContainer(pb.StartContainerRequest(container_id="abc")))
        async with asyncio.timeout(60):
            while len(lines) < 2:  # noqa: ASYNC110  # a refusal is answered first and logged then
                await asyncio.sleep(0)
    first, second = [line for line in lines if line["event"] == "rpc"]
    assert (first["method"], first["code"], first["name"]) == ("RunPodSandbox", "OK", "default/web")
    assert first["ms"] >= 0
    assert (second["method"], second["code"], second["container_id"]) == ("StartContainer", "NOT_FOUND", "abc")
    assert second["error"] == "container abc does not exist"
    assert first["request_id"] != second["request_id"]


async def test_a_log_line_stays_short_whatever_the_request_holds(world: Any) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await refused(world.runtime.StartContainer(pb.StartContainerRequest(container_id="a" * 1_000_000)))
        async with asyncio.timeout(5):
            while not lines:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0)
    assert len(lines[0]["container_id"]) < 1000
    assert len(lines[0]["error"]) < 3000


async def test_reads_are_logged_at_debug_and_acts_at_info(world: Any) -> None:
    with structlog.testing.capture_logs() as lines:
        await world.runtime.ListContainers(pb.ListContainersRequest())
        await world.runtime.RunPodSandbox(RUN)
    assert [(line["method"], line["log_level"]) for line in lines] == [
        ("ListContainers", "debug"),
        ("RunPodSandbox", "info"),
    ]


def test_what_the_kubelet_polls_is_a_read_and_nothing_else() -> None:
    service = pb.DESCRIPTOR.services_by_name["RuntimeService"]
    acts = {method.name for method in service.methods if not interceptor.is_read(method.name)}
    assert {"RunPodSandbox", "StopContainer", "ExecSync", "UpdateRuntimeConfig", "CheckpointPod"} <= acts
    assert not acts & {"Version", "Status", "ListContainers", "ContainerStatus", "PodSandboxStats", "StreamContainers"}


async def test_the_layers_below_see_request_id_and_deadline(world: Any) -> None:
    seen: dict[str, Any] = {}

    def look() -> None:
        seen["id"] = telemetry.request_id.get()
        seen["logged"] = structlog.contextvars.get_contextvars()["request_id"]
        seen["deadline"] = telemetry.deadline.get()

    world.sandboxes.during_run = look
    await world.runtime.RunPodSandbox(RUN, timeout=30)
    assert seen["id"]
    assert seen["id"] == seen["logged"]
    assert 25 < seen["deadline"] - time.monotonic() < 31  # gRPC rounds to its own ticks
    await world.runtime.RunPodSandbox(RUN)
    assert seen["deadline"] is None


async def test_latency_and_errors_are_measured_by_method(world: Any) -> None:
    calls = counted("cri_py_rpc_seconds_count", method="StartContainer")
    failures = counted("cri_py_rpc_errors_total", method="StartContainer", code="NOT_FOUND")
    await refused(world.runtime.StartContainer(pb.StartContainerRequest(container_id="abc")))
    assert counted("cri_py_rpc_seconds_count", method="StartContainer") == calls + 1
    assert counted("cri_py_rpc_errors_total", method="StartContainer", code="NOT_FOUND") == failures + 1


async def test_a_client_that_leaves_cancels_the_work(world: Any) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    world.sandboxes.during_run = work
    call = world.runtime.RunPodSandbox(RUN)
    asking = asyncio.ensure_future(call.wait_for_connection())
    await began.wait()
    with structlog.testing.capture_logs() as lines:
        call.cancel()
        await asyncio.wait_for(ended.wait(), 60)
        await asyncio.sleep(0)
    asking.cancel()
    assert [line["code"] for line in lines if line["event"] == "rpc"] == ["CANCELLED"]


async def test_a_deadline_that_passes_cancels_the_work(world: Any) -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    world.sandboxes.during_run = work
    error = await refused(world.runtime.RunPodSandbox(RUN, timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(ended.wait(), 60)


async def test_a_subscriber_that_leaves_is_unsubscribed(world: Any, new_sandbox: Any) -> None:
    from cri_py import model

    call = world.runtime.GetContainerEvents(pb.GetEventsRequest())
    world.events.queue.put_nowait(model.Event("x", model.EventKind.CREATED, model.Nanos(1)))
    await call.read()
    assert world.events.subscribers == 1
    call.cancel()
    await asyncio.wait_for(world.events.nobody_listens.wait(), 60)
    assert world.events.subscribers == 0


async def test_an_error_in_a_stream_becomes_its_status(world: Any) -> None:
    state = pb.ContainerStateValue(state=17)  # type: ignore[arg-type]
    request = pb.StreamContainersRequest(filter=pb.ContainerFilter(state=state))
    error = await refused(world.runtime.StreamContainers(request).read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "filter.state is 17" in (error.details() or "")
