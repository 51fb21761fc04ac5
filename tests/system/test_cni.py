"""Pods that Debian's CNI plugins attach, through the real daemon: they reach each other, outlive it, leave nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon
from tests.system.test_host_ports import PORT, answer, mapping, serve, tables

MakeDaemon = Callable[..., Daemon]


@contextlib.contextmanager
def driven(daemon: Daemon) -> Iterator[Kubelet]:
    """As its kubelet drives it; afterwards all pods are removed, and nothing of them is left."""
    yield daemon.kubelet
    daemon.kubelet.sweep()
    assert daemon.left_over() == []
    assert leases(daemon) == []
    assert list((daemon.root / "cni").iterdir()) == []


def leases(daemon: Daemon) -> list[str]:
    """The addresses that host-local has given; its other files are lock and last_reserved_ip.N."""
    return sorted(name for name in os.listdir(daemon.directory / "ipam" / daemon.bridge) if not name.startswith("l"))


def ips(kubelet: Kubelet, pod: Pod) -> list[str]:
    network = kubelet.pod_status(pod).network
    return [network.ip, *(extra.ip for extra in network.additional_ips)]


def network_ready(kubelet: Kubelet) -> tuple[bool, str]:
    conditions = {condition.type: condition for condition in kubelet.Status().status.conditions}
    return conditions["NetworkReady"].status, conditions["NetworkReady"].message


def reaches(kubelet: Kubelet, container: str, address: str) -> bool:
    return not kubelet.exec(container, "ping", "-c", "1", "-w", "5", address).exit_code


def test_pods_reach_each_other_over_both_families_and_over_the_daemons_death(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge", "portmap", "bandwidth", "tuning"])
    with driven(daemon) as kubelet:
        web = serve(kubelet, "web")
        client = kubelet.run_pod()
        inside = kubelet.run(client, "sleep", "600")
        four, six = ips(kubelet, web)
        assert (":" in four, ":" in six) == (False, True)
        daemon.kill()
        daemon.start()
        assert ips(kubelet, web) == [four, six]
        assert all(reaches(kubelet, inside, address) for address in (four, six))
        wait_for(answer, lambda said: said == "web")  # portmap
        assert tables(daemon) == []
        with refused("ALREADY_EXISTS", f"host port {PORT}/tcp is taken by pod default/web"):
            serve(kubelet, "late")
        kubelet.stop_pod(web)
        assert answer() == ""


def test_without_portmap_host_ports_are_led_by_the_daemon(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge"])
    with driven(daemon) as kubelet:
        web = serve(kubelet, "web")
        wait_for(answer, lambda said: said == "web")
        assert tables(daemon)
        daemon.kill()
        daemon.start()
        wait_for(answer, lambda said: said == "web")
        kubelet.stop_pod(web)
        assert (answer(), tables(daemon)) == ("", [])


def test_a_status_shows_what_the_plugins_answered(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge"])
    with driven(daemon) as kubelet:
        pod = kubelet.run_pod()
        shown = json.loads(kubelet.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"])
        addresses = [ip["address"].split("/")[0] for ip in shown["cniResult"]["ips"]]
        assert addresses == ips(kubelet, pod)
        assert os.path.basename(shown["netns"]).startswith(f"cri-default-{pod.config.metadata.name}-{pod.id[:12]}-")
        node = kubelet.Status(verbose=True).info
        assert json.loads(node["cniconfig"])["network"]["name"] == daemon.bridge
        assert node["lastCNILoadStatus"] == "OK"


def test_a_reboot_frees_every_address(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge", "portmap"])
    with driven(daemon) as kubelet:
        pods = [kubelet.run_pod(), kubelet.run_pod(kubelet.pod_config(port_mappings=[mapping()]))]
        before = [address for pod in pods for address in ips(kubelet, pod)]
        assert sorted(before) == leases(daemon)
        daemon.crash()
        daemon.start()
        for pod in pods:
            kubelet.remove_pod(pod)
        assert leases(daemon) == []


def test_what_no_record_names_is_given_back_after_the_start(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge"])
    with driven(daemon) as kubelet:
        kubelet.run_pod()
        assert leases(daemon)
        daemon.crash()
        for name in ("pods.db", "pods.db-wal", "pods.db-shm"):
            (daemon.root / name).unlink(missing_ok=True)
        daemon.start()
        wait_for(lambda: leases(daemon), lambda left: not left)


def test_the_node_is_not_ready_while_there_is_no_configuration(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge"])
    conf = daemon.directory / "net.d"
    with driven(daemon) as kubelet:
        assert network_ready(kubelet) == (True, "")
        os.rename(conf, f"{conf}.away")
        wait_for(lambda: network_ready(kubelet), lambda told: not told[0] and f"{conf} can't be read" in told[1])
        with refused("FAILED_PRECONDITION", "the CNI network is not ready"):
            kubelet.run_pod()
        os.rename(f"{conf}.away", conf)
        wait_for(lambda: network_ready(kubelet), lambda told: told == (True, ""))
        kubelet.run_pod()


def test_a_pod_with_a_user_namespace_is_attached_inside_it(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge"])
    with driven(daemon) as kubelet:
        config = kubelet.pod_config()
        mappings = [pb.IDMapping(host_id=1 << 20, container_id=0, length=65536)]
        config.linux.security_context.namespace_options.userns_options.CopyFrom(
            pb.UserNamespace(mode=pb.POD, uids=mappings, gids=mappings)
        )
        pod = kubelet.run_pod(config)
        assert ips(kubelet, pod)[0].startswith(daemon.subnet.rsplit(".", 1)[0])


def test_bad_annotations_are_refused_before_anything_is_made(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(cni=["bridge", "bandwidth"])
    with driven(daemon) as kubelet:
        with refused("INVALID_ARGUMENT", "kubernetes.io/ingress-bandwidth", "'fast'"):
            kubelet.run_pod(annotations={"kubernetes.io/ingress-bandwidth": "fast"})
        pod = kubelet.run_pod(annotations={"kubernetes.io/ingress-bandwidth": "10M"})
        assert ips(kubelet, pod)
