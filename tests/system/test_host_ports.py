"""Host ports through the real daemon: from the node itself, refused by name, over a crash, and gone with their pod."""

from __future__ import annotations

import socket
import subprocess

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon

PORT = 18080


def mapping(port: int = PORT) -> pb.PortMapping:
    return pb.PortMapping(protocol=pb.TCP, container_port=80, host_port=port)


def serve(kubelet: Kubelet, name: str) -> Pod:
    """A pod that tells each client its name."""
    pod = kubelet.run_pod(kubelet.pod_config(name, port_mappings=[mapping()]))
    kubelet.run(pod, "sh", "-c", f"while true; do echo {name} | nc -l -p 80; done")
    return pod


def answer(port: int = PORT) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return connection.recv(100).decode().strip()
    except OSError:
        return ""


def tables(daemon: Daemon) -> list[str]:
    listed = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if f"cri_py_{daemon.bridge}_ports" in line]


def test_a_host_port_survives_a_crash_and_goes_with_its_pod(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = serve(kubelet, "web")
    wait_for(answer, lambda said: said == "web")
    fresh_daemon.kill()
    wait_for(answer, lambda said: said == "web")
    fresh_daemon.start()
    wait_for(answer, lambda said: said == "web")
    with refused("ALREADY_EXISTS", f"host port {PORT}/tcp is taken by pod default/web", "remove that pod"):
        serve(kubelet, "late")
    kubelet.stop_pod(pod)
    assert answer() == ""
    assert tables(fresh_daemon) == []
    serve(kubelet, "late")
    wait_for(answer, lambda said: said == "late")


def test_rules_of_a_pod_that_no_record_names_are_removed_at_the_start(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    serve(kubelet, "web")
    assert tables(fresh_daemon)
    fresh_daemon.crash()
    fresh_daemon.start()
    assert tables(fresh_daemon) == []


@pytest.mark.parametrize("host_ip", ["node7", "::1"])
def test_a_host_ip_that_no_rule_can_lead_from_is_refused(kubelet: Kubelet, host_ip: str) -> None:
    with refused("INVALID_ARGUMENT", "port_mappings.host_ip", host_ip):
        kubelet.run_pod(port_mappings=[pb.PortMapping(container_port=80, host_port=PORT, host_ip=host_ip)])


def test_on_the_hosts_network_a_port_needs_no_rule(daemon: Daemon, kubelet: Kubelet) -> None:
    config = kubelet.pod_config(port_mappings=[mapping()])
    config.linux.security_context.namespace_options.network = pb.NODE
    kubelet.run_pod(config)
    assert tables(daemon) == []
