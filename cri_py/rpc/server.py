"""The gRPC server: its socket, its limits, its health, its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from cri_py.config import Config
from cri_py.errors import Unavailable
from cri_py.rpc.gen import api_pb2, images_pb2
from cri_py.rpc.interceptor import CallInterceptor
from cri_py.rpc.listen import TcpAddress, UnixAddress, make_way, parse_address, restrict
from cri_py.rpc.methods import generic_handler

log = structlog.get_logger()

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
RUNTIME: Final = "runtime.v1.RuntimeService"
IMAGE: Final = "runtime.v1.ImageService"
OWN_IMAGES: Final = "cri_py.v1.Images"
OWN_EXCHANGE: Final = "cri_py.v1.ImageExchange"
SERVICES: Final = {
    service.full_name: service
    for file in (api_pb2.DESCRIPTOR, images_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
}
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """Serves CRI on ``config.listen``.

    ``services`` maps full names of services (SERVICES) to the objects that have their methods.
    """

    def __init__(self, config: Config, services: Mapping[str, object]) -> None:
        self._address = parse_address(config.listen, "server.listen")
        self._group = config.server.socket_group
        self._grace_s = config.server.shutdown_grace_s
        self._interceptor = CallInterceptor()
        self._health = health.HealthServicer()
        self._names = ("", *services)
        self._server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                ("grpc.max_receive_message_length", config.server.max_message_bytes),
                ("grpc.max_send_message_length", config.server.max_message_bytes),
                ("grpc.so_reuseport", 0),  # a second daemon on the same port is an error, not a load balancer
            ],
        )
        for name, methods in services.items():
            self._server.add_generic_rpc_handlers((generic_handler(SERVICES[name], methods),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> None:
        """Bind and answer calls; health says NOT_SERVING until :meth:`set_serving`.

        Raises FailedPrecondition if another process has the socket, Unavailable if it can't be bound.
        """
        await self.set_serving(False)
        if isinstance(self._address, UnixAddress):
            make_way(self._address)
            self._bind(f"unix:{self._address.path}")
            restrict(self._address, self._group)
        else:
            port = self._bind(str(self._address))
            self._address = TcpAddress(self._address.host, port)
        await self._server.start()
        log.info("listening", address=str(self._address))

    @property
    def address(self) -> UnixAddress | TcpAddress:
        """Where it listens; after :meth:`start` with the real port."""
        return self._address

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers, for all services and for the server as a whole."""
        for name in self._names:
            await self._health.set(name, SERVING if serving else NOT_SERVING)

    async def stop(self) -> None:
        """Take no more calls, let those that run end within the grace period, cancel the rest."""
        await self._health.enter_graceful_shutdown()
        self._interceptor.end_endless_calls()
        await self._server.stop(self._grace_s)

    async def wait_until_stopped(self) -> None:
        await self._server.wait_for_termination()

    def _bind(self, target: str) -> int:
        try:
            return int(self._server.add_insecure_port(target))
        except RuntimeError as error:
            raise Unavailable(f"{self._address} can't be bound: {error}", hint="is the address in use?") from error
