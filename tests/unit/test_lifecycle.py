"""The two tables of what may follow what, read back through the functions that obey them."""

from __future__ import annotations

import typing
from itertools import product

import pytest

from cri_py import lifecycle
from cri_py.errors import FailedPrecondition
from cri_py.model import ContainerState, Created, Exited, Lost, Nanos, NotReady, Ready, Running, SandboxState

CONTAINER = {
    Created: Created(),
    Running: Running(pid=7, start_ticks=1, started_at=Nanos(1)),
    Exited: Exited(code=0, started_at=Nanos(1), finished_at=Nanos(2), reason="Completed"),
    Lost: Lost(started_at=Nanos(1), finished_at=Nanos(2), reason="monitor died"),
}
SANDBOX = {Ready: Ready(monitor_pid=1, holder_pid=2), NotReady: NotReady(stopped_at=Nanos(1), reason="stopped")}

ALLOWED = {
    *((Created, Running), (Created, Exited), (Created, Lost), (Running, Exited), (Running, Lost)),
    *((Lost, Running), (Lost, Exited)),
}


@pytest.mark.parametrize(("current", "following"), list(product(CONTAINER, CONTAINER)))
def test_a_container_moves_as_its_table_says_and_no_other_way(current: type, following: type) -> None:
    if (current, following) in ALLOWED:
        assert lifecycle.advance_container(CONTAINER[current], CONTAINER[following], "c") is CONTAINER[following]
        return
    with pytest.raises(FailedPrecondition) as refused:
        lifecycle.advance_container(CONTAINER[current], CONTAINER[following], "container web")
    words = (lifecycle.word(CONTAINER[current]), lifecycle.word(CONTAINER[following]))
    assert str(refused.value) == "container web is {} and can't become {}".format(*words)


@pytest.mark.parametrize(("current", "following"), list(product(SANDBOX, SANDBOX)))
def test_a_sandbox_only_becomes_not_ready(current: type, following: type) -> None:
    if (current, following) == (Ready, NotReady):
        assert lifecycle.advance_sandbox(SANDBOX[current], SANDBOX[following], "s") is SANDBOX[following]
        return
    with pytest.raises(FailedPrecondition, match="sandbox web is"):
        lifecycle.advance_sandbox(SANDBOX[current], SANDBOX[following], "sandbox web")


def test_the_tables_name_every_state() -> None:
    assert set(lifecycle.CONTAINER_FOLLOWS) == set(typing.get_args(ContainerState)) == set(CONTAINER)
    assert set(lifecycle.SANDBOX_FOLLOWS) == set(typing.get_args(SandboxState)) == set(SANDBOX)


def test_nothing_follows_the_end() -> None:
    assert not lifecycle.CONTAINER_FOLLOWS[Exited]
    assert not lifecycle.SANDBOX_FOLLOWS[NotReady]


def test_states_are_called_by_their_names() -> None:
    assert [lifecycle.word(state) for state in CONTAINER.values()] == ["created", "running", "exited", "lost"]
