"""Pods attached by CNI plugins, ours that misbehave and Debian's, each test on a node of its own. Needs root."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cri_py.config import CniHandlerConfig, NetworkConfig
from cri_py.errors import (
    AlreadyExists,
    CriError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from cri_py.model import Attachment
from cri_py.network import netns
from cri_py.network.cni.wires import Cni
from tests.kernel.test_network import inside, named, on_own_node, ping, pinned
from tests.simulators.cni_plugin import PluginSimulator

pytestmark = pytest.mark.root
DEBIAN = "/usr/lib/cni"


@contextlib.asynccontextmanager
async def serving(directory: Path, **changes: Any) -> AsyncIterator[Cni]:
    """A daemon's network from its start to its end; what it left is there for the next."""
    config = NetworkConfig(
        plugin="cni",
        cni_conf_dir=str(directory / "net.d"),
        cni_bin_dirs=(str(directory / "bin"), DEBIAN),
        **{"cni_timeout_s": 5.0, **changes},
    )
    async with asyncio.TaskGroup() as tasks:
        cni = Cni(config, str(directory / "netns"), str(directory), str(directory / "cache"), tasks)
        await cni.start()
        try:
            yield cni
        finally:
            await cni.stop()


@pytest.fixture
def plugin(tmp_path: Path) -> PluginSimulator:
    made = PluginSimulator(tmp_path)
    made.configure(tmp_path / "net.d")
    return made


async def attach(cni: Cni, name: str) -> Attachment:
    return await cni.attach(named(name), lambda: None, 0)


def remains(directory: Path) -> tuple[list[str], list[str]]:
    """What of pods is there: whose namespaces are pinned, whose results are kept."""
    return pinned(directory / "netns"), sorted(path.stem for path in (directory / "cache").iterdir())


# -------------------------------------------------------------- a good plugin


@on_own_node
async def test_a_pod_gets_what_the_plugins_give_and_gives_it_back(tmp_path: Path, plugin: PluginSimulator) -> None:
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
        assert (pod.ips, pod.interface, pod.host_interface) == (("10.77.0.2",), "eth0", "fake0")
        assert ping(pod.netns_path, "127.0.0.1")  # lo is up without a plugin
        assert remains(tmp_path) == (["web"], ["web"])
        with pytest.raises(AlreadyExists):
            await attach(cni, "web")
        result = cni.result(pod)
        assert result is not None
        assert result["ips"][0]["address"] == "10.77.0.2/24"
        await cni.detach(pod)
        await cni.detach(pod)
    assert (remains(tmp_path), plugin.leases()) == (([], []), {})
    assert plugin.commands() == ["STATUS", "ADD", "DEL"]
    assert plugin.calls()[-1]["config"]["prevResult"] == result
    assert plugin.calls()[-1]["environment"]["CNI_NETNS"] == pod.netns_path


@on_own_node
async def test_the_namespace_is_told_of_before_the_plugins_run(tmp_path: Path, plugin: PluginSimulator) -> None:
    heard: list[list[str]] = []
    async with serving(tmp_path) as cni:
        pod = await cni.attach(named("web"), lambda: heard.append(plugin.commands()), 0)
        await cni.detach(pod)
    assert heard == [["STATUS"]]


@on_own_node
async def test_an_address_family_may_be_preferred(tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]
    configure(tmp_path, {"type": "bridge", "bridge": "t-cni0", "ipam": host_local(tmp_path, ranges)})
    async with serving(tmp_path, cni_ip_preference="ipv6") as cni:
        pod = await attach(cni, "web")
        assert pod.ips == ("fd77::2", "10.77.0.2")
        await cni.detach(pod)


@on_own_node
async def test_a_handler_may_have_another_network(tmp_path: Path, plugin: PluginSimulator) -> None:
    other = PluginSimulator(tmp_path, "other")
    other.configure(tmp_path / "kata.d", plugin={"address": "10.78.0"})
    handlers = {"kata": CniHandlerConfig(str(tmp_path / "kata.d")), "usual": CniHandlerConfig()}
    async with serving(tmp_path, cni_handlers=handlers) as cni:
        pods = [
            await cni.attach(replace(named(name or "none"), runtime_handler=name), lambda: None, 0)
            for name in ("", "usual", "kata")
        ]
        assert sorted(plugin.leases().values()) == ["none", "usual"]
        assert list(other.leases().values()) == ["kata"]
        assert cni.verbose()["lastCNILoadStatus.kata"] == "OK"
        for pod in pods:
            await cni.detach(pod)


