"""Exec, attach and port-forward with a client that speaks SPDY, through the front and a pod's monitor."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import ssl
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, namespaces, refused
from tests.simulators.registry import File, tar_layer
from tests.simulators.stream_client import ChannelClient, StreamClient, TunnelClient
from tests.system.daemon import Daemon, wait_for

AnyClient: TypeAlias = type[StreamClient] | type[ChannelClient]
BOTH: Final = pytest.mark.parametrize("client", [StreamClient, ChannelClient])


def exec_url(kubelet: Kubelet, container: str, *command: str, **streams: bool) -> str:
    wanted = {"stdout": True, **streams}
    return str(kubelet.Exec(container_id=container, cmd=command, **wanted).url)


@contextmanager
def executing(
    kubelet: Kubelet, container: str, *command: str, client: AnyClient = StreamClient, **streams: bool
) -> Iterator[StreamClient | ChannelClient]:
    with client(exec_url(kubelet, container, *command, **streams)) as speaking:
        kinds = [kind for kind in ("stdin", "stdout", "stderr") if {"stdout": True, **streams}.get(kind)]
        yield speaking.open("error", *kinds, *(["resize"] if streams.get("tty") else []))


def looked_up(name: str, wanted: bytes) -> list[int]:
    """Processes of whose file ``name`` in /proc the content is as wanted."""
    found = []
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                content = Path(f"/proc/{pid}/{name}").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if content == wanted:
                found.append(int(pid))
    return found


def stream_processes() -> list[int]:
    return looked_up("comm", b"cri-stream\n")


@pytest.fixture(autouse=True)
def _no_process_stays(kubelet: Kubelet) -> Iterator[None]:
    before = set(stream_processes())
    yield
    wait_for(lambda: set(stream_processes()) - before, lambda left: not left)


@pytest.fixture
def container(kubelet: Kubelet, pod: Pod) -> str:
    return kubelet.run(pod, "sleep", "1000")


# -------------------------------------------------------------------- exec


@BOTH
@pytest.mark.parametrize("code", [0, 3, 255])
def test_an_exec_tells_its_output_apart_and_its_exit_code(
    kubelet: Kubelet, container: str, client: AnyClient, code: int
) -> None:
    script = f"echo out; echo err >&2; exit {code}"
    with executing(kubelet, container, "sh", "-c", script, client=client, stderr=True) as session:
        assert session.exit_code() == code
        assert (session.received["stdout"], session.received["stderr"]) == (b"out\n", b"err\n")


@BOTH
def test_what_goes_in_comes_out_byte_for_byte(kubelet: Kubelet, container: str, client: AnyClient) -> None:
    content = os.urandom(3 << 20)
    with executing(kubelet, container, "sha256sum", client=client, stdin=True) as session:
        assert session.send("stdin", content, last=True).exit_code() == 0
        assert session.received["stdout"].split()[0].decode() == hashlib.sha256(content).hexdigest()


@BOTH
def test_a_tree_is_copied_in_and_out_by_tar(kubelet: Kubelet, container: str, client: AnyClient) -> None:
    """As kubectl cp does it."""
    tree = {"tree/big": os.urandom(5_000_001), "tree/d/empty": b"", "tree/d/small": b"text\n"}
    archive = tar_layer(*(File(name, content) for name, content in tree.items()), form=tarfile.GNU_FORMAT)
    into = ("tar", "-xmf", "-", "-C", "/")
    with executing(kubelet, container, *into, client=client, stdin=True, stderr=True) as session:
        assert session.send("stdin", archive, last=True).exit_code() == 0
    with executing(kubelet, container, "tar", "cf", "-", "-C", "/", "tree", client=client, stderr=True) as session:
        assert session.exit_code() == 0
        with tarfile.open(fileobj=io.BytesIO(session.received["stdout"])) as copied:
            files = {each.name: copied.extractfile(each) for each in copied if each.isfile()}
            assert {name: file.read() for name, file in files.items() if file is not None} == tree
    with executing(kubelet, container, "tar", "cf", "-", "/nothing", client=client, stderr=True) as session:
        assert session.exit_code() == 1
        assert b"nothing" in session.received["stderr"]


@BOTH
def test_all_output_comes_before_the_end(kubelet: Kubelet, container: str, client: AnyClient) -> None:
    with executing(kubelet, container, "head", "-c", str(5 << 20), "/dev/zero", client=client) as session:
        assert session.exit_code() == 0
        assert session.received["stdout"] == bytes(5 << 20)


def test_a_client_that_pauses_loses_nothing_of_a_process_that_has_ended(kubelet: Kubelet, container: str) -> None:
    """Its window is full, and the rest waits in the pipe for longer than a grandchild would be waited for."""
    script = "head -c 120000 /dev/zero; exec touch /said"
    with StreamClient(exec_url(kubelet, container, "sh", "-c", script), windows=True) as client:
        client.open("error", "stdout")
        wait_for(lambda: kubelet.shell(container, "ls /"), lambda shown: "said" in shown)
        wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "touch" not in shown)  # no zombie either
        time.sleep(2.5)
        assert client.exit_code() == 0
        assert client.received["stdout"] == bytes(120_000)


@BOTH
def test_a_terminal_echoes_and_has_the_size_that_the_client_gives(
    kubelet: Kubelet, container: str, client: AnyClient
) -> None:
    with executing(kubelet, container, "sh", client=client, stdin=True, tty=True) as session:
        session.send("resize", b'{"Width":101,"Height":31}')
        session.until("stdout", b"# ").send("stdin", b"stty size\n").until("stdout", b"31 101")
        session.send("resize", b'{"Width":77,"Height":22}')
        session.send("stdin", b"stty size\n").until("stdout", b"22 77")
        session.send("stdin", b"sleep 98765\n")
        wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "sleep 98765" in shown)
        session.send("stdin", b"\x03").until("stdout", b"^C")
        session.send("stdin", b"exit 7\n")
        assert session.exit_code() == 7


def test_a_size_that_comes_before_all_streams_is_the_terminal_s_first(kubelet: Kubelet, container: str) -> None:
    script = "while [ \"$(stty size)\" != '41 93' ]; do usleep 1000; done; echo right"  # it may be first
    with StreamClient(exec_url(kubelet, container, "sh", "-c", script, stdin=True, tty=True)) as client:
        client.open("error", "stdin", "resize").send("resize", b'{"Width":93,"Height":41}').open("stdout")
        assert client.exit_code() == 0
        assert client.received["stdout"].endswith(b"right\r\n")


def test_a_program_that_is_not_there_is_told_on_the_error_stream(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "no-such-program") as client:
        client.until_end()
        assert b"executable file not found" in client.received["error"]
        assert b"InternalError" in client.received["error"]


def test_a_client_that_leaves_ends_its_process(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "sh", "-c", "echo here; sleep 54321") as client:
        client.until("stdout", b"here")
        assert "54321" in kubelet.shell(container, "ps")
    wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "54321" not in shown)


def test_a_client_that_is_not_read_from_is_seen_to_leave(kubelet: Kubelet, container: str) -> None:
    """The process takes no input, so no more of it is read, and its end would not be either."""
    with executing(kubelet, container, "sleep", "54322", stdin=True) as client:
        client.send("stdin", bytes(400_000))
        wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "54322" in shown)
    wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "54322" not in shown)


def test_a_stream_process_that_is_killed_leaves_nothing_of_its_exec(kubelet: Kubelet, container: str) -> None:
    before = set(stream_processes())
    with executing(kubelet, container, "sh", "-c", "sleep 54323 & echo here; sleep 54324") as client:
        client.until("stdout", b"here")
        (process,) = set(stream_processes()) - before
        os.kill(process, signal.SIGKILL)
        wait_for(lambda: kubelet.shell(container, "ps"), lambda shown: "5432" not in shown)
    groups = "find /sys/fs/cgroup -name 'exec-*' 2>/dev/null | wc -l"
    wait_for(
        lambda: kubelet.shell(container, groups).strip(), lambda seen: seen in {"0", "1"}
    )  # that of the asking exec


def test_the_monitor_s_end_ends_its_sessions(daemon: Daemon, kubelet: Kubelet) -> None:
    before = set(daemon.monitors())
    container = kubelet.run(kubelet.run_pod(), "sleep", "1000")
    (monitor,) = set(daemon.monitors()) - before
    with executing(kubelet, container, "sh", "-c", "echo here; sleep 54325") as client:
        client.until("stdout", b"here")
        os.kill(monitor, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):  # by an end in order and no status kubectl would exit with 0
            client.until_end()
    wait_for(lambda: looked_up("cmdline", b"sleep\x0054325\0"), lambda found: not found)


def test_a_hundred_sessions_at_once_all_end(kubelet: Kubelet, container: str) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(executing(kubelet, container, "sh", "-c", f"exit {n}")) for n in range(100)]
        assert [client.exit_code() for client in clients] == list(range(100))


def test_a_grandchild_that_keeps_the_output_open_does_not_keep_the_session(kubelet: Kubelet, container: str) -> None:
    with executing(kubelet, container, "sh", "-c", "sleep 1000 & echo done") as client:
        assert client.exit_code() == 0
        assert client.received["stdout"] == b"done\n"


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


def test_an_exec_in_a_container_that_is_being_stopped_works(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "trap 'echo asked' TERM; echo ready; while :; do sleep 0.1; done")
    wait_for(lambda: kubelet.log(container), bool)
    stopping = threading.Thread(target=kubelet.stop, args=[container, 50])
    stopping.start()
    try:
        wait_for(lambda: kubelet.log(container), lambda lines: len(lines) > 1)
        with executing(kubelet, container, "sh", "-c", "echo last words; exit 9") as client:
            assert client.exit_code() == 9
            assert client.received["stdout"] == b"last words\n"
    finally:
        kubelet.stop(container)  # the shorter time counts for both
        stopping.join()


def test_a_client_that_never_reads_costs_a_bounded_memory(kubelet: Kubelet, container: str) -> None:
    before = set(stream_processes())
    with StreamClient(exec_url(kubelet, container, "cat", "/dev/zero")) as client:
        client.open("error", "stdout")
        (process,) = wait_for(lambda: set(stream_processes()) - before, lambda found: len(found) == 1)
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


def test_an_attached_client_that_never_reads_is_cut_off_and_stalls_nobody(kubelet: Kubelet, pod: Pod) -> None:
    script = "read x; for i in $(seq 80); do head -c 50000 /dev/zero; usleep 5000; done; echo all; sleep 1000"
    container = kubelet.run(pod, "sh", "-c", script, stdin=True)
    url = str(kubelet.Attach(container_id=container, stdout=True).url)
    with StreamClient(url, windows=True) as sleeper, executing_attach(kubelet, container) as client:
        sleeper.open("error", "stdout")
        client.send("stdin", b"\n").until("stdout", b"all\n")
        assert client.received["stdout"] == bytes(4_000_000) + b"all\n"
        assert b"read too slowly" in sleeper.until_end().received["error"]


@BOTH
def test_a_burst_reaches_an_attached_client_that_reads(kubelet: Kubelet, pod: Pod, client: AnyClient) -> None:
    """More than lies between the container and the client, as fast as the container can say it."""
    script = "read x; head -c 20000000 /dev/zero; echo all; sleep 1000"
    container = kubelet.run(pod, "sh", "-c", script, stdin=True)
    with client(str(kubelet.Attach(container_id=container, stdin=True, stdout=True).url)) as session:
        session.open("error", "stdin", "stdout").send("stdin", b"\n").until("stdout", b"all\n")
        assert len(session.received["stdout"]) == 20_000_000 + len(b"all\n")


def test_clients_that_were_attached_leave_nothing_in_the_monitor(daemon: Daemon, kubelet: Kubelet) -> None:
    """Nor do those of a container that says nothing, whose pipes to them are never written to."""
    before = set(daemon.monitors())
    container = kubelet.run(kubelet.run_pod(), "cat", stdin=True)
    (monitor,) = set(daemon.monitors()) - before
    open_files = len(os.listdir(f"/proc/{monitor}/fd"))
    for _ in range(3):
        with executing_attach(kubelet, container) as client:
            client.send("stdin", b"x\n").until("stdout", b"x\n")
    wait_for(lambda: len(os.listdir(f"/proc/{monitor}/fd")), lambda found: found == open_files)


def executing_attach(kubelet: Kubelet, container: str) -> StreamClient:
    client = StreamClient(str(kubelet.Attach(container_id=container, stdin=True, stdout=True).url))
    return client.open("error", "stdin", "stdout")


@BOTH
def test_an_attached_terminal_is_the_container_s(kubelet: Kubelet, pod: Pod, client: AnyClient) -> None:
    container = kubelet.run(pod, "sh", stdin=True, tty=True)
    with client(str(kubelet.Attach(container_id=container, stdin=True, stdout=True, tty=True).url)) as session:
        session.open("error", "stdin", "stdout", "resize").send("resize", b'{"Width":66,"Height":44}')
        session.send("stdin", b"stty size\n").until("stdout", b"44 66")
        session.send("stdin", b"exit 3\n").until_end()
    assert kubelet.wait(container).exit_code == 3


def test_attaching_as_the_container_is_not_is_refused(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with refused("INVALID_ARGUMENT", "has no tty"):
        kubelet.Attach(container_id=container, tty=True, stdout=True)
    with refused("FAILED_PRECONDITION", "without stdin"):
        kubelet.Attach(container_id=container, stdin=True, stdout=True)


# ------------------------------------------------------------- port-forward


def by_spdy(url: str) -> StreamClient:
    return StreamClient(url, "portforward.k8s.io")


def forwarded(
    kubelet: Kubelet, pod: Pod, client: Callable[[str], StreamClient] = by_spdy, port: int = 8080
) -> StreamClient:
    return client(str(kubelet.PortForward(pod_sandbox_id=pod.id, port=[port]).url))


ASKING: Final = b"GET /passwd HTTP/1.0\r\n\r\n"


@pytest.fixture
def served_files(kubelet: Kubelet, pod: Pod) -> Pod:
    """A pod that serves its /etc on port 8080, to many at once."""
    container = kubelet.run(pod, "httpd", "-f", "-p", "8080", "-h", "/etc")
    wait_for(lambda: kubelet.shell(container, "cat /proc/net/tcp /proc/net/tcp6"), lambda shown: ":1F90" in shown)
    return pod


@pytest.mark.parametrize("transport", [by_spdy, TunnelClient])
def test_connections_are_forwarded_side_by_side(
    kubelet: Kubelet, served_files: Pod, transport: Callable[[str], StreamClient]
) -> None:
    with forwarded(kubelet, served_files, transport) as client:
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


def listening(kubelet: Kubelet, pod: Pod, port: int, *command: str) -> str:
    """A container that listens, by IPv6 or both."""
    container = kubelet.run(pod, *command, name=f"listener-{port}")
    shown = f":{port:04X} "
    wait_for(lambda: kubelet.shell(container, "cat /proc/net/tcp /proc/net/tcp6"), lambda text: shown in text)
    return container


def test_a_pod_that_listens_on_ipv6_alone_is_reached(kubelet: Kubelet, pod: Pod) -> None:
    listening(kubelet, pod, 8081, "httpd", "-f", "-p", "[::1]:8081", "-h", "/etc")
    with forwarded(kubelet, pod) as client:
        client.forward(8081, "r").send(("data", "r"), ASKING, last=True).until_end(("data", "r"))
        assert b"root:" in client.received["data", "r"], client.received["error", "r"]


def test_what_a_client_ends_the_pod_reads_to_the_end_and_answers(kubelet: Kubelet, pod: Pod) -> None:
    listening(kubelet, pod, 9000, "nc", "-ll", "-p", "9000", "-e", "sh", "-c", "wc -c; sleep 1.5; echo late")
    with forwarded(kubelet, pod) as client:
        client.forward(9000, "r").send(("data", "r"), bytes(300_000), last=True).until_end(("data", "r"))
        assert client.received["data", "r"] == b"300000\nlate\n"


def test_what_the_pod_ends_ends_the_error_stream_too(kubelet: Kubelet, pod: Pod) -> None:
    """Clients wait for that before they let their user's connection go, and may not end their own side first."""
    listening(kubelet, pod, 9001, "nc", "-ll", "-p", "9001", "-e", "echo", "bye")
    with forwarded(kubelet, pod) as client:
        client.forward(9001, "r").until_end(("data", "r")).until_end(("error", "r"))
        assert client.received["data", "r"] == b"bye\n"


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_a_pod_that_hangs_up_on_what_it_has_not_read_ends_that_connection_alone(
    kubelet: Kubelet, pod: Pod, size: int
) -> None:
    """Clients leave the whole session where the error stream of one connection says anything."""
    listening(kubelet, pod, 9003, "nc", "-ll", "-p", "9003", "-e", "echo", "hello")
    with forwarded(kubelet, pod) as client:
        for name in ("one", "two"):
            client.forward(9003, name).send(("data", name), bytes(size)).until_end(("data", name))
            assert client.received["data", name] in (b"hello\n", b""), "a reset may outrun what was said"
            assert client.received["error", name] == b""


