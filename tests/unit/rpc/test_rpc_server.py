"""The socket, health and the end of the server."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cri_py import model
from cri_py.config import Config, ServerConfig
from cri_py.errors import ConfigError, FailedPrecondition, Unavailable
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.listen import TcpAddress, UnixAddress, make_way, parse_address
from cri_py.rpc.server import NOT_SERVING, SERVING, Server


async def test_the_socket_is_for_its_group_and_nobody_else(world: Any) -> None:
    found = world.socket.stat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert found.st_gid == os.getegid()


async def test_a_socket_in_use_is_not_taken_over(world: Any, config: Config) -> None:
    with pytest.raises(FailedPrecondition, match=r"another process listens on .*cri\.sock"):
        await Server(config, {}).start()
    assert (await world.runtime.Version(pb.VersionRequest())).runtime_name == "cri_py"


async def test_a_stale_socket_is_replaced(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run" / "cri.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = Server(config, {})
    await server.start()
    assert path.is_socket()
    await server.stop()


async def test_a_file_in_the_socket_s_place_is_left_alone(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "run" / "cri.sock"
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(FailedPrecondition, match="is no socket"):
        await Server(config, {}).start()
    assert path.read_text() == "precious"


async def test_tcp_listens_on_the_port_that_it_tells() -> None:
    server = Server(Config(server=ServerConfig(listen="tcp://127.0.0.1:0", shutdown_grace_s=0)), {})
    await server.start()
    assert isinstance(server.address, TcpAddress)
    _, writer = await asyncio.open_connection(server.address.host, server.address.port)
    writer.close()
    await server.stop()


async def test_a_tcp_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unavailable, match="can't be bound"):
            await Server(Config(server=ServerConfig(listen=listen)), {}).start()


async def test_an_unknown_group_is_a_config_error(tmp_path: Path) -> None:
    config = Config(server=ServerConfig(listen=f"unix://{tmp_path}/s", socket_group="no-such-group"))
    with pytest.raises(ConfigError, match=r"server\.socket_group is 'no-such-group'"):
        await Server(config, {}).start()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:///run/x.sock", UnixAddress("/run/x.sock")),
        ("/run/x.sock", UnixAddress("/run/x.sock")),
        ("tcp://127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("[::1]:9", TcpAddress("::1", 9)),
    ],
)
def test_an_address_is_read(text: str, address: object) -> None:
    assert parse_address(text, "server.listen") == address


@pytest.mark.parametrize("text", ["", "unix://relative", "nonsense", "host:", ":80", "h:99999", "http://h:1", "h:²"])
def test_an_address_that_is_none_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.listen"):
        parse_address(text, "server.listen")


def test_a_path_too_long_for_a_socket_is_told_before_the_bind() -> None:
    with pytest.raises(ConfigError, match="at most 107"):
        parse_address("unix:///" + "x" * 107, "server.listen")


def test_a_listener_whose_queue_is_full_still_counts_as_one(tmp_path: Path) -> None:
    path = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(FailedPrecondition, match="listens"):
            make_way(UnixAddress(path))


@pytest.mark.parametrize("service", ["", "runtime.v1.RuntimeService", "runtime.v1.ImageService"])
async def test_health_says_what_was_set(world: Any, service: str) -> None:
    health = health_pb2_grpc.HealthStub(world.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await health.Check(request)).status == SERVING
    await world.server.set_serving(False)
    assert (await health.Check(request)).status == NOT_SERVING


async def test_health_of_an_unknown_service_is_not_found(world: Any) -> None:
    health = health_pb2_grpc.HealthStub(world.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nonsense"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stop_ends_subscriptions_at_once_and_says_why(config: Config, world: Any) -> None:
    call = world.runtime.GetContainerEvents(pb.GetEventsRequest())
    watch = health_pb2_grpc.HealthStub(world.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    world.events.queue.put_nowait(model.Event("x", model.EventKind.CREATED, model.Nanos(1)))
    await call.read()
    world.server._grace_s = 600
    async with asyncio.timeout(60):
        await world.server.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in (caught.value.details() or "")


async def test_a_stop_lets_a_running_call_end(world: Any) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        await go_on.wait()

    world.sandboxes.during_run = work
    config = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="default"))
    call = asyncio.ensure_future(_awaited(world.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config))))
    await began.wait()
    world.server._grace_s = 30
    stopping = asyncio.create_task(world.server.stop())
    await asyncio.sleep(0)
    go_on.set()
    assert (await call).pod_sandbox_id
    await stopping


async def _awaited(call: Any) -> Any:
    return await call
