"""Frames over a SOCK_SEQPACKET socket with descriptors beside them; both ends use it."""

from __future__ import annotations

import os
import socket

from cri_py.kernel.fds import receive as receive_fds
from cri_py.monitor import protocol

_MOST_FDS = 8


def send(connection: socket.SocketType, frame: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send one frame. Raises BlockingIOError on a full non-blocking socket, OSError on a broken one."""
    if len(frame) > protocol.PACKET_BYTES:
        _send_large(connection, frame, fds)
    elif fds:
        socket.send_fds(connection, [frame], fds)  # type: ignore[arg-type]  # it uses sendmsg alone
    else:
        connection.send(frame)


def _send_large(connection: socket.SocketType, frame: bytes, fds: tuple[int, ...]) -> None:
    body = os.memfd_create("frame", os.MFD_CLOEXEC)
    try:
        view = memoryview(frame)
        while view:
            view = view[os.write(body, view) :]
        socket.send_fds(connection, [protocol.MEMFD], (*fds, body))  # type: ignore[arg-type]
    finally:
        os.close(body)


def receive(connection: socket.SocketType) -> tuple[bytes, list[int]]:
    """The next frame and its descriptors, which the caller owns; empty at the end."""
    frame, fds = receive_fds(connection, protocol.PACKET_BYTES, _MOST_FDS)
    if not frame:
        for fd in fds:
            os.close(fd)
        return b"", []
    if frame == protocol.MEMFD:
        body = fds.pop()
        try:
            frame = os.pread(body, os.fstat(body).st_size, 0)
        finally:
            os.close(body)
    return frame, fds
