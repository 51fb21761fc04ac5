"""TLS taken off: bytes between a client's encrypted connection and a socket pair whose other end the monitor has."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final, NamedTuple

import structlog

_READ_BYTES: Final = 64 << 10
_CLOSE_S: Final = 60.0  # what a client has to take the last bytes in, and to say good-bye

log = structlog.get_logger()


class Client(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def accept(connection: socket.socket, context: ssl.SSLContext, timeout_s: float) -> Client:
    """Shake hands. The connection is the client's from now on, or closed. Raises OSError if that fails."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_READ_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=context,
            ssl_handshake_timeout=timeout_s,
            ssl_shutdown_timeout=_CLOSE_S,
        )
    except BaseException:
        connection.close()
        raise
    return Client(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


async def run(client: Client, plain: socket.socket) -> None:
    """Until both sides have ended, or one has broken. Owns both."""
    plain.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=plain, limit=_READ_BYTES)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(client.reader, writer))
            tasks.create_task(_pump(reader, client.writer))
    except* (OSError, EOFError) as group:
        log.debug("a streaming session over TLS was cut", cause=str(group.exceptions[0]))
    finally:
        writer.close()
        client.writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry bytes one way until the end, which is passed on, as far as TLS can tell of one."""
    while data := await source.read(_READ_BYTES):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()
        return
    sink.close()
    await sink.wait_closed()
