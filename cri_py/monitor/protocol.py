"""Frames between daemon, spawner and monitor: words that are separated by NUL, then a JSON body. Pure.

::

    request   OP NUL SEQ NUL WORD NUL … NUL BODY
    answer    SEQ NUL "ok" NUL BODY, or SEQ NUL KIND NUL text of the error
    event     "0" NUL NAME NUL BODY

A request's words are what the monitor itself needs; the body is for the child that it forks, and only that child
parses it. A monitor lives as long as its pod, and whatever it parses or builds leaves pages behind that it shares with
no other process any more: a JSON encoder that ran once costs 200 kB. So the monitor splits, formats and passes on.

Each frame is one packet of a SOCK_SEQPACKET socket. What is too large for a packet travels in a memfd beside MEMFD.

Requests to a monitor and what they answer (times in Unix ns)::

    hello    {}                                     → {version, pid, holder, containers: {id: state}}
    hold     {uid_map, gid_map} + holder.Users' body, fds: the program of pods.holder_steps, the network → {holder}
    create   container.create's request + log, line_bytes, stdin, stdin_once, own_pids, later_hooks
             → {user, notes}
    start    {id}                                   → {pid, ticks, started_at}
    kill     {id, signal, all}                      → {}
    exec     {id, name}, fds: stdin, stdout, stderr, the program of pods.exec_steps → {code} once it has ended
    kill_exec {id, name}                            → {}
    stream   stream.serve's request, fds: the client, for an exec also its program → {} once it is in the hands of a
             process of its own
    reopen   {id}                                   → {}
    abandon  {id}                                   → {} once it has ended and is forgotten, {notes} of its hooks
    end      {}                                     → the same; the monitor kills its holder and goes

Events: ``up`` {pid}, ``exit`` {id, code, started_at, finished_at, oom, error, dropped}, ``holder_exit`` {},
``stream_end`` {kind, received, sent, seconds, error}.
A container's state: {state: created|running|exited, pid, ticks, started_at, user} and, exited, what ``exit`` has.
An error's kind: start (the program can't be executed), state (wrong moment), missing, invalid (what was asked), failed,
and step: the text is the number of a program's step and an errno, which the daemon puts into words.

VERSION counts what changes so much that a monitor and a later daemon misunderstand each other. ``hello`` and ``end``,
which find that out and end it, are the same in all versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from cri_py.errors import InvalidArgument
from cri_py.kernel.constants import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

VERSION: Final = 1
PACKET_BYTES: Final = 64 << 10
MEMFD: Final = b"memfd"
WORDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "hello": (),
        "hold": ("uid_map", "gid_map"),
        "create": (
            *("id", "cgroup", "log", "line_bytes", "stdin", "stdin_once", "tty", "own_pids"),
            *("new", "joined", "holder", "later_hooks"),
        ),
        "start": ("id",),
        "kill": ("id", "signal", "all"),
        "exec": ("id", "name"),
        "kill_exec": ("name",),
        "stream": ("kind", "id", "name", "stdin"),
        "reopen": ("id",),
        "abandon": ("id",),
        "end": (),
    }
)
_SPLITS: Final = {op: len(words) + 2 for op, words in WORDS.items()}
_EVENT: Final = "0"
_NAMESPACES: Final = {
    "mount": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "network": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
    "user": CLONE_NEWUSER,
}


class Request(NamedTuple):
    """A request as the monitor sees it; truth is told as ``1`` and ``0``."""

    op: str
    seq: int
    words: list[bytes]
    body: bytes


class Reply(NamedTuple):
    """An answer or, with ``seq`` 0, an event; ``word`` is ``ok``, an error's kind or the event's name."""

    seq: int
    word: str
    body: bytes

    def content(self) -> dict[str, Any]:
        """The body of an event or of an answer that is ``ok``."""
        return dict(json.loads(self.body)) if self.body else {}

    def text(self) -> str:
        """The body of an error."""
        return self.body.decode("utf-8", "surrogateescape")


def request(op: str, seq: int, fields: Mapping[str, Any]) -> bytes:
    """The frame of a request. Text that is not UTF-8 (paths, environment) survives as surrogates."""
    words = [_word(fields[name]) for name in WORDS[op]]
    rest = {name: value for name, value in fields.items() if name not in WORDS[op]}
    body = json.dumps(rest, separators=(",", ":")).encode() if rest else b""
    return b"\0".join([op.encode(), b"%d" % seq, *words, body])


def parse_request(frame: bytes) -> Request:
    """Raises ValueError for what is no request."""
    op = frame[: frame.find(b"\0")].decode()
    if op not in _SPLITS:
        raise ValueError(f"there is no request {op!r}")
    _, seq, *words, body = frame.split(b"\0", _SPLITS[op])
    if len(words) + 2 != _SPLITS[op]:
        raise ValueError(f"a request {op} has {_SPLITS[op] - 2} words, not {len(words)}")
    return Request(op, int(seq), words, body)


def answer(seq: int, body: bytes = b"") -> bytes:
    """``body``: JSON, empty for {}."""
    return b"%d\0ok\0%b" % (seq, body)


def refusal(seq: int, kind: str, text: str) -> bytes:
    return b"%d\0%b\0%b" % (seq, kind.encode(), text.encode("utf-8", "surrogateescape"))


def step_refusal(seq: int, step: int, number: int) -> bytes:
    """That a step of an exec's or a holder's program failed with this errno."""
    return b"%d\0step\0%d %d" % (seq, step, number)


def event(name: bytes, body: bytes = b"") -> bytes:
    """``body``: JSON, empty for {}."""
    return b"0\0%b\0%b" % (name, body)


def parse_reply(frame: bytes) -> Reply:
    """Raises ValueError for what is neither an answer nor an event."""
    seq, word, body = frame.split(b"\0", 2)
    return Reply(int(seq), word.decode(), body)


def namespace_words(namespaces: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """``linux.namespaces`` of an OCI document as ``create`` has them: ``new``, flags of those that are made;
    ``joined``, flags of those that are the pod's; ``holder``, whose they are, from the path /proc/PID/ns/NAME;
    ``own_pids``, whether the end of pid 1 is the end of all."""
    words = {"new": 0, "joined": 0, "holder": 0, "own_pids": {"type": "pid"} in namespaces}
    for entry in namespaces:
        if path := entry.get("path", ""):
            words["joined"] |= _NAMESPACES[entry["type"]]
            words["holder"] = int(path.split("/")[2])
        else:
            words["new"] |= _NAMESPACES[entry["type"]]
    return words


def _word(value: str | int) -> bytes:
    text = str(int(value)) if isinstance(value, int) else value
    if "\0" in text:
        raise InvalidArgument(f"{text!r} holds a NUL, which no path and no name can")
    return text.encode("utf-8", "surrogateescape")