def test_ports_of_a_pod_in_the_node_s_network_are_forwarded(kubelet: Kubelet) -> None:
    security = pb.LinuxSandboxSecurityContext(namespace_options=namespaces(network=pb.NODE))
    pod = kubelet.run_pod(linux=pb.LinuxPodSandboxConfig(security_context=security))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with forwarded(kubelet, pod) as client:
            client.forward(port, "r")
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"of the node")
            client.until_end(("data", "r"))
            assert client.received["data", "r"] == b"of the node"


# ------------------------------------------------------------- independence


@BOTH
def test_sessions_outlive_the_daemon(fresh_daemon: Daemon, client: AnyClient) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    with executing(kubelet, container, "sh", "-c", "cat; exit 5", client=client, stdin=True) as session:
        session.send("stdin", b"before ").until("stdout", b"before ")
        fresh_daemon.kill()
        session.send("stdin", b"between ").until("stdout", b"between ")
        fresh_daemon.start()
        session.send("stdin", b"after", last=True)
        assert session.exit_code() == 5
        assert session.received["stdout"] == b"before between after"
    kubelet.remove_pod(pod)


@contextmanager
def sending(client: StreamClient, name: Any, pieces: list[bytes]) -> Iterator[threading.Event]:
    """In the body ``pieces`` are sent, slowly at first, by a thread; the event: until the rest may follow."""
    go = threading.Event()

    def send() -> None:
        half = len(pieces) // 2
        for piece in pieces[:half]:
            client.send(name, piece)
            go.wait(0.005)
        go.wait(60)
        for piece in pieces[half:-1]:
            client.send(name, piece)
        client.send(name, pieces[-1], last=True)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield go
    finally:
        go.set()
        thread.join()


