"""A token opens one session, once, within a minute."""

from __future__ import annotations

import pytest

from cri_py.errors import ResourceExhausted
from cri_py.model import SandboxId, StreamKind, StreamRequest
from cri_py.streaming.sessions import LIFE_S, Sessions

REQUEST = StreamRequest(StreamKind.PORT_FORWARD, SandboxId("a" * 64))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_token_opens_its_session_once(clock: Clock) -> None:
    sessions = Sessions(clock)
    token = sessions.open(REQUEST)
    assert sessions.take(token) is REQUEST
    assert sessions.take(token) is None


def test_tokens_are_short_and_differ(clock: Clock) -> None:
    sessions = Sessions(clock)
    tokens = {sessions.open(REQUEST) for _ in range(1000)}
    assert len(tokens) == 1000
    assert {len(token) for token in tokens} == {16}


def test_a_wrong_token_opens_nothing(clock: Clock) -> None:
    sessions = Sessions(clock)
    sessions.open(REQUEST)
    assert sessions.take("wrong") is None
    assert len(sessions) == 1


def test_a_token_expires(clock: Clock) -> None:
    sessions = Sessions(clock)
    early = sessions.open(REQUEST)
    clock.now += LIFE_S - 1
    late = sessions.open(REQUEST)
    clock.now += 1
    assert sessions.take(early) is None
    assert sessions.take(late) is REQUEST


def test_no_more_than_so_many_clients_are_awaited_and_expired_ones_make_room(clock: Clock) -> None:
    sessions = Sessions(clock, most=2)
    for _ in range(2):
        sessions.open(REQUEST)
    with pytest.raises(ResourceExhausted, match="2 streaming sessions"):
        sessions.open(REQUEST)
    clock.now += LIFE_S
    sessions.open(REQUEST)
    assert len(sessions) == 1