# --------------------------------------------------------------- bad plugins


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("hang", DeadlineExceeded, "network fakenet, ADD: .*did not end within 3 s and was killed"),
        ("crash", Internal, "was killed by signal 11 on ADD"),
        ("flood", ResourceExhausted, "wrote more than 1048576 bytes and was killed"),
        ("garbage", Internal, "no JSON object: '{]} what"),
        ("silence", Internal, "no JSON object: it printed nothing"),
        ("no address", Internal, "gave no address to eth0"),
        ("no interface", Internal, "gave no address to eth0"),
        ("error with status 0", Internal, "code 999: no, but exit 0"),
        ("code 11", Unavailable, "code 11: it asks to be tried again later"),
        ("code 7", FailedPrecondition, "code 7: the network's configuration is wrong"),
    ],
)
def test_a_plugin_that_fails_is_told_undone_and_the_next_try_works(
    tmp_path: Path, plugin: PluginSimulator, how: str, kind: type[CriError], words: str
) -> None:
    @on_own_node
    async def body() -> None:
        plugin.behave(ADD=how)
        async with serving(tmp_path, cni_timeout_s=3.0 if how == "hang" else 30.0) as cni:
            with pytest.raises(kind, match=words):
                await attach(cni, "web")
            assert (remains(tmp_path), plugin.leases()) == (([], []), {})
            assert plugin.commands()[-2:] == ["ADD", "DEL"]
            plugin.behave()
            pod = await attach(cni, "web")
            assert pod.ips == ("10.77.0.2",)
            await cni.detach(pod)

    body()
    if how == "hang":
        assert not os.path.exists(f"/proc/{(plugin.directory / 'hanging').read_text()}")


@on_own_node
async def test_an_address_is_not_taken_that_another_pod_has(tmp_path: Path, plugin: PluginSimulator) -> None:
    async with serving(tmp_path) as cni:
        first = await attach(cni, "first")
        plugin.behave(ADD="duplicate")
        with pytest.raises(Internal, match=r"gave 10\.77\.0\.2 to two pods, first has it"):
            await attach(cni, "second")
        assert remains(tmp_path) == (["first"], ["first"])
        await cni.detach(first)


@on_own_node
async def test_a_plugin_that_vanishes_keeps_no_pod_for_ever(tmp_path: Path, plugin: PluginSimulator) -> None:
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
        plugin.vanish()
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="CNI plugin fake is not in"):
                await cni.detach(pod)
            assert remains(tmp_path) == (["web"], ["web"])
        await cni.detach(pod)
        assert remains(tmp_path) == ([], ["web"])
        plugin.install()
        await cni.tidy()
    assert (remains(tmp_path), plugin.leases()) == (([], []), {})
    assert plugin.calls()[-2]["environment"]["CNI_NETNS"] == ""