def test_every_kind_of_session_transfers_while_the_daemon_is_killed_and_restarted(fresh_daemon: Daemon) -> None:
    """Byte for byte and with the exit code: an exec, an attach with its container's, and a forwarded connection."""
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    idle = kubelet.run(pod, "sleep", "1000")
    reader = kubelet.run(pod, "sh", "-c", "sha256sum; exit 6", stdin=True, stdin_once=True, name="reader")
    listening(kubelet, pod, 9002, "nc", "-ll", "-p", "9002", "-e", "sha256sum")
    pieces = [os.urandom(64 << 10) for _ in range(200)]
    expected = hashlib.sha256(b"".join(pieces)).hexdigest().encode()
    with (
        StreamClient(exec_url(kubelet, idle, "sh", "-c", "sha256sum; exit 5", stdin=True)) as executed,
        executing_attach(kubelet, reader) as attached,
        forwarded(kubelet, pod) as forward,
    ):
        executed.open("error", "stdin", "stdout")
        forward.forward(9002, "r")
        sessions: list[tuple[StreamClient, Any]] = [
            (executed, "stdin"),
            (attached, "stdin"),
            (forward, ("data", "r")),
        ]
        with ExitStack() as stack:
            going = [stack.enter_context(sending(client, name, pieces)) for client, name in sessions]
            time.sleep(0.1)
            fresh_daemon.kill()
            time.sleep(0.1)
            fresh_daemon.start()
            for event in going:
                event.set()
        assert executed.exit_code() == 5
        assert executed.received["stdout"].split()[0] == expected
        assert attached.until("stdout", b"-\n").received["stdout"].split()[0] == expected
        assert forward.until_end(("data", "r")).received["data", "r"].split()[0] == expected
        assert kubelet.wait(reader).exit_code == 6
    kubelet.remove_pod(pod)


