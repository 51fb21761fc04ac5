"""Processes that unpack: fed while they work, replaced when they die or hang, gone with their daemon."""

from __future__ import annotations

import asyncio
import errno
import gzip
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri_py.errors import DataLoss, Internal, Unavailable
from cri_py.images import layers, unpacking, worker
from cri_py.images.layers import Unpacked
from cri_py.images.unpacking import Done, Failed, Frame, Implied, Job, Reached, Ready, Starved
from cri_py.images.workers import Workers
from tests.simulators.registry import File, sha256, tar_layer

RANDOM = random.Random(7).randbytes(400_000)
LAYER = tar_layer(File("etc/a", b"a"), File("deep/er/b", RANDOM), File("c", b"c" * 100_000))
BLOB = gzip.compress(LAYER, mtime=0)


class Fed:
    """A blob that a test lets grow."""

    def __init__(self, path: Path, content: bytes = BLOB) -> None:
        path.write_bytes(content)
        self._path, self.size = path, len(content)
        self.state = Ready(0, False)
        self.waiting = asyncio.Event()  # somebody has read all there is
        self._grown = asyncio.Event()
        self._error: Exception | None = None

    def grow(self, available: int | None = None, *, whole: bool = True) -> None:
        self.state = Ready(self.size if available is None else available, whole)
        self.waiting.clear()
        self._grown.set()
        self._grown = asyncio.Event()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._grown.set()

    def take_fd(self) -> int:
        return os.open(self._path, os.O_RDONLY)

    async def beyond(self, position: int) -> Ready:
        while not self.state.whole and self.state.available <= position:
            self.waiting.set()
            await self._grown.wait()
            if self._error is not None:
                raise self._error
        return self.state


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    workers = Workers(2, silence_s=20)
    yield workers
    await workers.close()


@pytest.fixture
def fed(tmp_path: Path) -> Fed:
    return Fed(tmp_path / "blob")


async def unpack(workers: Workers, fed: Fed, target: Path, *, diff_id: str = sha256(LAYER)) -> Unpacked:
    os.mkdir(target)
    return await workers.unpack(
        fed, str(target), size=fed.size, diff_id=diff_id, lowest=True, subject="layer 1", watch=lambda _: None
    )


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


def await_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def test_a_layer_is_unpacked_while_its_blob_comes(workers: Workers, fed: Fed, tmp_path: Path) -> None:
    running = asyncio.create_task(unpack(workers, fed, tmp_path / "layer"))
    for available in (1, 2, 3, 4, 5, 100, 65_537, 300_000, len(BLOB) - 1):
        await fed.waiting.wait()
        fed.grow(available, whole=False)
    await fed.waiting.wait()
    assert (tmp_path / "layer/etc/a").read_bytes() == b"a", "before the last byte has come"
    assert not running.done()
    fed.grow()
    unpacked = await running
    assert (tmp_path / "layer/deep/er/b").read_bytes() == RANDOM
    assert unpacked.implied == (b"etc", b"deep", b"deep/er")
    assert (unpacked.inodes, unpacked.file_bytes) == (7, 1 + 400_000 + 100_000)


async def test_a_process_unpacks_one_layer_after_the_other(workers: Workers, fed: Fed, tmp_path: Path) -> None:
    fed.grow()
    await unpack(workers, fed, tmp_path / "1")
    first = workers.pids
    await unpack(workers, fed, tmp_path / "2")
    assert workers.pids == first


async def test_an_idle_process_ends(fed: Fed, tmp_path: Path) -> None:
    workers = Workers(1, idle_s=0.01)
    fed.grow()
    await unpack(workers, fed, tmp_path / "layer")
    (pid,) = workers.pids
    await asyncio.to_thread(await_end, pid)
    assert workers.pids == []
    await unpack(workers, fed, tmp_path / "again")
    await workers.close()


