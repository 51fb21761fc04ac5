"""Records survive what they should, a burst is one transaction, and a bad change harms no other."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri_py.errors import Internal
from cri_py.state import migrations
from cri_py.state import store as store_module
from cri_py.state.store import Delete, Put, Store
from tests.leaks import open_descriptors


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "records.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    opened = Store(path, durable=False)
    yield opened
    opened.close()


def put(key: str, body: bytes = b"{}") -> Put:
    return Put("container", key, body)


class Disk:
    """The database's connection, with a record of transactions and a way to fail or to wait."""

    def __init__(self, store: Store) -> None:
        self._connection = store._connection
        self.begun: list[str] = []
        self.fail_on = ""  # a key that can't be written
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        store._connection = self  # type: ignore[assignment]  # it has what the writer uses

    def execute(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        if statement.startswith("BEGIN"):
            self.begun.append(statement)
            self.entered.set()
            self.gate.wait(10)
        if self.fail_on and self.fail_on in parameters:
            raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(statement, parameters)

    def __enter__(self) -> None:
        self._connection.__enter__()

    def __exit__(self, *error: object) -> object:
        return self._connection.__exit__(*error)  # type: ignore[call-overload]

    def close(self) -> None:
        self._connection.close()


# ---------------------------------------------------------------- contents


async def test_a_record_comes_back_as_it_was_put(path: str, store: Store) -> None:
    record = Put("sandbox", "a", b'{"x":1}', verbatim=b"\x00\xff", version=3)
    await store.commit(record)
    assert store.load("sandbox") == [record]


async def test_records_are_listed_by_kind_in_the_order_of_their_keys(store: Store) -> None:
    await store.commit(put("b"), put("a"), Put("sandbox", "c", b""))
    assert [record.key for record in store.load("container")] == ["a", "b"]
    assert store.load("nothing") == []


async def test_a_later_put_replaces_an_earlier_one(store: Store) -> None:
    await store.commit(put("a", b"1"))
    await store.commit(put("a", b"2"))
    assert store.load("container") == [put("a", b"2")]


async def test_deleting_a_missing_record_succeeds(store: Store) -> None:
    await store.commit(Delete("container", "none"))
    await store.commit(put("a"), Delete("container", "a"))
    assert store.load("container") == []


@pytest.mark.parametrize("durable", [False, True])
async def test_records_are_there_after_a_restart(path: str, durable: bool) -> None:
    first = Store(path, durable=durable)
    await first.commit(put("a"))
    first.close()
    second = Store(path, durable=durable)
    assert second.load("container") == [put("a")]
    second.close()


async def test_a_commit_is_there_for_another_process_at_once(path: str, store: Store) -> None:
    """As after SIGKILL: nobody closed the database."""
    await store.commit(put("a"))
    other = Store(path, durable=False)
    assert other.load("container") == [put("a")]
    other.close()


def test_closing_writes_what_was_asked_for(path: str) -> None:
    async def ask() -> None:
        store = Store(path, durable=False)
        disk = Disk(store)
        disk.gate.clear()
        asked = [asyncio.create_task(store.commit(put(f"{number:02}"))) for number in range(20)]
        await asyncio.sleep(0)
        disk.gate.set()
        await asyncio.to_thread(store.close)
        await asyncio.gather(*asked)

    asyncio.run(ask())
    reopened = Store(path, durable=False)
    assert len(reopened.load("container")) == 20
    reopened.close()


# ------------------------------------------------------------ transactions


async def test_a_burst_pays_one_commit(store: Store) -> None:
    disk = Disk(store)
    disk.gate.clear()
    first = asyncio.create_task(store.commit(put("first")))
    await asyncio.to_thread(disk.entered.wait, 60)  # the writer is busy with the first
    burst = [asyncio.create_task(store.commit(put(f"{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    disk.gate.set()
    await asyncio.gather(first, *burst)
    assert len(disk.begun) == 2
    assert len(store.load("container")) == 51


async def test_all_changes_of_a_commit_are_made_or_none(store: Store) -> None:
    disk = Disk(store)
    disk.fail_on = "bad"
    with pytest.raises(Internal):
        await store.commit(put("good"), put("bad"))
    assert store.load("container") == []


async def test_a_change_that_fails_harms_no_other_of_its_burst(store: Store) -> None:
    disk = Disk(store)
    disk.fail_on = "bad"
    disk.gate.clear()
    asked = [asyncio.create_task(store.commit(put(key))) for key in ("a", "b", "bad", "c")]
    await asyncio.sleep(0)
    disk.gate.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), Internal, type(None)]
    assert [record.key for record in store.load("container")] == ["a", "b", "c"]


async def test_a_failure_names_the_file_the_cause_and_the_way_out(path: str, store: Store) -> None:
    Disk(store).fail_on = "bad"
    with pytest.raises(Internal) as failed:
        await store.commit(put("bad"))
    assert str(failed.value) == f"{path} could not be written: database or disk is full (is the disk full?)"


async def test_the_store_works_on_after_a_failure(store: Store) -> None:
    disk = Disk(store)
    disk.fail_on = "bad"
    with pytest.raises(Internal):
        await store.commit(put("bad"))
    await store.commit(put("good"))
    assert [record.key for record in store.load("container")] == ["good"]


async def test_who_waits_for_a_disk_that_hangs_is_told_and_what_was_not_begun_stays_away(path: str) -> None:
    store = Store(path, durable=False, commit_s=0.05)
    disk = Disk(store)
    disk.gate.clear()
    begun = asyncio.create_task(store.commit(put("begun")))
    await asyncio.to_thread(disk.entered.wait, 60)
    for failed in await asyncio.gather(begun, store.commit(put("waiting")), return_exceptions=True):
        assert isinstance(failed, Internal)
        assert str(failed) == f"{path} could not be written: the disk has not taken it for 0.05 s (does the disk hang?)"
    disk.gate.set()
    store._commit_s = 60  # for a disk that does not hang
    await store.commit(put("later"))
    assert [record.key for record in store.load("container")] == ["begun", "later"]
    store.close()


async def test_closing_does_not_wait_for_ever_for_a_disk_that_hangs(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CLOSE_S", 0.05)
    opened = Store(path, durable=False, commit_s=0.05)
    disk = Disk(opened)
    disk.gate.clear()
    with pytest.raises(Internal):
        await opened.commit(put("a"))
    await asyncio.to_thread(opened.close)
    disk.gate.set()
    await asyncio.to_thread(opened._thread.join, 60)
    disk.close()


async def test_what_a_cancelled_caller_asked_for_is_recorded(store: Store) -> None:
    disk = Disk(store)
    disk.gate.clear()
    asked = asyncio.create_task(store.commit(put("a")))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    disk.gate.set()
    await store.commit(put("b"))
    assert [record.key for record in store.load("container")] == ["a", "b"]


# ------------------------------------------------------------------ layout


@pytest.mark.parametrize(("durable", "synchronous"), [(False, 1), (True, 2)])
def test_the_file_is_in_wal_mode_and_as_durable_as_asked(path: str, durable: bool, synchronous: int) -> None:
    store = Store(path, durable=durable)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    store.close()


def test_a_file_of_a_newer_cri_py_is_refused_and_left_alone(path: str) -> None:
    Store(path, durable=False).close()
    newer = len(migrations.STEPS) + 1
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    before = len(open_descriptors())
    with pytest.raises(Internal, match=f"has layout {newer}, this version knows up to {newer - 1}"):
        Store(path, durable=False)
    assert len(open_descriptors()) == before  # it is closed again
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (newer,)
    connection.close()


async def test_an_older_file_is_brought_to_the_newest_layout(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Store(path, durable=False)
    await old.commit(put("a"))
    old.close()
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, "CREATE TABLE later (x)"))
    new = Store(path, durable=False)
    assert new.load("container") == [put("a")]
    assert new._connection.execute("SELECT * FROM later").fetchall() == []
    new.close()


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_no_database_is_refused_with_the_way_out(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(Internal, match="move it away to start empty"):
        Store(path, durable=False)
    assert Path(path).read_bytes() == content


def test_a_damaged_file_is_refused_with_its_name(path: str) -> None:
    Store(path, durable=False).close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    opened = Store(path, durable=False)
    try:
        with pytest.raises(Internal, match=r"records\.db can't be read"):
            opened.load("container")
    finally:
        opened.close()
