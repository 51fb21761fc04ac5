"""Any sequence of moves keeps the lifecycle's promises; any sequence of commits and restarts keeps the records."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cri_py import lifecycle
from cri_py.errors import FailedPrecondition
from cri_py.model import ContainerState, Created, Exited, Lost, Nanos, Running
from cri_py.state.store import Change, Delete, Put, Store

kinds = st.sampled_from(["sandbox", "container"])
keys = st.sampled_from(["a", "b", "c", "é", ""])
changes = st.one_of(
    st.builds(Put, kinds, keys, st.binary(max_size=50), st.binary(max_size=50), st.integers(1, 3)),
    st.builds(Delete, kinds, keys),
)


class Records(RuleBasedStateMachine):
    """The store beside a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = str(Path(self.directory.name) / "records.db")
        self.loop = asyncio.new_event_loop()
        self.store = Store(self.path, durable=False)
        self.expected: dict[tuple[str, str], Put] = {}

    def apply(self, change: Change) -> None:
        self.expected.pop((change.kind, change.key), None)
        if isinstance(change, Put):
            self.expected[change.kind, change.key] = change

    @rule(commit=st.lists(changes, max_size=5))
    def one_commit(self, commit: list[Change]) -> None:
        self.loop.run_until_complete(self.store.commit(*commit))
        for change in commit:
            self.apply(change)

    @rule(commits=st.lists(st.lists(changes, max_size=3), max_size=5))
    def many_at_once(self, commits: list[list[Change]]) -> None:
        """They are recorded in the order in which they were asked for."""

        async def ask() -> None:
            await asyncio.gather(*(self.store.commit(*commit) for commit in commits))

        self.loop.run_until_complete(ask())
        for change in (change for commit in commits for change in commit):
            self.apply(change)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store(self.path, durable=False)

    @invariant()
    def the_records_are_what_was_committed(self) -> None:
        for kind in ("sandbox", "container"):
            wanted = sorted((put for put in self.expected.values() if put.kind == kind), key=lambda put: put.key)
            assert self.store.load(kind) == wanted

    def teardown(self) -> None:
        self.store.close()
        self.loop.close()
        self.directory.cleanup()


nanos = st.integers(1, 10).map(Nanos)
states = st.one_of(
    st.just(Created()),
    st.builds(Running, st.integers(1, 9), st.integers(1, 9), nanos),
    st.builds(Exited, st.integers(0, 255), nanos, nanos, st.just("Error")),
    st.builds(Lost, nanos, nanos, st.just("monitor died")),
)


class Life(RuleBasedStateMachine):
    """A container to which anything may be reported, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state: ContainerState = Created()
        self.ended: Exited | None = None
        self.left_created = False

    @rule(following=states)
    def report(self, following: ContainerState) -> None:
        try:
            self.state = lifecycle.advance_container(self.state, following, "c")
        except FailedPrecondition:
            return
        self.left_created = True
        if isinstance(self.state, Exited):
            self.ended = self.ended or self.state

    @invariant()
    def an_exit_is_final(self) -> None:
        assert self.ended is None or self.state is self.ended

    @invariant()
    def nothing_is_created_twice(self) -> None:
        assert isinstance(self.state, Created) != self.left_created


TestRecords = Records.TestCase
TestRecords.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestLife = Life.TestCase
TestLife.settings = settings(max_examples=200, deadline=None)
