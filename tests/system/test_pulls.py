"""Pulls that are broken off at every step, and those of a whole node at once."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cri_py.cli import run
from cri_py.kernel import faults, procfs
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import BUSYBOX, HOST
from tests.simulators.kubelet import Kubelet, wait_for
from tests.simulators.registry import Fault, File, RegistrySimulator, tar_layer
from tests.system.daemon import Daemon
from tests.system.test_faults_sweep import Plan

CEILING_MIB = 200
# Where a pull may be killed. What a step leaves is what the next finds, so a death between two is one right before it.
ONCE = ("syncfs ", "trace image synced", "trace image recorded")
POINTS = (
    "trace layer begun",
    "trace blob grown",
    "trace blob verified",
    "trace blob kept",
    "trace layer unpacked",
    *ONCE,
)
MOST = 8  # calls of a pull that may fail, and more


@pytest.fixture(autouse=True)
def _no_kept_connection(registry: RegistrySimulator) -> Iterator[None]:
    yield
    registry.hang_up()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path / "plan"))
    return Plan(tmp_path / "plan")


def check(daemon: Daemon, *flags: str) -> str:
    """What ``cri-py image check`` says of the daemon's store."""
    out = io.StringIO()
    run(["image", "check", "--deep", "--config", str(daemon.config_file), "--root", str(daemon.root), *flags], out)
    return out.getvalue()


def remove(kubelet: Kubelet, image: str) -> None:
    kubelet.RemoveImage(image=pb.ImageSpec(image=image))


@pytest.fixture
def broken(registry: RegistrySimulator) -> str:
    """An image whose pull is to be broken off. Its two layers come and are unpacked side by side, in no order."""
    layers = [tar_layer(File("etc/a", random.Random(1).randbytes(700_000))), tar_layer(File("etc/b", b"b"))]
    registry.push("broken", "1", layers)
    return f"{HOST}/broken:1"


@pytest.mark.timeout(600)
def test_a_pull_that_is_killed_at_any_step_leaves_nothing_that_looks_whole(
    plan: Plan, make_daemon: Callable[[str], Daemon], broken: str
) -> None:
    daemon = make_daemon("")
    for point, times in itertools.product(POINTS, (1, 2)):
        plan.set(faults.DAEMON, times, faults.KILL, point)
        with contextlib.suppress(grpc.RpcError):
            daemon.kubelet.pull(broken)
        place = plan.clear()
        assert place == point or (times == 2 and point in ONCE), f"{point}, time {times}: {place}"
        if place:
            daemon.kill()
            said = check(daemon)
            assert not any(word in said for word in ("missing", "truncated", "damaged")), f"{place}: {said}"
            daemon.start()
        pull_again(daemon, broken, f"{place}, time {times}")


def test_a_pull_a_call_of_which_fails_leaves_nothing_that_looks_whole(
    plan: Plan, make_daemon: Callable[[str], Daemon], broken: str
) -> None:
    daemon = make_daemon("")
    for step, only in [*((step, "") for step in range(1, MOST)), (1, "syncfs")]:
        plan.set(faults.DAEMON, step, faults.FAIL, only)
        with contextlib.suppress(grpc.RpcError):
            daemon.kubelet.pull(broken)
        place = plan.clear()
        pull_again(daemon, broken, f"step {step}, {place}")
        assert place or not only


def pull_again(daemon: Daemon, image: str, note: str) -> None:
    """Nothing is wrong before, and after; then it is removed."""
    assert check(daemon) == "nothing is wrong\n", note
    daemon.kubelet.pull(image)
    assert check(daemon) == "nothing is wrong\n", f"{note}, again"
    remove(daemon.kubelet, image)


