"""sd_notify(3): tell the service manager how the daemon is. One datagram to the socket that it named."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send ``state`` (``READY=1``, ``STOPPING=1``, ``STATUS=…``); several are separated by newlines.

    Returns False if nobody asked (no NOTIFY_SOCKET) or nobody listens: a daemon runs as well without being watched.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace (unix(7))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError:
        return False
    return True
