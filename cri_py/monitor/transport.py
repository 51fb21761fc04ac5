"""Frames over a SOCK_SEQPACKET socket with descriptors beside them; both ends use it."""

from __future__ import annotations

import os
import socket
from typing import Any

from cri_py.kernel.fds import receive as receive_fds
from cri_py.monitor import protocol

_MOST_FDS = 8


def send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one frame. Raises BlockingIOError on a full non-blocking socket, OSError on a broken one."""
    frame = protocol.encode(message)
    if len(frame) <= protocol.PACKET_BYTES:
        socket.send_fds(connection, [frame], fds)
        return
    body = os.memfd_create("frame", os.MFD_CLOEXEC)
    try:
        view = memoryview(frame)
        while view:
            view = view[os.write(body, view) :]
        socket.send_fds(connection, [protocol.MEMFD], (*fds, body))
    finally:
        os.close(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next frame and its descriptors, which the caller owns; (None, []) at the end."""
    frame, fds = receive_fds(connection, protocol.PACKET_BYTES, _MOST_FDS)
    if not frame:
        for fd in fds:
            os.close(fd)
        return None, []
    if frame == protocol.MEMFD:
        body = fds.pop()
        try:
            frame = os.pread(body, os.fstat(body).st_size, 0)
        finally:
            os.close(body)
    return protocol.decode(frame), fds
