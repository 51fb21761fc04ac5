"""What a session says to the stream process and takes from it, the same over every transport.

A *lane* is one conversation of a session: of a remote command STDIN, STDOUT, STDERR, ERROR and RESIZE from
``channels``; of a port-forward one forwarded connection, with a number that Opened gives.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol, TypeAlias

from cri_py.wire.channels import Buffer, Outcome
from cri_py.wire.violation import ProtocolError

MOST_HELD: Final = 256 << 10
MOST_SENT: Final = (1 << 24) - 1  # bytes of one send; SPDY has 24 bits for them


class Ready(NamedTuple):
    """A remote command has all the streams that it was asked for: now the process may start. Comes once."""


class Opened(NamedTuple):
    """A connection to ``port`` of the pod is to be forwarded, as ``lane``."""

    lane: int
    port: int


class Received(NamedTuple):
    """Bytes from the client. The payload may be a view of what ``receive`` was given."""

    lane: int
    payload: Buffer


class HalfClosed(NamedTuple):
    """The client sends nothing more on ``lane``."""

    lane: int


class Dropped(NamedTuple):
    """The client neither sends nor takes anything on ``lane`` any more."""

    lane: int


class Resized(NamedTuple):
    """The client's terminal has this size, neither of them zero."""

    columns: int
    rows: int


class Gone(NamedTuple):
    """The last event: the client has left, or broke a rule, which ``error`` names. What is in ``pieces`` may still be
    sent, then the connection ends."""

    error: ProtocolError | None


Event: TypeAlias = Ready | Opened | Received | HalfClosed | Dropped | Resized | Gone


class Session(Protocol):
    """One client's connection after the answer to its request.

    Call ``receive`` at once with what was read beyond the request's head, b"" too. After every call send what
    ``pieces`` has. Read from the client while ``wants_input``, write what Received brings where it belongs, then call
    ``consumed``: that bounds what is held to 64 KiB by a peer that keeps windows, and to 256 KiB and
    one read for others, who know no bound but TCP's. Stop reading, too, while much is unsent: answers to pings come
    as fast as pings. Nothing here blocks, and nothing raises but ProtocolError for a command that may not be given.
    """

    @property
    def splices(self) -> bool:
        """Whether ``send_header`` can be used: payloads go out as they are."""

    @property
    def wants_input(self) -> bool:
        """Whether the client should be read from: not while MOST_HELD bytes wait to be consumed."""

    @property
    def gone(self) -> bool:
        """Whether the session is over, by either side."""

    def receive(self, received: Buffer) -> list[Event]:
        """What the client said, in order. It never raises: a broken rule is Gone with its error."""

    def receive_eof(self) -> list[Event]:
        """The client's end of the connection was read; Gone, with an error if it was within a frame."""

    def pieces(self) -> list[Buffer]:
        """What has to be sent, in order, for sendmsg. Taken once; nothing may come between them."""

    def consumed(self, lane: int, size: int) -> None:
        """``size`` bytes of Received on ``lane`` are where they belong."""

    def room(self, lane: int) -> int:
        """How many bytes ``lane`` takes now, at most MOST_SENT; 0 if it has no room, or is closed."""

    def send(self, lane: int, payload: Buffer) -> None:
        """Send one frame. ``payload`` is not copied where that can be avoided: leave it alone until it is sent."""

    def send_header(self, lane: int, size: int) -> None:
        """Begin a frame whose ``size`` bytes the caller sends right after ``pieces``, by splice(2) for one."""

    def close(self, lane: int) -> None:
        """Nothing more is sent on ``lane``. Again is nothing."""

    def leave(self) -> None:
        """End the session. Send ``pieces``, shut down writing, and read until the client ends or some seconds passed:
        a socket that is closed with bytes unread resets the connection, and what the client didn't read yet is lost."""


class Command(Session, Protocol):
    """An exec or attach."""

    def finish(self, outcome: Outcome) -> None:
        """Tell how the process ended, when all of its output was sent, and leave. Takes up to 16 KiB of room on ERROR;
        raises ProtocolError if a peer that keeps windows has none."""


class Forward(Session, Protocol):
    """A port-forward."""

    def fail(self, lane: int, text: str) -> None:
        """Tell the client why ``lane`` can't go on, for a person; ``end`` it then."""

    def end(self, lane: int) -> None:
        """``lane`` is over in both directions; what still comes on it is dropped. Needed for each lane that was opened,
        also after Dropped and after both sides have closed: clients wait for it."""