def test_a_container_keeps_its_files_while_the_store_is_damaged_mended_and_its_records_are_lost(
    make_daemon: Callable[[str], Daemon],
) -> None:
    daemon = make_daemon("")
    kubelet = daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    daemon.kill()
    (layer,) = (each for each in (daemon.root / "images/layers").iterdir() if not (each / "srv").exists())
    (layer / "etc/not-executable").write_bytes(b"cut")
    assert check(daemon, "--repair").endswith("1 found, 0 repaired, 1 left\n"), "nobody serves, but a container runs"
    with contextlib.closing(sqlite3.connect(daemon.root / "images.db", isolation_level=None)) as database:
        database.execute("UPDATE records SET body = '[1]' WHERE kind IN ('image', 'snapshot')")
    offset = daemon.log_file.stat().st_size
    daemon.start()
    assert "a record is damaged" in daemon.log_since(offset)
    assert kubelet.shell(container, "cat /etc/group").startswith("root:")
    kubelet.pull(BUSYBOX)
    again = kubelet.run(pod, "sleep", "1000", name="again")
    assert kubelet.shell(again, "cat /etc/not-executable").startswith("#!")
    kubelet.remove_pod(pod)
    daemon.restart()
    assert check(daemon) == "nothing is wrong\n"
    assert not layer.exists()


def test_a_killed_daemon_takes_its_unpacking_processes_along_and_the_blob_is_resumed(
    make_daemon: Callable[[str], Daemon],
) -> None:
    daemon = make_daemon("")
    with RegistrySimulator() as stalling, ThreadPoolExecutor(1) as threads:
        pushed = stalling.push("half", "1", [tar_layer(File("f", random.Random(2).randbytes(8_000_000)))])
        stalling.faults.append(Fault(pushed.layers[0], stall_after=5_000_000, times=1))
        pull = threads.submit(daemon.kubelet.pull, f"{stalling.host}/half:1")
        partial = daemon.root / "images/blobs/partial" / pushed.layers[0].replace(":", "-")
        wait_for(lambda: partial.exists() and partial.stat().st_size, lambda size: size >= 4_000_000)
        (worker,) = wait_for(lambda: workers(daemon.pid), bool)
        daemon.kill()
        assert isinstance(pull.exception(), grpc.RpcError)
        wait_for(lambda: procfs.status(worker), lambda status: status is None)
        daemon.start()
        stalling.asked.clear()
        daemon.kubelet.pull(f"{stalling.host}/half:1")
        (asked,) = [each for each in stalling.asked if pushed.layers[0] in each.path]
    assert int(asked.headers["range"].removeprefix("bytes=").partition("-")[0]) >= 4_000_000
    assert check(daemon) == "nothing is wrong\n"


def test_twenty_images_at_once_stay_below_the_ceiling(
    make_daemon: Callable[[str], Daemon], registry: RegistrySimulator
) -> None:
    draw = random.Random(3)
    shared = [tar_layer(File("shared", draw.randbytes(6_000_000))), tar_layer(*(File(f"s/{n}") for n in range(3000)))]
    for number in range(20):
        own = tar_layer(File(f"own-{number}", draw.randbytes(2_000_000)), File("zeros", bytes(20_000_000)))
        registry.push(f"node/{number}", "1", [*shared, own])
    daemon = make_daemon("[images]\nmax_parallel_unpacks = 4\n")  # and not one for each processor of a large machine
    before = len(os.listdir(daemon.root / "images/layers"))
    names = [f"{HOST}/node/{number}:1" for number in range(20)]
    with watching(daemon.pid) as peaks, ThreadPoolExecutor(20) as threads:
        ids = list(threads.map(lambda name: daemon.kubelet.pull(name, deadline_s=250), names))
    assert len(set(ids)) == 20
    assert len(os.listdir(daemon.root / "images/layers")) == before + 22, "what images share is unpacked once"
    assert check(daemon) == "nothing is wrong\n"
    assert max(peaks) < CEILING_MIB << 20, f"{max(peaks) >> 20} MiB"


@contextlib.contextmanager
def watching(pid: int) -> Iterator[list[int]]:
    """Bytes that the daemon and its processes took together (PSS), again and again while the block runs."""
    peaks, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            peaks.append(sum(procfs.pss(each) or 0 for each in (pid, *workers(pid))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def workers(daemon: int) -> list[int]:
    """The daemon's children that unpack."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{entry}/cmdline").read_bytes()
            parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
            if b"cri_py.images.worker" in command and int(parent) == daemon:
                found.append(int(entry))
    return found
