"""Host ports on a real kernel, with rules that nft has loaded. Every test has a node of its own. Needs root."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cri_py.errors import AlreadyExists
from cri_py.model import (
    Attachment,
    Nanos,
    NotReady,
    PortMapping,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    TransportProtocol,
)
from cri_py.network import program
from cri_py.network.hostports import HostPorts
from cri_py.network.pod_network import PodNetwork
from tests.kernel.test_network import inside, make, named, on_own_node, pinned

pytestmark = pytest.mark.root
TCP, UDP, SCTP = TransportProtocol


def network_of(tmp_path: Path, **changes: Any) -> PodNetwork:
    """The node has the addresses 192.0.2.1 and, once it is started, 10.66.0.1."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "replace", "192.0.2.1/32", "dev", "lo"], check=True)
    return PodNetwork(make(tmp_path, masquerade=True, **changes), HostPorts("t-br0"))


def sandbox(name: str, *mappings: PortMapping, attachment: Attachment | None = None) -> Sandbox:
    config = SandboxConfig(SandboxMetadata(name, "", "default"), port_mappings=mappings)
    return Sandbox(SandboxId(name), config, "", Nanos(0), NotReady(Nanos(0), ""), attachment)


async def attach(network: PodNetwork, name: str, *mappings: PortMapping) -> Sandbox:
    attachment = await network.attach(sandbox(name, *mappings), lambda: None)
    return sandbox(name, *mappings, attachment=attachment)


def where(pod: Sandbox) -> Attachment:
    assert pod.attachment is not None
    return pod.attachment