# ---------------------------------------------------------------------- TLS


def test_over_tls_with_a_certificate_of_its_own_sessions_go_as_well(make_daemon: Callable[[str], Daemon]) -> None:
    """More at once than may wait for theirs to begin."""
    kubelet = make_daemon("[streaming]\ntls = true\nmax_waiting_connections = 1\n").kubelet
    container = kubelet.run(kubelet.run_pod(), "sleep", "1000")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with ExitStack() as stack:
        clients = []
        for _ in range(3):
            url = exec_url(kubelet, container, "sh", "-c", "wc -c; head -c 3000000 /dev/zero; exit 4", stdin=True)
            clients.append(stack.enter_context(StreamClient(url, context=context)).open("error", "stdin", "stdout"))
        for client in clients:
            client.send("stdin", bytes(2_000_000), last=True)
            assert client.exit_code() == 4
            assert client.received["stdout"] == b"2000000\n" + bytes(3_000_000)


def test_a_session_in_which_nobody_says_anything_ends(make_daemon: Callable[[str], Daemon]) -> None:
    kubelet = make_daemon("[streaming]\nidle_timeout_s = 2\n").kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sleep", "1000")
    with forwarded(kubelet, pod) as forward, executing(kubelet, container, "tail", "-f", "/dev/null") as session:
        assert b"nothing was said for" in session.until_end().received["error"]
        forward.until_end()
    wait_for(lambda: looked_up("cmdline", b"tail\0-f\0/dev/null\0"), lambda left: not left)


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
    wait_for(daemon.metrics, lambda shown: 'cri_py_stream_seconds_count{kind="exec"}' in shown)
