"""Hears from the kernel when somebody else removes rules of ours: ``nft flush ruleset``, a firewall's restart.

nf_tables tells of every transaction to whoever listens to NFNLGRP_NFTABLES (linux/netfilter/nf_tables.h): a message per
change in the order of the changes, and at last one of the new generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Set
from typing import Final

import structlog

from cri_py.network.netlink import NETLINK_NETFILTER, attributes

log = structlog.get_logger()

_NFNLGRP_NFTABLES: Final = 7
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE: Final = 0
_NEWGEN: Final = 15
_REMOVALS: Final = frozenset({2, 5, 8, 11, 14})  # of a table, chain, rule, set, element
_TABLE: Final = 1  # the attribute that names the table, in all of these messages
_HEADER: Final = struct.Struct("=IHHII")
_NFGENMSG_BYTES: Final = 4
_READ_BYTES: Final = 1 << 17
_QUIET_S: Final = 0.1  # who flushes often writes rules of his own next


class Transactions:
    """What became of our tables, message by message. Pure."""

    def __init__(self, tables: Set[str]) -> None:
        self._tables = tables
        self._damaged: set[tuple[int, str]] = set()  # in the transaction that is being told

    def hear(self, datagram: bytes) -> frozenset[str]:
        """The names of the tables that lost something in the transactions which ended in this datagram.

        A table that was made anew after that is whole: so every change of ours looks, which replaces its table.
        """
        lost: set[str] = set()
        offset = 0
        while offset + _HEADER.size <= len(datagram):
            size, kind, *_ = _HEADER.unpack_from(datagram, offset)
            if size < _HEADER.size:
                break
            if kind >> 8 == _SUBSYSTEM:
                self._note(kind & 0xFF, datagram[offset + _HEADER.size : offset + size], lost)
            offset += (size + 3) & ~3
        return frozenset(lost)

    def _note(self, kind: int, body: bytes, lost: set[str]) -> None:
        if kind == _NEWGEN:
            lost |= {name for _, name in self._damaged}
            self._damaged.clear()
            return
        name = attributes(body, _NFGENMSG_BYTES).get(_TABLE, b"").rstrip(b"\0").decode(errors="replace")
        if name not in self._tables:
            return
        table = (body[0], name)  # the family: ip, ip6 and inet have a table of one name each
        if kind in _REMOVALS:
            self._damaged.add(table)
        elif kind == _NEWTABLE:
            self._damaged.discard(table)


class Flushes:
    """Calls ``restore`` with the tables that lost something. Belongs to one event loop."""

    def __init__(self, tables: Set[str], restore: Callable[[Set[str]], Awaitable[None]]) -> None:
        self._tables = tables
        self._transactions = Transactions(tables)
        self._restore = restore
        self._lost: set[str] = set()
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen from now on; where the kernel has no such group, what is flushed stays so until the next change."""
        listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
        try:
            listening.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        except OSError as error:
            listening.close()
            log.warning("rules that somebody flushes are not restored", cause=str(error))
            return
        self._socket = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._hear)

    async def stop(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _hear(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    self._lost |= self._transactions.hear(self._socket.recv(_READ_BYTES))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._lost |= self._tables  # more was told than the socket holds: anything may have happened
        if self._lost and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._put_back())

    async def _put_back(self) -> None:
        while self._lost:
            await asyncio.sleep(_QUIET_S)
            lost, self._lost = self._lost, set()
            await self._restore(lost)
