"""Who is killed takes nothing along: daemon, spawner, monitor, holder; and callers who leave."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
import pytest

from cri_py.monitor.client import SOCKET_NAME, listen
from cri_py.monitor.protocol import PACKET_BYTES
from cri_py.monitor.tracked import EXITS
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.gen.api_pb2_grpc import RuntimeServiceStub
from tests.simulators.kubelet import PATIENCE_S, Kubelet, Line, Pod, refused, wait_for
from tests.system.daemon import Daemon

_PTRACE_SEIZE: Final = 0x4206  # linux/ptrace.h
_WALL: Final = 0x40000000  # linux/wait.h: also what is not the caller's child


def end(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{pid}/stat").exists() and b") Z " not in _stat(pid), lambda alive: not alive)


@contextlib.contextmanager
def maybe(code: grpc.StatusCode) -> Iterator[None]:
    """The body's call succeeds, or is refused with this code."""
    try:
        yield
    except grpc.RpcError as error:
        if error.code() is not code:
            raise


def _stat(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b") Z "


def holder_of(kubelet: Kubelet, pod: Pod) -> int:
    info = kubelet.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"]
    return int(info.split('"pid": ')[1].split(",")[0])


# ------------------------------------------------------------------ the daemon


def test_a_damaged_record_costs_its_pod_and_no_other(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    damaged, healthy = kubelet.run_pod(), kubelet.run_pod()
    gone, kept = kubelet.run(damaged, "sleep", "1000"), kubelet.run(healthy, "sleep", "1000")
    spoiled = kubelet.run(healthy, "sleep", "1000", name="spoiled")
    fresh_daemon.kill()
    with contextlib.closing(sqlite3.connect(fresh_daemon.root / "pods.db", isolation_level=None)) as database:
        database.execute("UPDATE records SET body = '{}' WHERE key IN (?, ?)", (damaged.id, spoiled))
    offset = fresh_daemon.log_file.stat().st_size
    fresh_daemon.start()
    for key in (damaged.id, spoiled):
        assert key in fresh_daemon.log_since(offset)
    assert [item.id for item in kubelet.ListPodSandbox().items] == [healthy.id]
    assert kubelet.shell(kept, "echo here") == "here\n"
    assert kubelet.status(gone).state == pb.CONTAINER_UNKNOWN
    kubelet.remove(gone)
    fresh_daemon.restart()
    assert [item.id for item in kubelet.ListContainers().containers] == [kept]


def test_after_a_reboot_pods_are_not_ready_and_can_be_removed(fresh_daemon: Daemon) -> None:
    """The state directory is on a tmpfs; records and layers are not."""
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    fresh_daemon.crash()
    fresh_daemon.start()
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert kubelet.status(container).state == pb.CONTAINER_UNKNOWN
    kubelet.remove(container)
    kubelet.remove_pod(pod)
    assert not kubelet.ListPodSandbox().items


def test_a_root_that_can_not_be_made_is_told_in_one_line(fresh_daemon: Daemon) -> None:
    second = fresh_daemon.try_another("--root", "/proc/no", "--state", fresh_daemon.directory / "other")
    assert second.returncode == 1
    assert second.stdout.splitlines()[-1].startswith("cri-py: /proc/no can't be made"), second.stdout
    assert "Traceback" not in second.stdout


def test_what_ends_while_nothing_can_be_recorded_has_ended(fresh_daemon: Daemon) -> None:
    """A full disk, for one; here the database is locked, for longer than a writer waits."""
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    with contextlib.closing(sqlite3.connect(fresh_daemon.root / "pods.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        kubelet.stop(container)
        assert kubelet.status(container).exit_code == 137
        database.execute("ROLLBACK")
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.status(container).exit_code == 137
    kubelet.remove_pod(pod)


def test_what_starts_while_nothing_can_be_recorded_has_started(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.create(pod, "sleep", "1000")
    with contextlib.closing(sqlite3.connect(fresh_daemon.root / "pods.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        kubelet.StartContainer(container_id=container)
        assert kubelet.status(container).state == pb.CONTAINER_RUNNING
        database.execute("ROLLBACK")
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.shell(container, "echo here") == "here\n"
    kubelet.remove_pod(pod)


def test_what_a_caller_left_before_it_was_recorded_leaves_no_record(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    before = fresh_daemon.processes()
    stub = RuntimeServiceStub(kubelet.channel)
    run = pb.RunPodSandboxRequest(config=kubelet.pod_config())
    create = pb.CreateContainerRequest(
        pod_sandbox_id=pod.id, config=kubelet.container_config("true"), sandbox_config=pod.config
    )
    with contextlib.closing(sqlite3.connect(fresh_daemon.root / "pods.db", isolation_level=None)) as database:
        for call, request in ((stub.RunPodSandbox, run), (stub.CreateContainer, create)):
            database.execute("BEGIN IMMEDIATE")  # the writer waits, and goes on once the caller is gone
            leaving = call.future(request, timeout=PATIENCE_S)
            wait_for(fresh_daemon.processes, lambda now: set(now) > set(before))
            time.sleep(0.3)  # it is made, and now to be recorded; if that takes longer, there is less to be undone
            leaving.cancel()
            for _ in range(3):  # on the same connection, so the daemon hears of the cancellation before
                kubelet.Version()
            database.execute("ROLLBACK")
            wait_for(fresh_daemon.processes, lambda now: now == before)
        kubelet.run(pod, "true", name="second")  # its record comes after those
        rows = [key for (key,) in database.execute("SELECT key FROM records WHERE kind = 'sandbox'")]
        assert rows == [pod.id]
        assert len(database.execute("SELECT key FROM records WHERE kind = 'container'").fetchall()) == 1


def test_a_second_daemon_on_the_same_directories_is_refused_and_harms_nothing(fresh_daemon: Daemon) -> None:
    """With another socket, nothing else would tell them apart; it would take all monitors from the first."""
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    link = fresh_daemon.directory / "link"
    link.symlink_to(fresh_daemon.root)
    for root, state in (
        (link, fresh_daemon.directory / "other"),
        (fresh_daemon.directory / "other", fresh_daemon.state),
    ):
        second = fresh_daemon.try_another("--root", root, "--state", state, "--listen", f"{fresh_daemon.directory}/2")
        assert second.returncode == 1
        assert f"in use by another daemon (pid {fresh_daemon.pid})" in second.stdout, second.stdout
        assert "Traceback" not in second.stdout
    assert kubelet.pod_status(pod).state == pb.SANDBOX_READY
    assert kubelet.shell(container, "echo here") == "here\n"


def test_containers_live_on_without_the_daemon_and_are_found_again(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "sleep 1000 & echo up; wait")
    before = kubelet.status(container)
    address = kubelet.pod_status(pod).network.ip
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.status(container) == before
    assert kubelet.pod_status(pod).state == pb.SANDBOX_READY
    assert kubelet.pod_status(pod).network.ip == address
    assert kubelet.shell(container, "echo $((6 * 7))") == "42\n"
    assert kubelet.pod_status(kubelet.run_pod()).network.ip != address
    kubelet.stop(container)
    assert kubelet.status(container).exit_code == 137


def test_what_ends_while_the_daemon_is_dead_has_its_exact_code_time_and_log(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "trap 'echo last; exit 7' TERM; echo first; while :; do sleep 0.01; done")
    wait_for(lambda: kubelet.log(container), len)
    log = kubelet.log_file(container)
    pid = _init_of(kubelet, container)
    fresh_daemon.kill()
    earliest = time.time_ns()
    os.kill(pid, signal.SIGTERM)
    wait_for((fresh_daemon.state / "pods" / pod.id / EXITS / container).exists, bool)
    latest = time.time_ns()
    fresh_daemon.start()
    status = kubelet.status(container)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 7, "Error")
    assert earliest <= status.finished_at <= latest
    assert kubelet.log(container) == [Line("stdout", "F", b"first"), Line("stdout", "F", b"last")]
    assert log.exists()


def _init_of(kubelet: Kubelet, container: str) -> int:
    info = kubelet.ContainerStatus(container_id=container, verbose=True).info["info"]
    return int(info.split('"pid": ')[1].split(",")[0])


def test_a_created_container_can_be_started_by_the_next_daemon(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.create(pod, "sh", "-c", "exit 5")
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.status(container).state == pb.CONTAINER_CREATED
    kubelet.start(container)
    assert kubelet.wait(container).exit_code == 5


def test_a_pod_that_was_stopped_stays_so_and_can_be_removed_by_the_next_daemon(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    kubelet.stop_pod(pod)
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert kubelet.status(container).exit_code == 137


def test_removing_an_old_sandbox_spares_the_next_one_in_the_same_cgroup(fresh_daemon: Daemon) -> None:
    """The kubelet names one cgroup for all attempts of a pod, and may remove the old one much later."""
    kubelet = fresh_daemon.kubelet
    old = kubelet.run_pod()
    end(_monitor_of(fresh_daemon, kubelet, old))
    wait_for(lambda: kubelet.pod_status(old).state, lambda state: state == pb.SANDBOX_NOTREADY)
    kubelet.stop_pod(old)
    config = pb.PodSandboxConfig()
    config.CopyFrom(old.config)
    config.metadata.attempt = 1
    new = kubelet.run_pod(config)
    container = kubelet.run(new, "sleep", "1000")
    fresh_daemon.kill()
    fresh_daemon.start()
    kubelet.remove_pod(old)
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING
    assert kubelet.pod_status(new).state == pb.SANDBOX_READY


def _monitor_of(daemon: Daemon, kubelet: Kubelet, pod: Pod) -> int:
    info = kubelet.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"]
    pid = int(info.split('"monitorPid": ')[1].split(",")[0])
    assert pid in daemon.monitors()
    return pid


# ----------------------------------------------------------------- its helpers


def test_a_daemon_that_ends_removes_the_cgroups_above_its_pods(fresh_daemon: Daemon) -> None:
    fresh_daemon.kubelet.remove_pod(fresh_daemon.kubelet.run_pod())
    fresh_daemon.stop()
    assert not fresh_daemon.cgroups()


def test_the_cgroups_that_a_killed_daemon_made_above_pods_are_removed_by_the_next(fresh_daemon: Daemon) -> None:
    fresh_daemon.kubelet.remove_pod(fresh_daemon.kubelet.run_pod())
    fresh_daemon.kill()
    assert fresh_daemon.cgroups()
    fresh_daemon.start()
    wait_for(fresh_daemon.cgroups, lambda groups: not groups)


def test_a_run_outlives_the_spawner_that_has_its_request(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    (spawner,) = fresh_daemon.spawners()
    os.kill(spawner, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(kubelet.run_pod)
        wait_for(lambda: os.listdir(fresh_daemon.state / "netns"), len)  # made beside the monitor, which is asked for
        end(spawner)
        pod = running.result(timeout=PATIENCE_S)
    assert kubelet.pod_status(pod).state == pb.SANDBOX_READY
    assert kubelet.outcome(pod, "echo", "up")[1] == "up\n"


def test_a_spawner_that_hangs_costs_one_run(make_daemon: Callable[[str], Daemon]) -> None:
    daemon = make_daemon("[runtime]\nmonitor_timeout_s = 3")
    kubelet = daemon.kubelet
    (spawner,) = daemon.spawners()
    os.kill(spawner, signal.SIGSTOP)
    with refused("DEADLINE_EXCEEDED"):
        kubelet.run_pod()
    kubelet.remove_pod(kubelet.run_pod())
    assert daemon.left_over() == []


def test_a_pod_whose_monitor_hangs_can_be_stopped_and_removed(make_daemon: Callable[[str], Daemon]) -> None:
    daemon = make_daemon("")
    kubelet = daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "setsid sleep 1000 & wait")
    daemon.stop()
    daemon.set("[runtime]\nmonitor_timeout_s = 0.5")  # for what hangs: nothing else is asked from now on
    daemon.start()
    (monitor,) = daemon.monitors()
    os.kill(monitor, signal.SIGSTOP)
    try:
        kubelet.stop_pod(pod)
        assert kubelet.status(container).state == pb.CONTAINER_UNKNOWN
        kubelet.remove_pod(pod)
        assert daemon.left_over() == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(monitor, signal.SIGCONT)


def test_a_monitor_that_hangs_at_the_start_is_killed_and_its_pod_lost(make_daemon: Callable[[str], Daemon]) -> None:
    daemon = make_daemon("")
    kubelet = daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    daemon.kill()
    daemon.set("[runtime]\nmonitor_timeout_s = 0.5")  # for what hangs: nothing else is asked from now on
    (monitor,) = daemon.monitors()
    os.kill(monitor, signal.SIGSTOP)
    daemon.start()
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert kubelet.status(container).state == pb.CONTAINER_UNKNOWN
    kubelet.remove_pod(pod)
    assert daemon.left_over() == []


def test_a_monitor_of_another_version_is_ended_and_its_pod_can_be_removed(fresh_daemon: Daemon) -> None:
    """As of a daemon that was much older, or newer; here it is a stand-in on its socket."""
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    (monitor,) = fresh_daemon.monitors()
    fresh_daemon.kill()
    end(monitor)
    place = fresh_daemon.state / "pods" / pod.id / SOCKET_NAME
    place.unlink()
    with listen(str(place.parent)) as listener, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(answer_as_another_version, listener)
        fresh_daemon.start()
        assert asked.result(PATIENCE_S) == [b"hello", b"end"]
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    status = kubelet.status(container)
    assert (status.state, status.reason) == (pb.CONTAINER_UNKNOWN, "MonitorLost")
    assert "spoke version 99 of the protocol, and this daemon speaks version" in status.message
    kubelet.remove_pod(pod)
    assert fresh_daemon.left_over() == []


def answer_as_another_version(listener: socket.socket) -> list[bytes]:
    """What it was asked until the connection ended."""
    asked = []
    connection, _ = listener.accept()
    with connection:
        while frame := connection.recv(PACKET_BYTES):
            word, seq, *_ = frame.split(b"\0")
            asked.append(word)
            connection.send(seq + b"\0ok\0" + (b'{"version":99,"news":[1]}' if word == b"hello" else b""))
    return asked


def test_a_pod_starts_after_the_spawner_was_killed(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    first = kubelet.run_pod()
    container = kubelet.run(first, "sleep", "1000")
    (spawner,) = fresh_daemon.spawners()
    end(spawner)
    second = kubelet.run_pod()
    assert kubelet.outcome(second, "echo", "hello")[1] == "hello\n"
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING


@pytest.mark.parametrize("pid_mode", [pb.CONTAINER, pb.POD, pb.NODE])
def test_a_pod_whose_monitor_was_killed_says_so_and_can_be_removed(
    fresh_daemon: Daemon, pid_mode: pb.NamespaceMode
) -> None:
    kubelet = fresh_daemon.kubelet
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.pid = pid_mode
    pod = kubelet.run_pod(config)
    running = kubelet.container_config("sh", "-c", "sleep 1000 & sleep 1000", name="running")
    running.linux.security_context.namespace_options.pid = pid_mode
    lost = [kubelet.run(pod, config=running), kubelet.create(pod, "true", name="created")]
    exited = kubelet.run(pod, "sh", "-c", "exit 3", name="exited")
    kubelet.wait(exited)
    end(_monitor_of(fresh_daemon, kubelet, pod))
    wait_for(lambda: kubelet.pod_status(pod).state, lambda state: state == pb.SANDBOX_NOTREADY)
    for container in lost:
        status = kubelet.wait(container, pb.CONTAINER_UNKNOWN)
        assert status.reason == "MonitorLost"
        assert "monitor" in status.message
    wait_for(fresh_daemon.processes, lambda left: not left)  # one has no death signal of its parent's
    assert kubelet.status(exited).exit_code == 3
    with refused("FAILED_PRECONDITION", "not ready"):
        kubelet.create(pod, "true", name="late")
    kubelet.stop(lost[0])
    kubelet.remove(lost[0])
    kubelet.remove_pod(pod)
    assert fresh_daemon.left_over() == []


@contextlib.contextmanager
def reported_to_nobody(pid: int) -> Iterator[None]:
    """Its parent hears of the process's end only after the tracer, which is this one, has let go of it (ptrace(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(_PTRACE_SEIZE, pid, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, _WALL)


def test_a_monitor_that_dies_between_a_kill_and_its_report_holds_no_stop_up(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    info = kubelet.ContainerStatus(container_id=container, verbose=True).info["info"]
    with ThreadPoolExecutor(1) as pool, reported_to_nobody(pid := int(json.loads(info)["pid"])):
        stopping = pool.submit(kubelet.StopPodSandbox, pod_sandbox_id=pod.id)
        wait_for(lambda: _stat(pid), lambda stat: b") Z " in stat)
        end(_monitor_of(fresh_daemon, kubelet, pod))
        stopping.result(timeout=25)  # a monitor would get thirty seconds to answer
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert kubelet.status(container).state == pb.CONTAINER_UNKNOWN


def test_a_pod_whose_monitor_died_while_the_daemon_was_dead_is_not_ready(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.pid = pb.NODE  # whose end would take all along
    pod = kubelet.run_pod(config)
    running = kubelet.container_config("sh", "-c", "sleep 1000 & sleep 1000")
    running.linux.security_context.namespace_options.pid = pb.NODE
    container = kubelet.run(pod, config=running)
    exited = kubelet.run(pod, "sh", "-c", "exit 3", name="exited")
    kubelet.wait(exited)
    monitor = _monitor_of(fresh_daemon, kubelet, pod)
    fresh_daemon.kill()
    end(monitor)
    fresh_daemon.start()
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert kubelet.status(container).state == pb.CONTAINER_UNKNOWN
    assert kubelet.status(container).reason == "MonitorLost"
    assert kubelet.status(exited).exit_code == 3
    wait_for(fresh_daemon.processes, lambda left: not left)


def test_a_monitor_whose_socket_was_deleted_does_not_live_on_unreachable(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    fresh_daemon.kill()
    (fresh_daemon.state / "pods" / pod.id / "monitor.sock").unlink()
    fresh_daemon.start()
    wait_for(fresh_daemon.processes, lambda left: not left)
    assert kubelet.pod_status(pod).state == pb.SANDBOX_NOTREADY
    assert kubelet.status(container).reason == "MonitorLost"
    kubelet.remove_pod(pod)
    assert fresh_daemon.left_over() == []


def test_a_pod_whose_holder_was_killed_is_not_ready_and_takes_no_containers(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    os.kill(holder_of(kubelet, pod), signal.SIGKILL)
    wait_for(lambda: kubelet.pod_status(pod).state, lambda state: state == pb.SANDBOX_NOTREADY)
    with refused("FAILED_PRECONDITION", "HolderDied"):
        kubelet.create(pod, "true", name="late")
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING
    kubelet.stop(container)
    assert kubelet.status(container).exit_code == 137


def test_a_pod_without_its_holder_keeps_its_monitor_over_a_restart(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    os.kill(holder_of(kubelet, pod), signal.SIGKILL)
    wait_for(lambda: kubelet.pod_status(pod).state, lambda state: state == pb.SANDBOX_NOTREADY)
    fresh_daemon.kill()
    fresh_daemon.start()
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING
    kubelet.stop(container)
    assert kubelet.status(container).exit_code == 137
    kubelet.remove_pod(pod)
    assert fresh_daemon.left_over() == []


# ------------------------------------------------------------ callers who leave


def test_a_sandbox_whose_caller_left_is_undone_or_whole(kubelet: Kubelet) -> None:
    """Whatever the moment: either nothing is left, or the retry gets what there is."""
    for wait_ms in (1, 2, 3, 4, 6, 8, 11, 15, 20):
        config = kubelet.pod_config()
        with maybe(grpc.StatusCode.DEADLINE_EXCEEDED):
            kubelet.RunPodSandbox(config=config, deadline_s=wait_ms / 1000)
        pod = kubelet.run_pod(config)
        assert kubelet.pod_status(pod).state == pb.SANDBOX_READY
        assert len(kubelet.ListPodSandbox().items) == 1
        kubelet.remove_pod(pod)


def test_a_container_whose_caller_left_is_undone_or_whole(kubelet: Kubelet, pod: Pod) -> None:
    for wait_ms in (1, 2, 3, 4, 6, 8, 11, 15, 20):
        config = kubelet.container_config("sh", "-c", "exit 4", name=f"after-{wait_ms}")
        kubelet.make_log_directory(pod, config)
        with maybe(grpc.StatusCode.DEADLINE_EXCEEDED):
            kubelet.CreateContainer(
                pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config, deadline_s=wait_ms / 1000
            )
        container = kubelet.run(pod, config=config)
        assert kubelet.wait(container).exit_code == 4
        kubelet.remove(container)
    assert len(kubelet.ListContainers().containers) == 0


def test_a_start_whose_caller_left_is_recorded(kubelet: Kubelet, pod: Pod) -> None:
    for wait_ms in (0.3, 0.6, 1, 1.5, 2, 3):
        container = kubelet.create(pod, "sleep", "1000", name=f"after-{wait_ms}")
        with maybe(grpc.StatusCode.DEADLINE_EXCEEDED):
            kubelet.StartContainer(container_id=container, deadline_s=wait_ms / 1000)
        with maybe(grpc.StatusCode.FAILED_PRECONDITION):
            kubelet.start(container)
        assert kubelet.status(container).state == pb.CONTAINER_RUNNING
        kubelet.remove(container)


def test_an_exec_whose_container_ends_meanwhile_ends_too(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "while [ ! -e /go ]; do usleep 10000; done; exit 2")
    answer = kubelet.exec(container, "sh", "-c", "touch /go; exec sleep 1000")
    assert answer.exit_code == 137
    assert kubelet.wait(container).exit_code == 2
