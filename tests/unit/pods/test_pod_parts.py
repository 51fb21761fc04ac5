"""The small parts of pods: events, trash, execs' collectors, monitors' events, groups' names."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cri_py import telemetry
from cri_py.cgroups import Cgroups
from cri_py.errors import DataLoss, Internal, Unavailable
from cri_py.model import Event, EventKind, Nanos, SandboxId
from cri_py.monitor import protocol, transport
from cri_py.monitor.client import MonitorClient
from cri_py.pods.bundles import read_document
from cri_py.pods.events import Events
from cri_py.pods.execs import Collector
from cri_py.pods.group_parents import GroupParents
from cri_py.pods.groups import Groups
from cri_py.pods.monitors import Monitors
from cri_py.pods.trash import Trash
from tests.simulators.kubelet import wait_for

POD = SandboxId("p")

# ------------------------------------------------------------------- events


def event(number: int) -> Event:
    return Event(str(number), EventKind.STARTED, Nanos(number))


def dropped() -> float:
    return telemetry.EVENTS_DROPPED._value.get()  # type: ignore[no-any-return]


async def test_every_subscriber_gets_every_event_in_order() -> None:
    events = Events()
    async with events.subscribe() as one, events.subscribe() as other:
        for number in range(5):
            events.publish(event(number))
        for stream in (one, other):
            assert [(await anext(stream)).at for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_a_slow_subscriber_is_told_what_it_lost_after_what_was_queued() -> None:
    events = Events(limit=3)
    before = dropped()
    async with events.subscribe() as slow, events.subscribe() as quick:
        for number in range(1, 4):
            events.publish(event(number))
        assert [(await anext(quick)).at for _ in range(3)] == [1, 2, 3]
        for number in range(4, 6):
            events.publish(event(number))
        assert events.depth() == 3
        assert [(await anext(slow)).at for _ in range(3)] == [1, 2, 3]
        events.publish(event(6))  # there is room again, but a gap before it
        with pytest.raises(DataLoss, match="3 events were lost since 1970-01-01T00:00:00"):
            await anext(slow)
        assert [(await anext(quick)).at for _ in range(3)] == [4, 5, 6]
    assert dropped() - before == 3


async def test_times_of_events_never_go_back_though_the_clock_does() -> None:
    events = Events()
    async with events.subscribe() as stream:
        for number in (5, 3, 7):
            events.publish(event(number))
        assert [(await anext(stream)).at for _ in range(3)] == [5, 5, 7]


async def test_whoever_has_left_costs_nothing() -> None:
    events = Events(limit=1)
    async with events.subscribe():
        pass
    before = dropped()
    for number in range(5):
        events.publish(event(number))
    assert (events.depth(), dropped()) == (0, before)


# -------------------------------------------------------------------- trash


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    (tmp_path / "trash").mkdir()
    return tmp_path / "trash"


def emptied(trash: Trash, directory: Path) -> None:
    wait_for(lambda: list(directory.iterdir()), lambda left: not left)
    trash.close()


def test_a_discarded_directory_is_out_of_sight_at_once_and_deleted_soon(tmp_path: Path, bin_directory: Path) -> None:
    (tmp_path / "x" / "deep").mkdir(parents=True)
    (tmp_path / "x" / "deep" / "file").write_text("")
    (tmp_path / "x" / "link").symlink_to(tmp_path)
    trash = Trash(str(bin_directory))
    trash.discard(str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    emptied(trash, bin_directory)
    assert tmp_path.exists()


def test_two_of_the_same_name_do_not_meet(tmp_path: Path, bin_directory: Path) -> None:
    trash = Trash(str(bin_directory))
    for parent in ("a", "b"):
        (tmp_path / parent / "same").mkdir(parents=True)
        (tmp_path / parent / "same" / "file").write_text("")
    for parent in ("a", "b"):
        trash.discard(str(tmp_path / parent / "same"))
    emptied(trash, bin_directory)


def test_what_is_not_there_is_fine_to_discard(tmp_path: Path, bin_directory: Path) -> None:
    trash = Trash(str(bin_directory))
    trash.discard(str(tmp_path / "missing"))
    trash.discard(str(tmp_path / "never" / "was"))
    trash.close()


def test_what_can_not_be_deleted_is_tried_again_while_the_daemon_lives(
    tmp_path: Path, bin_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mount below it in somebody's namespace keeps a directory busy until that namespace goes."""
    rmdir, refusals = os.rmdir, [errno.EBUSY, errno.EBUSY, errno.EBUSY]

    def busy(path: str) -> None:
        if path.endswith("busy") and refusals:
            raise OSError(refusals.pop(), "busy", path)
        rmdir(path)

    monkeypatch.setattr(os, "rmdir", busy)
    trash = Trash(str(bin_directory), retry_s=0.001)
    for name in ("busy", "other"):
        (tmp_path / name / "deep").mkdir(parents=True)
        trash.discard(str(tmp_path / name))
    emptied(trash, bin_directory)
    assert not refusals


