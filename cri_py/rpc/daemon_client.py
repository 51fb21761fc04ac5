"""The command line's connection to a running daemon: blocking calls, refusals raised as the errors that they were."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

import grpc

from cri_py import errors
from cri_py.errors import ConfigError, CriError, Unavailable
from cri_py.rpc.interceptor import STATUS_NAMES
from cri_py.rpc.listen import Address, UnixAddress, parse_address

_CONNECT_S: Final = 5.0
_BY_CODE: Final[Mapping[str, type[CriError]]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CriError) and kind.__base__ is CriError and kind is not ConfigError
    if kind.code != CriError.code  # of those with UNKNOWN only the words tell which it was
}


class DaemonClient:
    """Connected while it is entered; what offers the calls of a service derives from it."""

    def __init__(self, listen: str) -> None:
        self._address = address = parse_address(listen, "server.listen")
        target = f"unix:{address.path}" if isinstance(address, UnixAddress) else str(address)
        self._channel = grpc.insecure_channel(target, options=[("grpc.max_receive_message_length", -1)])

    def __enter__(self) -> Self:
        if not self._answers():
            self._channel.close()
            raise Unavailable(
                f"no daemon answers at {self._address}",
                hint="start one by cri-py serve, or name its --state or --listen",
            )
        return self

    def _answers(self) -> bool:
        if isinstance(self._address, UnixAddress) and not _listens(self._address):
            return False  # and none is waited for
        try:
            grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_S)
        except grpc.FutureTimeoutError:
            return False
        return True

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._channel.close()


def is_there(listen: str) -> bool:
    """Whether somebody listens where a daemon would."""
    return _listens(parse_address(listen, "server.listen"))


def _listens(address: Address) -> bool:
    try:
        if isinstance(address, UnixAddress):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECT_S)
                probe.connect(address.path)
        else:
            socket.create_connection((address.host, address.port), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def as_error(error: Any) -> CriError:
    """A status as the error that it was; ``error`` is a grpc.RpcError, which has no types."""
    name = STATUS_NAMES.get(error.code().value[0], "UNKNOWN")
    return _BY_CODE.get(name, CriError)(error.details() or name)
