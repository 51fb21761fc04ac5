"""The calls of a chain: their order, what each is told, and what becomes of errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from cri_py.errors import CriError, FailedPrecondition, Internal, InvalidArgument, Unavailable
from cri_py.model import (
    DnsConfig,
    Nanos,
    NotReady,
    PortMapping,
    Sandbox,
    SandboxConfig,
    SandboxId,
    SandboxMetadata,
    TransportProtocol,
)
from cri_py.network.cni import chain
from cri_py.network.cni.calls import Call, Subject, subject
from cri_py.network.cni.configs import Loaded, from_document
from cri_py.network.program import Ended

RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/16"}]}


@dataclass
class Runner:
    """Answers as it is told to by plugin and command, else as a plugin that does nothing."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    async def run(self, call: Call) -> Ended:
        self.calls.append(call)
        said = self.answers.get((call.type, call.command), {})
        if isinstance(said, CriError):
            raise said
        config = json.loads(call.stdin)
        passed_on = config.get("prevResult", RESULT) if call.command == "ADD" else {}
        return Ended(1 if said.get("code") else 0, json.dumps(said or passed_on).encode(), b"")

    def order(self) -> list[str]:
        return [f"{call.command} {call.type}" for call in self.calls]

    def configs(self) -> list[dict[str, Any]]:
        return [json.loads(call.stdin) for call in self.calls]


def network(version: str = "1.1.0", capabilities: dict[str, bool] | None = None, **fields: Any) -> Loaded:
    plugins = [{"type": "first", "mtu": 1400, "capabilities": capabilities or {}}, {"type": "second"}]
    return Loaded(from_document({"cniVersion": version, "name": "net", "plugins": plugins, **fields}), version)


def pod(cidrs: tuple[str, ...] = (), **fields: Any) -> Subject:
    config = SandboxConfig(SandboxMetadata("web", "u-1", "default"), **fields)
    sandbox = Sandbox(SandboxId("f" * 64), config, "", Nanos(0), NotReady(Nanos(0), ""), cgroup="/kubepods/pod1")
    return subject(sandbox, "/run/netns/web", cidrs)


async def test_add_goes_forward_and_hands_on_what_came_before() -> None:
    runner = Runner({("first", "ADD"): {**RESULT, "interfaces": [{"name": "br0"}]}})
    result = await chain.add(runner, network(), pod())
    assert runner.order() == ["ADD first", "ADD second"]
    first, second = runner.configs()
    assert first == {"cniVersion": "1.1.0", "name": "net", "type": "first", "mtu": 1400}
    assert second["prevResult"] == result == {**RESULT, "interfaces": [{"name": "br0"}]}


async def test_a_plugin_is_told_of_the_pod_by_its_environment() -> None:
    runner = Runner()
    await chain.add(runner, network(), pod())
    assert runner.calls[0].variables == {
        "CNI_CONTAINERID": "f" * 64,
        "CNI_NETNS": "/run/netns/web",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
        f"K8S_POD_INFRA_CONTAINER_ID={'f' * 64};K8S_POD_UID=u-1",
    }


async def test_an_answer_of_another_version_is_converted_for_the_next_plugin() -> None:
    old = {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/16"}}
    runner = Runner({("first", "ADD"): old})
    await chain.add(runner, network("1.0.0"), pod())
    assert runner.configs()[1]["prevResult"] == {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}]}


async def test_an_answer_of_no_version_is_of_the_one_that_was_asked_for() -> None:
    runner = Runner({("first", "ADD"): {"ips": [{"address": "10.1.0.5/16"}]}})
    assert (await chain.add(runner, network("1.0.0"), pod()))["cniVersion"] == "1.0.0"


async def test_add_ends_with_the_first_error_which_names_network_and_plugin() -> None:
    runner = Runner({("first", "ADD"): {"code": 11, "msg": "busy"}})
    with pytest.raises(Unavailable, match=r"net, ADD: CNI plugin first refused ADD with code 11: .*later: busy"):
        await chain.add(runner, network(), pod())
    assert runner.order() == ["ADD first"]


async def test_a_result_that_makes_no_sense_is_an_error() -> None:
    runner = Runner({("second", "ADD"): {"cniVersion": "1.1.0", "ips": "all"}})
    with pytest.raises(Internal, match="network net, ADD by second: a CNI result"):
        await chain.add(runner, network(), pod())
    with pytest.raises(Internal, match="unknown version '77'"):
        await chain.add(Runner({("first", "ADD"): {"cniVersion": "77"}}), network(), pod())