def test_a_close_waits_for_no_retry(tmp_path: Path, bin_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: str) -> None:
        raise OSError(errno.EBUSY, "busy", path)

    monkeypatch.setattr(os, "rmdir", busy)
    (tmp_path / "x").mkdir()
    trash = Trash(str(bin_directory), retry_s=600.0)
    trash.discard(str(tmp_path / "x"))
    trash.close()
    assert len(list(bin_directory.iterdir())) == 1


def test_however_deep_a_container_nests_directories_they_go(tmp_path: Path, bin_directory: Path) -> None:
    """Deeper than PATH_MAX has room for, and than the interpreter's stack."""
    top = tmp_path / "x"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("ddd", dir_fd=fd)
        deeper = os.open("ddd", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    trash = Trash(str(bin_directory))
    trash.discard(str(top))
    emptied(trash, bin_directory)


def test_a_bind_mount_of_the_same_filesystem_parts_it_from_a_trash(
    tmp_path: Path, bin_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, beyond = os.rename, tmp_path / "beyond"
    beyond.mkdir()

    def parted(old: str, new: str) -> None:
        if new.startswith(f"{beyond}/"):
            raise OSError(errno.EXDEV, "Invalid cross-device link", old)
        rename(old, new)

    monkeypatch.setattr(os, "rename", parted)
    (tmp_path / "x").mkdir()
    trash = Trash(str(beyond), str(bin_directory))
    trash.discard(str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
    emptied(trash, bin_directory)


def test_what_can_not_be_moved_is_told_by_its_path(
    tmp_path: Path, bin_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(old: str, _: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), old)

    monkeypatch.setattr(os, "rename", refuse)
    trash = Trash(str(bin_directory))
    with pytest.raises(Internal, match=r"/x can't be removed: Read-only file system"):
        trash.discard(str(tmp_path / "x"))
    trash.close()


def test_what_an_earlier_daemon_left_goes_with_the_next_start(bin_directory: Path) -> None:
    (bin_directory / "old" / "deep").mkdir(parents=True)
    emptied(Trash(str(bin_directory)), bin_directory)


# --------------------------------------------------------------- collectors


async def test_a_collector_keeps_what_fits_and_lets_the_rest_go() -> None:
    collector = Collector(5)
    os.write(collector.write_end, b"abc")
    await asyncio.sleep(0.01)
    os.write(collector.write_end, b"defg")
    os.close(collector.write_end)
    await asyncio.wait_for(collector.ended, 60)
    assert collector.taken() == b"abcde"
    collector.close()


async def test_a_writer_is_never_blocked_by_the_cap() -> None:
    collector = Collector(10)

    def write() -> None:
        for _ in range(64):
            os.write(collector.write_end, bytes(64 << 10))
        os.close(collector.write_end)

    await asyncio.wait_for(asyncio.to_thread(write), 60)
    await asyncio.wait_for(collector.ended, 60)
    assert collector.taken() == bytes(10)
    collector.close()


async def test_what_came_before_the_end_is_there_while_a_writer_is_left() -> None:
    collector = Collector(100)
    os.write(collector.write_end, b"so far")
    await asyncio.sleep(0.01)
    assert collector.taken() == b"so far"
    assert not collector.ended.done()
    collector.close()
    os.close(collector.write_end)


# ----------------------------------------------------------------- monitors


class Seen:
    def __init__(self, monitors: Monitors) -> None:
        self.told: list[tuple[str, Any]] = []
        monitors.on_exit, monitors.on_lost, monitors.on_holder_exit = self.exit, self.lost, self.holder_exit

    async def exit(self, event: dict[str, Any]) -> None:
        self.told.append(("exit", event["id"]))

    async def lost(self, sandbox_id: SandboxId) -> None:
        self.told.append(("lost", sandbox_id))

    async def holder_exit(self, sandbox_id: SandboxId) -> None:
        self.told.append(("holder", sandbox_id))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


async def test_events_count_from_before_the_monitor_was_kept(pair: Pair) -> None:
    async with asyncio.TaskGroup() as tasks:
        monitors = Monitors(tasks)
        seen = Seen(monitors)
        client = MonitorClient(pair[0])
        transport.send(pair[1], protocol.event(b"holder_exit"))
        await asyncio.sleep(0.01)
        monitors.keep(POD, client)
        transport.send(pair[1], protocol.event(b"exit", b'{"id":"c"}'))
        await asyncio.sleep(0.01)
        assert seen.told == [("holder", POD), ("exit", "c")]
        monitors.close()


async def test_a_monitor_that_died_before_it_was_kept_is_told(pair: Pair) -> None:
    async with asyncio.TaskGroup() as tasks:
        monitors = Monitors(tasks)
        seen = Seen(monitors)
        client = MonitorClient(pair[0])
        pair[1].close()
        await asyncio.sleep(0.01)
        monitors.keep(POD, client)
        await asyncio.sleep(0.01)
        assert seen.told == [("lost", POD)]


async def test_a_monitor_that_was_taken_may_end(pair: Pair) -> None:
    async with asyncio.TaskGroup() as tasks:
        monitors = Monitors(tasks)
        seen = Seen(monitors)
        client = MonitorClient(pair[0])
        monitors.keep(POD, client)
        assert monitors.of(POD) is client
        assert monitors.take(POD) is client
        with pytest.raises(Unavailable):
            monitors.of(POD)
        pair[1].close()
        await asyncio.sleep(0.01)
        assert seen.told == []


@pytest.mark.parametrize("failure", [Internal("the disk is full"), OSError("foreign"), KeyError("a fault of ours")])
async def test_a_report_that_cannot_be_recorded_does_not_end_the_daemon(pair: Pair, failure: Exception) -> None:
    async with asyncio.TaskGroup() as tasks:
        monitors = Monitors(tasks)
        seen = Seen(monitors)

        async def refuse(_: dict[str, Any]) -> None:
            raise failure

        monitors.on_exit = refuse
        monitors.keep(POD, MonitorClient(pair[0]))
        transport.send(pair[1], protocol.event(b"exit", b'{"id":"c"}'))
        transport.send(pair[1], protocol.event(b"holder_exit"))
        await asyncio.sleep(0.01)
        assert seen.told == [("holder", POD)]
        monitors.close()


# ------------------------------------------------------------------- groups


class CgroupsSimulator:
    """``version`` 2 has a descriptor to be born into."""

    mounts = ()

    def __init__(self, version: int) -> None:
        self._version = version

    def directory_fd(self, _path: str) -> int | None:
        return None if self._version == 1 else 99


def groups(version: int = 1) -> Groups:
    return Groups(cast(Cgroups, CgroupsSimulator(version)), "/cri", GroupParents(Path("/nonexistent/parents")))


@pytest.mark.parametrize(
    ("asked", "group"),
    [
        ("", f"/cri/pod-{POD}"),
        ("/kubepods/podx", "/kubepods/podx"),
        ("/kubepods/podx/", "/kubepods/podx"),
    ],
)
def test_a_pod_has_the_group_that_the_kubelet_names_or_one_of_our_own(asked: str, group: str) -> None:
    made = groups()
    assert made.of_pod(asked, POD) == group
    made.close()


# ------------------------------------------------------------------ bundles


@pytest.mark.parametrize("text", ["", '{"code": 13', "\0\0\0"])
def test_a_document_that_was_cut_short_counts_as_missing(tmp_path: Path, text: str) -> None:
    """An exit's, for one, which a start of the daemon reads."""
    (tmp_path / "exit").write_text(text)
    assert read_document(str(tmp_path / "exit")) == {}
    assert read_document(str(tmp_path / "missing")) == {}
