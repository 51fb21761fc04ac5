"""Sessions that wait for their client: what an Exec, Attach or PortForward asked for, found by the token of its URL.

A token is the only proof that the client may have what the kubelet asked for, so it can't be guessed, works once, and
only for a short time (the kubelet's own server does the same, KEP-2400 calls it the streaming URL).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cri_py.errors import ResourceExhausted
from cri_py.model import StreamRequest

LIFE_S: Final = 60.0
MOST: Final = 1000
_TOKEN_BYTES: Final = 12  # 16 characters, 96 bits


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: StreamRequest
    until: float


class Sessions:
    """``clock``: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float], most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._waiting: dict[str, _Waiting] = {}  # the oldest first, which is the first to expire

    def __len__(self) -> int:
        self._expire()
        return len(self._waiting)

    def open(self, request: StreamRequest) -> str:
        """A new token for ``request``. Raises ResourceExhausted while too many clients are awaited."""
        self._expire()
        if len(self._waiting) >= self._most:
            raise ResourceExhausted(
                f"{len(self._waiting)} streaming sessions wait for their clients",
                hint=f"each is given up after {LIFE_S:.0f} s; try again later",
            )
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._waiting[token] = _Waiting(request, self._clock() + LIFE_S)
        return token

    def peek(self, token: str) -> StreamRequest | None:
        """As ``take``, and the token stays good."""
        self._expire()
        waiting = self._waiting.get(token)
        return waiting.request if waiting is not None else None

    def take(self, token: str) -> StreamRequest | None:
        """What the token stands for, once; None for one that is wrong, used or expired."""
        self._expire()
        waiting = self._waiting.pop(token, None)
        return waiting.request if waiting is not None else None

    def _expire(self) -> None:
        now = self._clock()
        for token, waiting in list(self._waiting.items()):
            if waiting.until > now:
                return
            del self._waiting[token]