async def test_del_goes_backwards_with_the_result_and_calls_all() -> None:
    runner = Runner({("second", "DEL"): FailedPrecondition("CNI plugin second is not there")})
    with pytest.raises(FailedPrecondition, match="network net, DEL: CNI plugin second"):
        await chain.delete(runner, network(), pod(), RESULT)
    assert runner.order() == ["DEL second", "DEL first"]
    assert [config["prevResult"] for config in runner.configs()] == [RESULT, RESULT]


@pytest.mark.parametrize(("version", "result"), [("0.3.1", RESULT), ("1.1.0", None)])
async def test_del_has_no_result_where_there_is_none_or_the_version_is_too_old(version: str, result: Any) -> None:
    runner = Runner()
    await chain.delete(runner, network(version), pod(), result)
    assert all("prevResult" not in config for config in runner.configs())


async def test_check_asks_forward_unless_the_network_or_its_version_has_none() -> None:
    runner = Runner()
    await chain.check(runner, network("0.3.1"), pod(), RESULT)
    await chain.check(runner, network(disableCheck=True), pod(), RESULT)
    assert runner.calls == []
    await chain.check(runner, network("0.4.0"), pod(), RESULT)
    assert runner.order() == ["CHECK first", "CHECK second"]
    assert runner.configs()[1]["prevResult"] == RESULT


async def test_status_asks_without_a_pod_and_from_1_1_on() -> None:
    runner = Runner({("second", "STATUS"): {"code": 50, "msg": "no daemon"}})
    await chain.status(runner, network("1.0.0"))
    assert runner.calls == []
    with pytest.raises(Unavailable, match="second refused STATUS with code 50: it is not available: no daemon"):
        await chain.status(runner, network())
    assert runner.calls[0].variables == {}


async def test_gc_tells_what_is_valid_and_calls_all() -> None:
    runner = Runner({("first", "GC"): {"code": 5, "msg": "disk"}})
    with pytest.raises(Internal, match="GC: CNI plugin first"):
        await chain.collect(runner, network(), [("b", "eth0"), ("a", "eth0")])
    assert runner.order() == ["GC first", "GC second"]
    wanted = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}]
    assert runner.configs()[1]["cni.dev/valid-attachments"] == wanted
    await chain.collect(runner, network(disableGC=True), [])
    await chain.collect(runner, network("1.0.0"), [])
    assert len(runner.calls) == 2


# ------------------------------------------------------------ capabilities


async def runtime_config(about: Subject, *capabilities: str) -> dict[str, Any]:
    runner = Runner()
    await chain.add(runner, network(capabilities=dict.fromkeys(capabilities, True)), about)
    first, second = runner.configs()
    assert "runtimeConfig" not in second
    assert "capabilities" not in first
    asked: dict[str, Any] = first.get("runtimeConfig", {})
    return asked


async def test_a_plugin_is_told_of_the_capabilities_that_it_asks_for() -> None:
    mappings = (
        PortMapping(TransportProtocol.UDP, 53, 5353, "192.0.2.1"),
        PortMapping(TransportProtocol.TCP, 80, 8080),
        PortMapping(TransportProtocol.TCP, 81, 0),
    )
    annotations = {
        "kubernetes.io/ingress-bandwidth": "10M",
        "kubernetes.io/egress-bandwidth": "1Gi",
        "cri-py.io/mac": "0a:58:0a:01:00:05",
    }
    dns = DnsConfig(servers=("10.0.0.10",), searches=("svc",))
    about = pod(("10.1.0.0/24", "fd00::/64"), port_mappings=mappings, annotations=annotations, dns=dns)
    names = ("portMappings", "bandwidth", "dns", "ipRanges", "aliases", "mac", "cgroupPath")
    assert await runtime_config(about, *names, "io.kubernetes.cri.pod-annotations") == {
        "portMappings": [
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        ],
        "bandwidth": {
            "ingressRate": 10_000_000,
            "ingressBurst": 4294967295,
            "egressRate": 1 << 30,
            "egressBurst": 4294967295,
        },
        "dns": {"servers": ["10.0.0.10"], "searches": ["svc"]},
        "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
        "aliases": ["web"],
        "mac": "0a:58:0a:01:00:05",
        "cgroupPath": "/kubepods/pod1",
        "io.kubernetes.cri.pod-annotations": annotations,
    }


async def test_what_a_pod_does_not_ask_for_is_not_told() -> None:
    assert await runtime_config(pod(), "portMappings", "bandwidth", "dns", "ipRanges", "mac") == {}


def test_a_bandwidth_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"kubernetes\.io/egress-bandwidth is 'fast'"):
        pod(annotations={"kubernetes.io/egress-bandwidth": "fast"})