class Echo:
    """In a pod: tells each client, once, what name it has and where it saw the client come from."""

    def __init__(
        self,
        pod: Sandbox,
        kind: socket.SocketKind = socket.SOCK_STREAM,
        port: int = 80,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> None:
        self._socket = inside(where(pod), lambda: socket.socket(family, kind))
        self._socket.settimeout(20)
        self._socket.bind(("", port))
        self._name = pod.id
        self._thread = threading.Thread(target=self._serve_stream if kind is socket.SOCK_STREAM else self._serve)
        if kind is socket.SOCK_STREAM:
            self._socket.listen()
        self._thread.start()

    def _serve_stream(self) -> None:
        while True:
            try:
                client, (address, *_) = self._socket.accept()
            except OSError:
                return
            with client:
                client.sendall(f"{self._name} {address}".encode())

    def _serve(self) -> None:
        while True:
            asked, client = self._socket.recvfrom(100)
            if asked == b"end":
                return
            self._socket.sendto(f"{self._name} {client[0]}".encode(), client)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket.type is socket.SOCK_STREAM:
            self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._socket.sendto(b"end", ("127.0.0.1", self._socket.getsockname()[1]))
        self._thread.join(60)
        self._socket.close()


def ask(address: str, port: int, timeout_s: float = 30) -> str:
    with socket.create_connection((address, port), timeout=timeout_s) as connection:
        return connection.recv(100).decode()


def ask_by(client: socket.socket, address: str, port: int) -> str:
    client.settimeout(30)
    client.sendto(b"?", (address, port))
    return client.recv(100).decode()


def routes_loopback() -> bool:
    return Path("/proc/sys/net/ipv4/conf/t-br0/route_localnet").read_text() == "1\n"


def tables() -> str:
    return subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout


def asking(address: str, port: int, timeout_s: float = 30) -> Callable[[], str]:
    return lambda: ask(address, port, timeout_s)


@on_own_node
async def test_a_host_port_answers_from_the_node_from_pods_and_from_outside(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    await network.start()
    outside = make(tmp_path / "beyond", bridge="t-up", subnet="10.99.0.0/24")
    await outside.start()
    stranger = await outside.attach(named("stranger"))
    web = await attach(network, "web", PortMapping(TCP, 80, 8080))
    client = await attach(network, "client")
    own, neighbour = where(web).ips[0], where(client)
    with Echo(web):
        assert ask("127.0.0.1", 8080) == "web 10.66.0.1"
        assert ask("127.0.0.7", 8080) == "web 10.66.0.1"
        assert ask("192.0.2.1", 8080) == "web 192.0.2.1"  # the node's own address, which the pod can answer
        assert ask("10.66.0.1", 8080) == "web 10.66.0.1"
        assert inside(neighbour, asking("192.0.2.1", 8080)) == "web 10.66.0.1"
        assert inside(where(web), asking("192.0.2.1", 8080)) == "web 10.66.0.1"  # itself
        assert inside(neighbour, asking(own, 80)) == f"web {neighbour.ips[0]}"  # no host port: not translated
        assert inside(stranger, asking("192.0.2.1", 8080)) == f"web {stranger.ips[0]}"  # as it came
        with pytest.raises(ConnectionRefusedError):
            ask("127.0.0.1", 80)
    await network.detach(web)
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 8080)
    assert "ports" not in tables()
    await network.detach(client)
    await outside.detach(stranger)


@on_own_node
async def test_what_listens_on_the_nodes_loopback_is_not_within_reach_of_pods(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    await network.start()
    pod = await attach(network, "pod", PortMapping(TCP, 80, 8080))
    assert routes_loopback()
    with socket.socket(type=socket.SOCK_DGRAM) as private:
        private.bind(("127.0.0.1", 5000))
        private.settimeout(0.3)

        def reach() -> None:
            subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
            subprocess.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"], check=True)
            subprocess.run(["ip", "route", "flush", "table", "local"], check=True)
            subprocess.run(["ip", "route", "add", "127.0.0.1", "via", "10.66.0.1", "dev", "eth0"], check=True)
            with socket.socket(type=socket.SOCK_DGRAM) as pods:
                pods.sendto(b"let me in", ("127.0.0.1", 5000))

        inside(where(pod), reach)
        with pytest.raises(TimeoutError):
            private.recv(100)
    await network.detach(pod)


@on_own_node
async def test_a_port_at_one_address_is_not_at_another(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    await network.start()
    one = await attach(network, "one", PortMapping(TCP, 80, 8080, "127.0.0.1"))
    two = await attach(network, "two", PortMapping(TCP, 80, 8080, "10.66.0.1"))
    with Echo(one), Echo(two):
        assert ask("127.0.0.1", 8080).startswith("one ")
        assert ask("10.66.0.1", 8080).startswith("two ")
        with pytest.raises(ConnectionRefusedError):
            ask("127.0.0.2", 8080)
    await network.detach(one)
    await network.detach(two)


@on_own_node
async def test_a_udp_client_that_keeps_asking_reaches_the_next_pod(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    await network.start()
    mapping = PortMapping(UDP, 53, 5353)
    one = await attach(network, "one", mapping)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        with Echo(one, socket.SOCK_DGRAM, 53):
            assert ask_by(client, "127.0.0.1", 5353).startswith("one ")
        await network.detach(one)
        two = await attach(network, "two", mapping)
        with Echo(two, socket.SOCK_DGRAM, 53):
            assert ask_by(client, "127.0.0.1", 5353).startswith("two ")
    await network.detach(two)


@on_own_node
async def test_a_taken_port_refuses_a_pod_by_its_owners_name_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    await network.start()
    web = await attach(network, "web", PortMapping(TCP, 80, 8080))
    with pytest.raises(AlreadyExists, match=r"host port 8080/tcp is taken by pod default/web"):
        await attach(network, "late", PortMapping(TCP, 80, 8080))
    assert pinned(tmp_path / "netns") == ["web"]
    with Echo(web):
        assert ask("127.0.0.1", 8080).startswith("web ")
    await network.detach(web)
    await network.detach(await attach(network, "late", PortMapping(TCP, 80, 8080)))


@on_own_node
async def test_a_restart_keeps_ports_open_and_removes_those_of_pods_that_are_gone(tmp_path: Path) -> None:
    before = network_of(tmp_path)
    await before.start()
    stays = await attach(before, "stays", PortMapping(TCP, 80, 8080))
    await attach(before, "gone", PortMapping(TCP, 80, 8081))
    again = network_of(tmp_path)
    await again.start()
    with Echo(stays):
        assert ask("127.0.0.1", 8080).startswith("stays ")
        assert again.adopt(stays)
        await again.sweep({"stays"})
        assert ask("127.0.0.1", 8080).startswith("stays ")
        with pytest.raises(ConnectionRefusedError):
            ask("127.0.0.1", 8081)
    await again.detach(stays)
    await again.stop()
    assert "ports" not in tables()


@on_own_node
async def test_a_host_port_answers_over_ipv6_from_the_node_and_from_pods(tmp_path: Path) -> None:
    network = network_of(tmp_path, subnet6="fd66::/64")
    await network.start()
    web = await attach(network, "web", PortMapping(TCP, 80, 8080), PortMapping(TCP, 80, 8081, "fd66::1"))
    client = await attach(network, "client")
    with Echo(web, family=socket.AF_INET6):
        for port in (8080, 8081):
            assert ask("fd66::1", port) == "web fd66::1"
            assert inside(where(client), lambda port=port: ask("fd66::1", port)) == "web fd66::1"
            assert inside(where(web), lambda port=port: ask("fd66::1", port)) == "web fd66::1"
    await network.detach(web)
    await network.detach(client)


@on_own_node
async def test_rules_that_somebody_flushes_are_written_anew(tmp_path: Path) -> None:
    network = network_of(tmp_path)
    await network.start()
    await network.sweep(set())
    web = await attach(network, "web", PortMapping(TCP, 80, 8080))
    whole = rules()
    assert "8080" in whole
    for flush in ("flush ruleset", "delete table ip cri_py_t_2dbr0", "flush chain inet cri_py_t_2dbr0_ports output"):
        await program.run(["/usr/sbin/nft", flush], deadline_s=10)
        assert rules() != whole
        async with asyncio.timeout(60):
            while rules() != whole:  # noqa: ASYNC110 it is nft's act
                await asyncio.sleep(0.02)
    await network.detach(web)
    await network.stop()
    assert "ports" not in tables()


@on_own_node
async def test_a_host_port_leads_to_an_isolated_pod_and_nothing_else_does(tmp_path: Path) -> None:
    network = network_of(tmp_path, isolate_pods=True, subnet6="fd66::/64")
    await network.start()
    web = await attach(network, "web", PortMapping(TCP, 80, 8080), PortMapping(TCP, 81, 8081))
    client = await attach(network, "client")
    ways = ((socket.AF_INET, "10.66.0.2", "192.0.2.1", 80), (socket.AF_INET6, "fd66::2", "fd66::1", 81))
    for family, own, node, port in ways:
        with Echo(web, family=family, port=port):
            assert ask(node, 8000 + port).startswith("web ")
            assert inside(where(client), asking(node, 8000 + port)).startswith("web ")
            assert inside(where(web), asking(node, 8000 + port)).startswith("web ")
            with pytest.raises(OSError, match=r"timed out|No route to host"):
                inside(where(client), asking(own, port, timeout_s=2))
    await network.detach(web)
    await network.detach(client)


# -------------------------------------------------------------------- SCTP


def sctp_init(source: int, port: int) -> bytes:
    """The packet that asks for an association (RFC 9260, 3.3.2)."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 7)
    checksum = crc32c(struct.pack("!HHII", source, port, 0, 0) + chunk)
    return struct.pack("!HHI", source, port, 0) + struct.pack("<I", checksum) + chunk


def crc32c(content: bytes) -> int:
    """RFC 9260, appendix A."""
    rest = 0xFFFFFFFF
    for byte in content:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def send_init(address: str, source: int, port: int) -> None:
    """By hand, as not every kernel has sockets of SCTP; all translate it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP) as sending:
        sending.sendto(sctp_init(source, port), (address, 0))


@on_own_node
async def test_an_sctp_host_port_leads_to_the_pod_in_both_families(tmp_path: Path) -> None:
    network = network_of(tmp_path, subnet6="fd66::/64")
    await network.start()
    pod, client = await attach(network, "pod", PortMapping(SCTP, 38412, 9000)), await attach(network, "client")
    for family, node in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "fd66::1")):
        with inside(
            where(pod), lambda family=family: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP)
        ) as raw:
            raw.settimeout(60)
            senders = [lambda node=node: send_init(node, 5001, 9000)]
            senders.append(lambda node=node: inside(where(client), lambda: send_init(node, 5002, 9000)))
            for send in senders:
                send()
                packet = raw.recv(200)
                header = packet[20:] if family is socket.AF_INET else packet
                assert struct.unpack_from("!2xH", header) == (38412,)
                assert struct.unpack_from("<I", header, 8)[0] == crc32c(header[:8] + bytes(4) + header[12:])
    await network.detach(pod)
    await network.detach(client)


