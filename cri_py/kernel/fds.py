"""Descriptors that come over a socket."""

from __future__ import annotations

import array
import socket

_FD_BYTES = 4
_HEADER_BYTES = socket.CMSG_LEN(0)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)


def receive(connection: socket.SocketType, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """The next packet and its descriptors, close-on-exec, which the caller owns; ``flags`` are recv(2)'s.

    ``socket.recv_fds`` does the same but lets go of the flags that it is given, MSG_CMSG_CLOEXEC with them (CPython
    3.11 to 3.13): for a moment at least every fork and exec would inherit what has come.
    """
    body, ancillary, _, _ = connection.recvmsg(size, _HEADER_BYTES + most * _FD_BYTES, _CLOEXEC | flags)
    if not ancillary:
        return body, []
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return body, list(fds)
