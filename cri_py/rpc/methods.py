"""From a service's methods to gRPC handlers, by a descriptor: CRI's, or that of our own service beside it.

The services of this room are plain classes: a method has the RPC's name, takes the request (or an iterator of its
pieces) and answers the response, or yields its parts. What a class lacks answers UNIMPLEMENTED by name, so the list of
RPCs stands in one place, the .proto. An answer may also be the encoded message itself (bytes): listings are joined from
encoded items.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from cri_py.errors import InvalidArgument, Unimplemented

Answer = Message | bytes


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a request that is not the message it should be."""

    reason: str


def generic_handler(descriptor: ServiceDescriptor, methods: object) -> grpc.GenericRpcHandler:
    """Serve a service by the methods of the given object."""
    handlers = {method.name: _handler(method, getattr(methods, method.name, None)) for method in descriptor.methods}
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def _handler(method: MethodDescriptor, behaviour: Callable[[Any], Any] | None) -> grpc.RpcMethodHandler:
    name = method.name
    message = GetMessageClass(method.input_type)

    async def one(request: Message | Unreadable, _: object) -> Answer:
        answer: Answer = await _checked(name, behaviour)(_read(name, request))
        return answer

    async def many(request: Message | Unreadable, _: object) -> AsyncIterator[Answer]:
        async for part in _checked(name, behaviour)(_read(name, request)):
            yield part

    async def taken(requests: AsyncIterator[Message | Unreadable], _: object) -> Answer:
        answer: Answer = await _checked(name, behaviour)(_read_all(name, requests))
        return answer

    if method.client_streaming:
        return grpc.stream_unary_rpc_method_handler(taken, _decoder(message), encode)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(many, _decoder(message), encode)
    return grpc.unary_unary_rpc_method_handler(one, _decoder(message), encode)


def _checked(name: str, behaviour: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    if behaviour is None:
        raise Unimplemented(f"{name} is not implemented in this version of cri_py")
    return behaviour


def _read(name: str, request: Message | Unreadable) -> Message:
    if isinstance(request, Unreadable):
        raise InvalidArgument(f"the request of {name} can't be decoded: {request.reason}")
    return request


async def _read_all(name: str, requests: AsyncIterator[Message | Unreadable]) -> AsyncIterator[Message]:
    async for request in requests:
        yield _read(name, request)


def _decoder(message: type[Message]) -> Callable[[bytes], Message | Unreadable]:
    """Not FromString itself: gRPC would answer INTERNAL and log a traceback for what is the caller's mistake."""

    def decode(raw: bytes) -> Message | Unreadable:
        try:
            return message.FromString(raw)
        except DecodeError as error:
            return Unreadable(str(error))

    return decode


def encode(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
