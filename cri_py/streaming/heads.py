"""The head of a client's request, read by h11 without I/O, and what stands after it already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import h11

from cri_py.wire.negotiation import Refusal, refuse

HEAD_BYTES: Final = 32 << 10


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names in lower case, in order
    rest: bytes  # what the client has sent beyond it


class Refused(Exception):
    """The client gets this refusal and nothing else."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class HeadReader:
    """One head of at most HEAD_BYTES. h11 knows what a name and a value may hold."""

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._received = 0

    def receive(self, received: bytes) -> Head | None:
        """None as long as more is needed. Raises Refused for what is no head, or too long a one."""
        self._received += len(received)
        try:
            self._parser.receive_data(received)
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(refuse(error.error_status_hint, str(error))) from error
        if not isinstance(event, h11.Request):
            return None
        rest, _ = self._parser.trailing_data
        size = self._received - len(rest)
        if size > HEAD_BYTES:  # h11 looks only at heads that are not complete yet
            raise Refused(refuse(431, f"the head has {size} bytes, at most {HEAD_BYTES} are taken"))
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
        return Head(event.method.decode(), event.target.decode("latin-1"), headers, bytes(rest))
