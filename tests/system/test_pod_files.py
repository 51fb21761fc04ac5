"""/etc/hosts, /etc/hostname and /etc/resolv.conf of pods on the host's network, and where a volume covers them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, namespaces

FILES = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


def shown(kubelet: Kubelet, config: pb.PodSandboxConfig, mounts: list[pb.Mount]) -> list[str]:
    """The three files, and what the hostname is, as a container sees them."""
    container = kubelet.container_config("sleep", "1000", mounts=mounts)
    container.linux.security_context.namespace_options.network = config.linux.security_context.namespace_options.network
    inside = kubelet.run(kubelet.run_pod(config), config=container)
    return [kubelet.shell(inside, f"cat {path}") for path in FILES] + [kubelet.shell(inside, "hostname").strip()]


def test_on_the_hosts_network_names_are_the_nodes(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.hostname = ""
    config.linux.security_context.namespace_options.CopyFrom(namespaces(network=pb.NODE))
    hosts, hostname, resolver, told = shown(kubelet, config, [])
    assert (told, hostname) == (socket.gethostname(), f"{socket.gethostname()}\n")
    assert hosts == Path("/etc/hosts").read_text()
    assert resolver == Path("/etc/resolv.conf").read_text()


@pytest.mark.parametrize("network", [pb.POD, pb.NODE])
def test_a_volume_covers_the_pods_own_file(kubelet: Kubelet, tmp_path: Path, network: pb.NamespaceMode) -> None:
    mounts = []
    for path in FILES:
        (tmp_path / Path(path).name).write_text(f"the volume's {path}")
        mounts.append(pb.Mount(container_path=path, host_path=str(tmp_path / Path(path).name)))
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(network=network))
    assert shown(kubelet, config, mounts)[:3] == [f"the volume's {path}" for path in FILES]


def test_a_whole_name_is_the_hostname_of_a_pod(kubelet: Kubelet) -> None:
    name = "web.shop.svc.cluster.local"
    hosts, hostname, _, told = shown(kubelet, kubelet.pod_config(hostname=name), [])
    assert (told, hostname) == (name, f"{name}\n")
    assert hosts.split()[-1] == name