@on_own_node
async def test_what_a_plugin_does_not_take_back_at_once_it_is_asked_for_again_soon(
    tmp_path: Path, plugin: PluginSimulator
) -> None:
    async with serving(tmp_path) as cni:
        await cni.sweep(set())
        async with asyncio.timeout(10):
            while "GC" not in plugin.commands():  # noqa: ASYNC110 it is a plugin's act
                await asyncio.sleep(0.02)
        plugin.behave(ADD="crash", DEL="code 11")
        with pytest.raises(Internal):
            await attach(cni, "web")
        assert remains(tmp_path) == ([], ["web"])
        plugin.behave()
        async with asyncio.timeout(10):
            while plugin.leases() or remains(tmp_path)[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@on_own_node
async def test_calls_for_one_pod_follow_each_other(tmp_path: Path, plugin: PluginSimulator) -> None:
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
        plugin.behave(DEL="slowly", CHECK="slowly")
        await asyncio.gather(cni.detach(pod), cni.check(), cni.detach(pod))
    assert (remains(tmp_path), plugin.commands()[1:].count("DEL")) == (([], []), 1)


@on_own_node
async def test_a_cancelled_attach_leaves_nothing(tmp_path: Path, plugin: PluginSimulator) -> None:
    plugin.behave(ADD="hang")
    async with serving(tmp_path) as cni:
        task = asyncio.create_task(attach(cni, "web"))
        async with asyncio.timeout(60):
            while not (plugin.directory / "hanging").exists():  # noqa: ASYNC110 it is a plugin's act
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (remains(tmp_path), plugin.commands()[-1]) == (([], []), "DEL")


@on_own_node
async def test_without_a_network_a_pod_is_refused_with_the_reason(tmp_path: Path) -> None:
    async with serving(tmp_path) as cni:
        condition = cni.condition()
        assert (condition.status, condition.reason) == (False, "NetworkPluginNotReady")
        assert "net.d can't be read" in condition.message
        with pytest.raises(FailedPrecondition, match=r"the CNI network is not ready: .*can't be read"):
            await attach(cni, "web")
    assert remains(tmp_path) == ([], [])


# ------------------------------------------------------ restarts and reboots


@on_own_node
async def test_a_restarted_daemon_detaches_with_what_the_first_was_told(
    tmp_path: Path, plugin: PluginSimulator
) -> None:
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
    PluginSimulator(tmp_path, "other").configure(tmp_path / "net.d")  # the node has another network by now
    async with serving(tmp_path) as cni:
        assert cni.adopt(pod)
        await cni.detach(pod)
    assert (remains(tmp_path), plugin.leases()) == (([], []), {})


@on_own_node
async def test_after_a_reboot_del_is_told_that_the_namespace_is_gone(tmp_path: Path, plugin: PluginSimulator) -> None:
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
    netns.unpin(pod.netns_path)
    async with serving(tmp_path) as cni:
        assert not cni.adopt(pod)
        await cni.detach(pod)
    assert (remains(tmp_path), plugin.leases()) == (([], []), {})
    assert plugin.calls()[-1]["environment"]["CNI_NETNS"] == ""


@on_own_node
async def test_what_a_crash_left_is_collected_and_pods_that_live_are_not(
    tmp_path: Path, plugin: PluginSimulator
) -> None:
    async with serving(tmp_path) as cni:
        lives, _ = await attach(cni, "lives"), await attach(cni, "dies")
    (plugin.directory / "leases" / "10.77.0.9").write_text("nobody")  # the plugin has forgotten a DEL
    async with serving(tmp_path) as cni:
        assert cni.adopt(lives)
        assert await cni.sweep({"lives"}) == []  # its plugins are told first
        await cni.tidy()
        assert remains(tmp_path) == (["lives"], ["lives"])
        assert plugin.leases() == {"10.77.0.2": "lives"}
        await cni.detach(lives)
    assert plugin.commands()[-3:] == ["DEL", "GC", "DEL"]


@on_own_node
async def test_a_daemon_that_died_in_the_middle_of_an_add_is_cleaned_up_after(
    tmp_path: Path, plugin: PluginSimulator
) -> None:
    async with serving(tmp_path) as cni:
        await attach(cni, "web")
    kept = tmp_path / "cache" / "web.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "result": None}))  # as it is before the answer
    async with serving(tmp_path) as cni:
        await cni.tidy()
    assert (remains(tmp_path), plugin.leases()) == (([], []), {})
    assert "prevResult" not in plugin.calls()[-2]["config"]


@on_own_node
async def test_adopted_pods_are_checked_and_what_is_damaged_is_told(
    tmp_path: Path, plugin: PluginSimulator, capsys: pytest.CaptureFixture[str]
) -> None:
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
    (plugin.directory / "leases" / "10.77.0.2").unlink()
    async with serving(tmp_path) as cni:
        cni.adopt(pod)
        await cni.check()
        assert plugin.commands()[-1] == "CHECK"
        await cni.detach(pod)
    assert "a pod's network is damaged" in capsys.readouterr().out


# ---------------------------------------------------------------- pod CIDRs


@on_own_node
async def test_the_kubelets_pod_cidr_makes_a_configuration_of_the_template(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.write_text(
        '{"cniVersion": "1.0.0", "name": "made", "plugins": [{"type": "bridge", "bridge": "t-cni0", "ipam": {'
        f'"type": "host-local", "dataDir": "{tmp_path}/ipam", "ranges": ['
        '{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}]}}]}'
    )
    async with serving(tmp_path, cni_conf_template=str(template)) as cni:
        with pytest.raises(InvalidArgument):
            await cni.update_pod_cidr("10.77.0.0")
        await cni.update_pod_cidr("10.77.1.0/24,fd77::/64")
        pod = await attach(cni, "web")
        assert pod.ips == ("10.77.1.2", "fd77::2")
        await cni.detach(pod)
        await cni.update_pod_cidr("10.77.2.0/24")
        pod = await attach(cni, "web")
        assert pod.ips == ("10.77.2.2",)
        await cni.detach(pod)


@on_own_node
async def test_an_add_ons_configuration_is_left_alone(tmp_path: Path, plugin: PluginSimulator) -> None:
    plugin.configure(tmp_path / "net.d", plugin={"capabilities": {"ipRanges": True}})
    async with serving(tmp_path, cni_conf_template=str(tmp_path / "nowhere")) as cni:
        await cni.update_pod_cidr("10.77.1.0/24")
        await cni.detach(await attach(cni, "web"))
    assert os.listdir(tmp_path / "net.d") == ["10-fake.conflist"]
    assert plugin.calls()[1]["config"]["runtimeConfig"] == {"ipRanges": [[{"subnet": "10.77.1.0/24"}]]}


# ------------------------------------------------------- Debian's plugins


def configure(directory: Path, *plugins: dict[str, Any]) -> None:
    document = {"cniVersion": "1.0.0", "name": "debian", "plugins": plugins}
    (directory / "net.d").mkdir()
    (directory / "net.d" / "10-debian.conflist").write_text(json.dumps(document))


def host_local(directory: Path, ranges: list[Any]) -> dict[str, Any]:
    return {"type": "host-local", "dataDir": str(directory / "ipam"), "ranges": ranges}


def bridge(directory: Path) -> dict[str, Any]:
    ipam = host_local(directory, [[{"subnet": "10.77.0.0/29"}]])
    return {"type": "bridge", "bridge": "t-cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}


@on_own_node
async def test_debians_chain_connects_pods_and_leaves_nothing(tmp_path: Path) -> None:
    everything = [
        bridge(tmp_path),
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall", "backend": "iptables"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}},
        {"type": "loopback"},
    ]
    configure(tmp_path, *everything)
    async with serving(tmp_path) as cni:
        one, other = await asyncio.gather(attach(cni, "one"), attach(cni, "other"))
        assert {one.ips, other.ips} == {("10.77.0.2",), ("10.77.0.3",)}
        assert ping(one.netns_path, other.ips[0])
        assert inside(one, lambda: Path("/proc/sys/net/core/somaxconn").read_text()) == "500\n"
        assert cni.surroundings(one) is None  # portmap does it
        await cni.check()
        await cni.detach(one)
        await cni.detach(other)
    left = [path.name for path in (tmp_path / "ipam" / "debian").iterdir()]
    assert [name for name in left if name.startswith("10.")] == []
    assert remains(tmp_path) == ([], [])


@on_own_node
async def test_an_exhausted_range_is_told_and_an_address_comes_back(tmp_path: Path) -> None:
    configure(tmp_path, bridge(tmp_path))
    async with serving(tmp_path) as cni:
        pods = [await attach(cni, f"pod{number}") for number in range(5)]
        with pytest.raises(Internal, match="no IP addresses available in range"):
            await attach(cni, "late")
        await cni.detach(pods[2])
        pods[2] = await attach(cni, "late")
        for pod in pods:
            await cni.detach(pod)


@on_own_node
async def test_where_no_plugin_maps_ports_the_node_reaches_the_pod_by_its_route(tmp_path: Path) -> None:
    configure(tmp_path, bridge(tmp_path))
    async with serving(tmp_path) as cni:
        pod = await attach(cni, "web")
        around = cni.surroundings(pod)
        assert around is not None
        assert (around.interface, [str(network) for network in around.networks]) == ("t-cni0", ["10.77.0.0/29"])
        await cni.detach(pod)
