"""Exec, attach and port-forward with a client that speaks SPDY, through the front and a pod's monitor."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.simulators.kubelet import Kubelet, Pod, refused
from tests.simulators.stream_client import StreamClient
from tests.system.daemon import Daemon, wait_for


def exec_url(kubelet: Kubelet, container: str, *command: str, **streams: bool) -> str:
    wanted = {"stdout": True, **streams}
    return str(kubelet.Exec(container_id=container, cmd=command, **wanted).url)


@contextmanager
def executing(kubelet: Kubelet, container: str, *command: str, **streams: bool) -> Iterator[StreamClient]:
    with StreamClient(exec_url(kubelet, container, *command, **streams)) as client:
        kinds = [kind for kind in ("stdin", "stdout", "stderr") if {"stdout": True, **streams}.get(kind)]
        yield client.open("error", *kinds, *(["resize"] if streams.get("tty") else []))


def stream_processes() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/comm") as file:
                    if file.read() == "cri-stream\n":
                        found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


@pytest.fixture(autouse=True)
def _no_process_stays(kubelet: Kubelet) -> Iterator[None]:
    before = set(stream_processes())
    yield
    wait_for(lambda: set(stream_processes()) - before, lambda left: not left, 10)


@pytest.fixture
def container(kubelet: Kubelet, pod: Pod) -> str:
    return kubelet.run(pod, "sleep", "1000")


# -------------------------------------------------------------------- exec


@pytest.mark.parametrize("code", [0, 3, 255])
def test_an_exec_tells_its_output_apart_and_its_exit_code(kubelet: Kubelet, container: str, code: int) -> None:
    with executing(kubelet, container, "sh", "-c", f"echo out; echo err >&2; exit {code}", stderr=True) as client:
        assert client.exit_code() == code
        assert (client.received["stdout"], client.received["stderr"]) == (b"out\n", b"err\n")


def test_what_goes_in_comes_out_byte_for_byte(kubelet: Kubelet, container: str) -> None:
    content = os.urandom(3 << 20)
    with executing(kubelet, container, "sha256sum", stdin=True) as client:
        assert client.send("stdin", content, last=True).exit_code() == 0
        assert client.received["stdout"].split()[0].decode() == hashlib.sha256(content).hexdigest()


def test_all_output_comes_before_the_end(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "head", "-c", str(5 << 20), "/dev/zero") as client:
        assert client.exit_code() == 0
        assert client.received["stdout"] == bytes(5 << 20)


def test_a_terminal_echoes_and_has_the_size_that_the_client_gives(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "sh", stdin=True, tty=True) as client:
        client.send("resize", b'{"Width":101,"Height":31}')
        client.send("stdin", b"stty size\n").until("stdout", b"31 101")
        client.send("stdin", b"sleep 98765\n")
        wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "sleep 98765" in shown, 10)
        client.send("stdin", b"\x03").until("stdout", b"^C")
        client.send("stdin", b"exit 7\n")
        assert client.exit_code() == 7


def test_a_program_that_is_not_there_is_told_on_the_error_stream(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "no-such-program") as client:
        client.until_end()
        assert b"executable file not found" in client.received["error"]
        assert b"InternalError" in client.received["error"]


def test_a_client_that_leaves_ends_its_process(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "sh", "-c", "echo here; sleep 54321") as client:
        client.until("stdout", b"here")
        assert "54321" in kubelet.shell(container, "ps")
    wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "54321" not in shown, 10)


def test_a_grandchild_that_keeps_the_output_open_does_not_keep_the_session(kubelet: Kubelet, container: str) -> None:
    began = time.monotonic()
    with executing(kubelet, container, "sh", "-c", "sleep 1000 & echo done") as client:
        assert client.exit_code() == 0
        assert client.received["stdout"] == b"done\n"
    assert time.monotonic() - began < 10


def test_an_exec_is_in_the_container_with_its_rights(kubelet: Kubelet, container: str) -> None:
    fields = "grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status; cat /proc/self/cgroup | wc -l"
    with executing(kubelet, container, "sh", "-c", fields) as client:
        assert client.exit_code() == 0
    assert client.received["stdout"].decode() == kubelet.shell(container, fields)


def test_the_container_s_end_ends_its_execs(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "sh", "-c", "echo here; sleep 1000") as client:
        client.until("stdout", b"here")
        kubelet.stop(container)
        assert client.exit_code() == 137


def test_a_client_that_never_reads_costs_a_bounded_memory(kubelet: Kubelet, container: str) -> None:
    before = set(stream_processes())
    with StreamClient(exec_url(kubelet, container, "cat", "/dev/zero")) as client:
        client.open("error", "stdout")
        (process,) = wait_for(lambda: set(stream_processes()) - before, lambda found: len(found) == 1, 10)
        time.sleep(0.5)
        with open(f"/proc/{process}/smaps_rollup") as file:
            private = next(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
        assert private < 8 << 10  # kB


# ------------------------------------------------------------------- attach


def test_attached_clients_see_what_the_container_says_from_then_on(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "while read line; do echo got $line; done; echo bye; exit 0", stdin=True)
    url = str(kubelet.Attach(container_id=container, stdin=True, stdout=True).url)
    other = str(kubelet.Attach(container_id=container, stdout=True).url)
    with StreamClient(url) as client, StreamClient(other) as watcher:
        watcher.open("error", "stdout")
        client.open("error", "stdin", "stdout").send("stdin", b"one\n").until("stdout", b"got one\n")
        watcher.until("stdout", b"got one\n")
        kubelet.stop(container)
        assert client.exit_code() == 0
        watcher.until_end()


def test_with_stdin_once_the_first_client_s_end_is_the_container_s(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "cat; echo bye", stdin=True, stdin_once=True)
    with StreamClient(str(kubelet.Attach(container_id=container, stdin=True, stdout=True).url)) as client:
        client.open("error", "stdin", "stdout").send("stdin", b"text\n", last=True)
        client.until("stdout", b"bye")
    assert kubelet.wait(container).exit_code == 0


def test_attaching_as_the_container_is_not_is_refused(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with refused("INVALID_ARGUMENT", "has no tty"):
        kubelet.Attach(container_id=container, tty=True, stdout=True)
    with refused("FAILED_PRECONDITION", "without stdin"):
        kubelet.Attach(container_id=container, stdin=True, stdout=True)


# ------------------------------------------------------------- port-forward


def forwarded(kubelet: Kubelet, pod: Pod) -> StreamClient:
    return StreamClient(str(kubelet.PortForward(pod_sandbox_id=pod.id, port=[8080]).url), "portforward.k8s.io")


ASKING: Final = b"GET /passwd HTTP/1.0\r\n\r\n"


@pytest.fixture
def served_files(kubelet: Kubelet, pod: Pod) -> Pod:
    """A pod that serves its /etc on port 8080, to many at once."""
    container = kubelet.run(pod, "httpd", "-f", "-p", "8080", "-h", "/etc")
    wait_for(lambda: kubelet.shell(container, "cat /proc/net/tcp /proc/net/tcp6"), lambda shown: ":1F90" in shown, 10)
    return pod


def test_connections_are_forwarded_side_by_side(kubelet: Kubelet, served_files: Pod) -> None:
    with forwarded(kubelet, served_files) as client:
        names = [f"r{number}" for number in range(20)]
        for name in names:
            client.forward(8080, name)
        for name in names:
            client.send(("data", name), ASKING, last=True)
        for name in names:
            client.until_end(("data", name))
            assert b"root:" in client.received["data", name], client.received["error", name]
            assert client.received["error", name] == b""


def test_a_port_where_nobody_listens_is_told_on_its_own_error_stream(kubelet: Kubelet, served_files: Pod) -> None:
    with forwarded(kubelet, served_files) as client:
        client.forward(8080, "good").forward(9, "bad").until_end(("data", "bad"))
        assert b"localhost:9 inside the pod: Connection refused" in client.received["error", "bad"]
        client.send(("data", "good"), ASKING, last=True).until_end(("data", "good"))
        assert b"root:" in client.received["data", "good"]


# ------------------------------------------------------------- independence


def test_sessions_outlive_the_daemon(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    with executing(kubelet, container, "sh", "-c", "cat; exit 5", stdin=True) as client:
        client.send("stdin", b"before ").until("stdout", b"before ")
        fresh_daemon.kill()
        client.send("stdin", b"between ").until("stdout", b"between ")
        fresh_daemon.start()
        client.send("stdin", b"after", last=True)
        assert client.exit_code() == 5
        assert client.received["stdout"] == b"before between after"
    kubelet.remove_pod(pod)


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"cmd": ["true"]}, "none of stdin"),
        ({"cmd": ["true"], "stdout": True, "tty": True, "stderr": True}, "exclude each other"),
        ({"stdout": True}, "empty"),
    ],
)
def test_an_exec_that_makes_no_sense_is_refused(
    kubelet: Kubelet, container: str, fields: dict[str, Any], word: str
) -> None:
    with refused("INVALID_ARGUMENT", word):
        kubelet.Exec(container_id=container, **fields)


def test_sessions_need_something_that_runs(kubelet: Kubelet, pod: Pod) -> None:
    created = kubelet.create(pod, "true")
    with refused("FAILED_PRECONDITION", "not running"):
        kubelet.Exec(container_id=created, cmd=["true"], stdout=True)
    kubelet.stop_pod(pod)
    with refused("FAILED_PRECONDITION", "not ready"):
        kubelet.PortForward(pod_sandbox_id=pod.id, port=[80])
    with refused("INVALID_ARGUMENT", "pod_sandbox_id"):
        kubelet.PortForward(port=[80])


def test_sessions_are_counted(daemon: Daemon, kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "echo", "counted") as client:
        client.exit_code()
    wait_for(daemon.metrics, lambda shown: 'cri_py_stream_seconds_count{kind="exec"}' in shown, 5)