async def test_errors_come_as_what_they_are_with_their_way_out(workers: Workers, fed: Fed, tmp_path: Path) -> None:
    fed.grow()
    with pytest.raises(DataLoss, match=r"layer 1 unpacks to .* config says sha256:00"):
        await unpack(workers, fed, tmp_path / "1", diff_id="sha256:" + "0" * 64)
    assert workers.pids == [], "who failed is not used again"
    wicked = Fed(tmp_path / "wicked", gzip.compress(tar_layer(File("../../x", b"evil"))))
    wicked.grow()
    with pytest.raises(DataLoss, match="leaves the layer") as caught:
        await unpack(workers, wicked, tmp_path / "2")
    assert caught.value.hint == "don't trust it"


async def test_who_waits_for_a_slow_host_holds_up_nobody(
    fed: Fed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri_py.images.workers.PATIENCE_S", 0.05)
    workers = Workers(1, silence_s=20)
    fed.grow(1000, whole=False)
    slow = asyncio.create_task(unpack(workers, fed, tmp_path / "slow"))
    await fed.waiting.wait()
    other = Fed(tmp_path / "other")
    other.grow()
    async with asyncio.timeout(60):
        await unpack(workers, other, tmp_path / "layer")
    assert not slow.done()
    fed.grow()
    assert (await slow).inodes == 7
    await workers.close()


async def test_no_more_work_at_once_than_may(fed: Fed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose blob comes again waits for its turn."""
    monkeypatch.setattr("cri_py.images.workers.PATIENCE_S", 0.05)
    workers = Workers(1, silence_s=20)
    fed.grow(1000, whole=False)
    slow = asyncio.create_task(unpack(workers, fed, tmp_path / "slow"))
    await fed.waiting.wait()
    (first,) = workers.pids
    other = Fed(tmp_path / "other")
    other.grow(1000, whole=False)
    second = asyncio.create_task(unpack(workers, other, tmp_path / "layer"))
    async with asyncio.timeout(60):
        await other.waiting.wait()
        (stopped,) = {*workers.pids} - {first}
        os.kill(stopped, signal.SIGSTOP)
        other.grow()
        await asyncio.sleep(0)
        fed.grow()
        done, _ = await asyncio.wait({slow}, timeout=0.2)
        assert not done, "the other has the turn"
        os.kill(stopped, signal.SIGCONT)
        await asyncio.gather(slow, second)
    await workers.close()


@pytest.mark.parametrize(("cores", "most"), [(1, 1), (3, 3), (200, 8)])
async def test_without_a_number_there_is_one_process_for_each_core(
    monkeypatch: pytest.MonkeyPatch, cores: int, most: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    workers = Workers(0)
    workers.warm([100 << 20] * 20)
    started = len(workers.pids)
    await workers.close()
    assert started == most


async def test_a_process_that_can_not_be_started_is_told_and_the_next_is(
    workers: Workers, fed: Fed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    fed.grow()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_spawn", exhausted)
        with pytest.raises(Internal, match="no process can be started that unpacks: Resource temporarily"):
            await unpack(workers, fed, tmp_path / "1")
    await unpack(workers, fed, tmp_path / "2")


async def test_a_killed_process_is_told_and_replaced(workers: Workers, fed: Fed, tmp_path: Path) -> None:
    fed.grow(1000, whole=False)
    running = asyncio.create_task(unpack(workers, fed, tmp_path / "1"))
    await fed.waiting.wait()
    os.kill(workers.pids[0], signal.SIGKILL)
    fed.grow()
    with pytest.raises(Internal, match="unpacks layer 1 was killed by signal 9"):
        await running
    await unpack(workers, fed, tmp_path / "2")


async def test_a_hung_process_is_killed_and_told(fed: Fed, tmp_path: Path) -> None:
    workers = Workers(1, silence_s=2)
    fed.grow(1000, whole=False)
    running = asyncio.create_task(unpack(workers, fed, tmp_path / "1"))
    await fed.waiting.wait()
    (pid,) = workers.pids
    os.kill(pid, signal.SIGSTOP)
    fed.grow()
    with pytest.raises(Internal, match=r"said nothing for 2 s"):
        await running
    assert gone(pid)
    await workers.close()


async def test_nothing_writes_on_when_a_pull_is_cancelled(workers: Workers, fed: Fed, tmp_path: Path) -> None:
    fed.grow(1000, whole=False)
    running = asyncio.create_task(unpack(workers, fed, tmp_path / "layer"))
    await fed.waiting.wait()
    (pid,) = workers.pids
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gone(pid)


async def test_a_download_that_fails_ends_the_unpacking(workers: Workers, fed: Fed, tmp_path: Path) -> None:
    fed.grow(1000, whole=False)
    running = asyncio.create_task(unpack(workers, fed, tmp_path / "layer"))
    await fed.waiting.wait()
    (pid,) = workers.pids
    fed.fail(Unavailable("the host has gone"))
    with pytest.raises(Unavailable, match="the host has gone"):
        await running
    assert gone(pid)


def test_what_a_manifest_claims_opens_no_door_to_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is written than what has come allows, however large the blob is said to be."""
    monkeypatch.setattr(layers, "BOMB_FLOOR", 1 << 20)
    plain = tar_layer(File("zeros", bytes(32 << 20)))
    blob, target = tmp_path / "blob", tmp_path / "layer"
    blob.write_bytes(gzip.compress(plain))
    os.mkdir(target)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(blob, "rb") as file:
        working = threading.Thread(target=worker.serve, args=(theirs,))
        working.start()
        came = blob.stat().st_size
        job = Job(str(target), sha256(plain), "layer 1", 1 << 40, came, False, True)
        socket.send_fds(ours, [unpacking.encode(job)], [file.fileno()])
        assert next_frame(ours) == Starved(came)
        written = (target / "zeros").stat().st_size
        ours.send(unpacking.encode(Ready(came, True)))
        assert isinstance(next_frame(ours), Done)
        ours.shutdown(socket.SHUT_RDWR)
        working.join()
    assert written <= layers.plain_most(came) < 32 << 20


def next_frame(connection: socket.socket) -> Frame:
    """What says more than how far the work is."""
    while isinstance(frame := unpacking.decode(connection.recv(unpacking.PACKET_LIMIT)), Reached):
        pass
    return frame


DAEMON = """
import os, sys
program = "import sys; sys.path[:] = %r; from cri_py.images.worker import run; run(3, %d)" % (sys.path, os.getpid())
actions = [(os.POSIX_SPAWN_DUP2, int(sys.argv[1]), 3)]
print(os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ, file_actions=actions), flush=True)
sys.stdin.read()
"""


def test_a_process_dies_with_its_daemon_even_if_its_connection_stays(tmp_path: Path) -> None:
    """It may be in the middle of a write when the daemon is killed, and would not see that its connection is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    (tmp_path / "layer").mkdir()
    (tmp_path / "blob").touch()
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(theirs.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[theirs.fileno()],
    )
    with ours, theirs, daemon, open(tmp_path / "blob", "rb") as file:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        job = Job(str(tmp_path / "layer"), sha256(b""), "layer 1", 1, 0, False, True)
        socket.send_fds(ours, [unpacking.encode(job)], [file.fileno()])
        assert next_frame(ours) == Starved(0)
        assert not gone(pid)
        daemon.communicate(timeout=60)
        await_end(pid)


@pytest.mark.parametrize(
    "frame",
    [
        Job("/root/layers/3f", "sha256:0", "layer \udcff of x", 1 << 40, 5, True, False),
        *(Ready(7, True), Ready(7, False), Reached(1 << 40), Starved(3), Done(1, 2, 3)),
        *(Implied((b"a", b"a/\xff")), Failed("DataLoss", "it broke", "mend it")),
    ],
)
def test_frames_come_out_as_they_went_in(frame: Frame) -> None:
    assert unpacking.decode(unpacking.encode(frame)) == frame


@pytest.mark.parametrize("packet", [b"", b"x", b"r123", b"J1", b"F1", b"F1\0002\0003\0004", b"J" + bytes(18)])
def test_what_is_no_frame_is_refused(packet: bytes) -> None:
    with pytest.raises(Internal):
        unpacking.decode(packet)


def test_many_implied_directories_take_several_packets() -> None:
    paths = [b"%d/" % number + b"x" * 4000 for number in range(100)]
    frames = list(unpacking.implied_frames(paths))
    assert [path for frame in frames for path in frame.paths] == paths
    assert max(len(unpacking.encode(frame)) for frame in frames) <= unpacking.PACKET_LIMIT
