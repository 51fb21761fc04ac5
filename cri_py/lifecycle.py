"""Which state may follow which. Nothing else decides that.

A new state or a new move is a change of these two tables first.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cri_py.errors import FailedPrecondition
from cri_py.model import (
    ContainerState,
    Created,
    Exited,
    Lost,
    NotReady,
    Ready,
    Running,
    SandboxState,
)

CONTAINER_FOLLOWS: Final[Mapping[type, frozenset[type]]] = MappingProxyType(
    {
        Created: frozenset({Running, Exited, Lost}),
        Running: frozenset({Exited, Lost}),
        Lost: frozenset({Running, Exited}),
        Exited: frozenset(),
    }
)

SANDBOX_FOLLOWS: Final[Mapping[type, frozenset[type]]] = MappingProxyType(
    {
        Ready: frozenset({NotReady}),
        NotReady: frozenset(),
    }
)


def advance_container(current: ContainerState, following: ContainerState, subject: str) -> ContainerState:
    """Return ``following`` if it may follow ``current``.

    Raises FailedPrecondition that names ``subject`` (the container, as a person would) and both states.
    """
    if type(following) not in CONTAINER_FOLLOWS[type(current)]:
        raise FailedPrecondition(f"{subject} is {word(current)} and can't become {word(following)}")
    return following


def advance_sandbox(current: SandboxState, following: SandboxState, subject: str) -> SandboxState:
    """Return ``following`` if it may follow ``current``; raises FailedPrecondition otherwise."""
    if type(following) not in SANDBOX_FOLLOWS[type(current)]:
        raise FailedPrecondition(f"{subject} is {word(current)} and can't become {word(following)}")
    return following


def word(state: ContainerState | SandboxState) -> str:
    """The state's name as it stands in messages: ``created``, ``running``, ``exited``, ``lost`` …"""
    return type(state).__name__.lower()
