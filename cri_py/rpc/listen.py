"""Addresses to listen on, and unix sockets that belong to one server at a time."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from dataclasses import dataclass
from typing import Final

from cri_py.errors import ConfigError, FailedPrecondition, PermissionDenied

MAX_UNIX_PATH: Final = 107  # sun_path less its NUL (unix(7))
SOCKET_MODE: Final = 0o660


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int  # 0: any that is free

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_address(text: str, key: str) -> Address:
    """Read ``unix:///path``, ``/path``, ``tcp://host:port`` or ``host:port``. Raises ConfigError that names ``key``."""
    path = text.removeprefix("unix://")
    if path.startswith("/"):
        if len(os.fsencode(path)) > MAX_UNIX_PATH:
            raise ConfigError(
                f"{key}: {path} has {len(os.fsencode(path))} bytes, a unix socket's path at most {MAX_UNIX_PATH}",
                hint="use a shorter directory",
            )
        return UnixAddress(path)
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535 or "/" in host:
        raise ConfigError(f"{key} is {text!r}", hint="use unix:///absolute/path or tcp://host:port")
    return TcpAddress(host.strip("[]"), int(port))


def make_way(address: UnixAddress) -> None:
    """Prepare for a bind: make the directory, remove a socket that nobody listens on any more.

    gRPC and asyncio remove whatever socket is there, also one in use, and two daemons would share one state directory.
    Raises FailedPrecondition if somebody listens or the path is no socket.
    """
    os.makedirs(os.path.dirname(address.path), exist_ok=True)
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FailedPrecondition(f"{address.path} exists and is no socket", hint="move it away")
    if _somebody_listens(address.path):
        raise FailedPrecondition(
            f"another process listens on {address.path}", hint="stop it, or give this one another --listen and --state"
        )
    os.unlink(address.path)


def restrict(address: UnixAddress, group: str) -> None:
    """Let root and ``group`` (name or number, "" for root's) use the socket, and nobody else.

    Between bind and this the mode is 0777 less the umask: nobody but root may connect, which needs the right to write.
    """
    gid = group_id(group)
    try:
        os.chown(address.path, -1, gid)
        os.chmod(address.path, SOCKET_MODE)
    except PermissionError as error:
        raise PermissionDenied(f"{address.path} can't be given to group {group or gid}: {error.strerror}") from error


def group_id(group: str) -> int:
    """The number of a group; "" is the group that this process runs as. Raises ConfigError if there is none."""
    if not group:
        return os.getegid()
    if group.isascii() and group.isdigit():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfigError(f"server.socket_group is {group!r}, which /etc/group lacks", hint="add the group") from None


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        failed = probe.connect_ex(path)
    # EAGAIN: its queue of waiting connections is full, so it has one.
    return failed in {0, errno.EAGAIN, errno.EINPROGRESS}