# ------------------------------------------------------- the bridge is gone


@on_own_node
async def test_a_bridge_that_somebody_removed_comes_back_with_all_pods_and_ports(tmp_path: Path) -> None:
    network = network_of(tmp_path, subnet6="fd66::/64")
    await network.start()
    web = await attach(network, "web", PortMapping(TCP, 80, 8080))
    with Echo(web):
        remove_bridge()
        client = await attach(network, "client")
        assert ask("127.0.0.1", 8080) == "web 10.66.0.1"
        assert inside(where(client), asking(where(web).ips[0], 80)) == f"web {where(client).ips[0]}"
        remove_bridge()
        assert network.condition().status  # and whoever asks this has it mended
        await eventually(lambda: ask("127.0.0.1", 8080) == "web 10.66.0.1")
        await network.stop()
        remove_bridge()
        again = network_of(tmp_path, subnet6="fd66::/64")  # a daemon that finds it so
        await again.start()
        assert again.adopt(web)
        assert again.adopt(client)
        await again.sweep({"web", "client"})
        assert ask("127.0.0.1", 8080) == "web 10.66.0.1"
        assert inside(where(client), asking(where(web).ips[0], 80)) == f"web {where(client).ips[0]}"
    await again.detach(web)
    await again.detach(client)
    await again.stop()
    assert again.condition().message == "the daemon is stopping"


def remove_bridge() -> None:
    subprocess.run(["ip", "link", "delete", "t-br0"], check=True)


async def eventually(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(suppressing, fact):  # noqa: ASYNC110 what changes is no task's
            await asyncio.sleep(0.02)


def suppressing(fact: Callable[[], bool]) -> bool:
    try:
        return fact()
    except OSError:
        return False


def rules() -> str:
    """All rules; the counter of a table's number grows, and the order of new tables is their age's."""
    listed = subprocess.run(["nft", "--stateless", "list", "ruleset"], check=True, capture_output=True, text=True)
    return "".join(sorted(f"table {table}" for table in listed.stdout.split("table ")))
