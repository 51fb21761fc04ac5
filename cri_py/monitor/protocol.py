"""Frames between daemon, spawner and monitor: JSON in one packet of a SOCK_SEQPACKET socket. Pure.

A request carries ``op`` and ``seq``; its one answer repeats ``seq`` with ``ok`` or ``error``. What happens by itself
is an ``event``. A body too large for a packet travels in a memfd beside the frame ``{"memfd": true}``.

Requests to a monitor and what they answer (times in Unix ns)::

    hello    {}                                     → {version, pid, holder, containers: {id: state}}
    hold     holder.spawn's request, fd: netns      → {holder}
    create   container.create's request + log, line_bytes, stdin, stdin_once, own_pids → {user, notes}
    start    {id}                                   → {pid, ticks, started_at}
    kill     {id, signal, all}                      → {}
    exec     {id, name, process, user, seccomp}, fds: stdin, stdout, stderr → {code} once it has ended
    kill_exec {id, name}                            → {}
    reopen   {id}                                   → {}
    abandon  {id}                                   → {} once it has ended and is forgotten
    end      {}                                     → the monitor kills its holder and goes

Events: ``exit`` {id, code, started_at, finished_at, oom, error, dropped}, ``holder_exit`` {}.
A container's state: {state: created|running|exited, pid, ticks, started_at, user} and, exited, what ``exit`` has.
"""

from __future__ import annotations

import json
from typing import Any, Final

VERSION: Final = 1
PACKET_BYTES: Final = 64 << 10
MEMFD: Final = b'{"memfd":true}'


def encode(message: dict[str, Any]) -> bytes:
    """One frame. Text that is not UTF-8 (paths, environment) survives as surrogates, escaped by JSON."""
    return json.dumps(message, separators=(",", ":")).encode()


def decode(frame: bytes) -> dict[str, Any]:
    """The message of a frame. Raises ValueError for what is none."""
    message = json.loads(frame)
    if not isinstance(message, dict):
        raise ValueError(f"a frame must be an object, not {type(message).__name__}")  # noqa: TRY004 - one error
    return message


def answer(seq: int, result: dict[str, Any]) -> dict[str, Any]:
    return {"seq": seq, "ok": result}


def refusal(seq: int, kind: str, text: str) -> dict[str, Any]:
    """``kind``: start (the program can't be executed), state (wrong moment), missing, failed."""
    return {"seq": seq, "error": text, "kind": kind}
