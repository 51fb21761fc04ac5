"""The built-in network through the real daemon: both families, over its death and a reboot; the kubelet's ranges."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, refused, wait_for
from tests.system.daemon import Daemon
from tests.system.test_cni import ips, reaches
from tests.system.test_host_ports import answer, serve

MakeDaemon = Callable[..., Daemon]
BOTH = '[network]\nsubnet6 = "fd00:c41:1::/64"\n'


def tell(kubelet: Kubelet, cidr: str) -> None:
    network = pb.NetworkConfig(pod_cidr=cidr)
    kubelet.UpdateRuntimeConfig(runtime_config=pb.RuntimeConfig(network_config=network))


def test_three_pods_outlive_the_daemon_and_are_gone_after_a_reboot(
    make_daemon: MakeDaemon,
) -> None:
    daemon = make_daemon(BOTH)
    kubelet = daemon.kubelet
    web, client, third = serve(kubelet, "web"), kubelet.run_pod(), kubelet.run_pod()
    inside = kubelet.run(client, "sleep", "600")
    addresses = [ips(kubelet, pod) for pod in (web, client, third)]
    daemon.kill()
    assert wait_for(answer, bool) == "web"
    daemon.start()
    assert [ips(kubelet, pod) for pod in (web, client, third)] == addresses
    for address in (*addresses[0], *addresses[2], "fd00:c41:1::1"):
        assert reaches(kubelet, inside, address), address
    assert wait_for(answer, bool) == "web"
    daemon.crash()
    daemon.start()
    assert answer() == ""
    for pod in (web, client, third):
        kubelet.remove_pod(pod)
    daemon.restart()  # addresses are given in turn, from the first on
    again = [address for _ in range(4) for address in ips(kubelet, kubelet.run_pod())]
    assert {address for pair in addresses for address in pair} <= set(again)
    kubelet.sweep()
    assert daemon.left_over() == []


def test_pods_get_addresses_of_the_kubelets_ranges_also_after_a_restart(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    kubelet = daemon.kubelet
    network = ip_network(daemon.subnet)
    told = ip_network((network.network_address + (1 << 20), 24))  # 10.X+16.Y.0: of nobody else here
    old = kubelet.run_pod()
    with refused("INVALID_ARGUMENT", "pod_cidr"):
        tell(kubelet, "10.1.0.0/99")
    tell(kubelet, f"{told},fd00:c41:2::/64")
    new = kubelet.run_pod()
    daemon.restart()
    later = kubelet.run_pod()
    assert ip_address(ips(kubelet, old)[0]) in network
    assert [ip_address(ips(kubelet, pod)[0]) in told for pod in (new, later)] == [True, True]
    assert ips(kubelet, later)[1] == "fd00:c41:2::3"
    shown = json.loads(kubelet.PodSandboxStatus(pod_sandbox_id=later.id, verbose=True).info["info"])
    assert [ip["address"].split("/")[0] for ip in shown["cniResult"]["ips"]] == ips(kubelet, later)
    kubelet.sweep()
    assert daemon.left_over() == []
