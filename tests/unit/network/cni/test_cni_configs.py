"""CNI configurations: what is taken, what is refused and how it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cri_py.errors import ConfigError
from cri_py.network.cni.configs import Network, added, candidates, parse
from cri_py.network.cni.versions import NEWEST, SUPPORTED, negotiate


def parsed(**fields: Any) -> Network:
    document = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}], **fields}
    return parse("/etc/cni/net.d/10-net.conflist", json.dumps(document).encode())


def test_files_count_in_the_order_of_their_names() -> None:
    names = ["99-b.conf", "10-a.conflist", "05-c.json", "00-readme", ".10-hidden.conf", "01-x.conflist.bak"]
    assert candidates(names) == ["05-c.json", "10-a.conflist", "99-b.conf"]


def test_a_single_plugins_file_is_a_list_of_one() -> None:
    network = parse("x.conf", b'{"cniVersion": "0.4.0", "name": "one", "type": "ptp", "ipam": {}}')
    assert (network.name, network.offered, [p.type for p in network.plugins]) == ("one", ("0.4.0",), ["ptp"])
    assert network.plugins[0].document["ipam"] == {}


def test_a_file_without_version_is_of_the_oldest() -> None:
    assert parse("x.conf", b'{"name": "old", "type": "ptp"}').offered == ("0.1.0",)


def test_of_several_versions_the_newest_that_we_speak_comes_first() -> None:
    assert parsed(cniVersions=["0.4.0", "1.1.0", "9.0.0"]).offered == ("1.1.0", "1.0.0", "0.4.0")


def test_capabilities_are_those_that_are_true() -> None:
    network = parsed(plugins=[{"type": "portmap", "capabilities": {"portMappings": True, "bandwidth": False}}])
    assert network.plugins[0].capabilities == {"portMappings"}
    assert network.maps_ports
    assert not parsed().maps_ports


@pytest.mark.parametrize(("written", "meant"), [(True, True), ("true", True), (False, False), ("", False)])
def test_flags_are_taken_as_strings_too(written: object, meant: bool) -> None:
    network = parsed(disableCheck=written, disableGC=written)
    assert (network.disable_check, network.disable_gc) == (meant, meant)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"[]", "no JSON object"),
        (b'{"name": "n", "plugins": []}', "has no plugins"),
        (b'{"name": "n", "plugins": [{"type": "../sh"}]}', "has the type '../sh'"),
        (b'{"name": "n", "plugins": [{}]}', "has the type None"),
        (b'{"name": "a b", "type": "ptp"}', "'a b' is no name"),
        (b'{"type": "ptp"}', "name None is no name"),
        (b'{"name": "n", "type": "ptp", "cniVersion": "7.0.0"}', r"asks for version 7\.0\.0 of CNI"),
        (b'{"name": "n", "type": "ptp", "cniVersion": 1}', "is no version"),
        (b'{"name": "n", "disableCheck": "perhaps", "plugins": [{"type": "ptp"}]}', "disableCheck of .* is 'perhaps'"),
        (b'{"name": "n", "type": "ptp", "capabilities": []}', ""),
        (b'{"name": "n", "type": "ptp", "capabilities": [1]}', "capabilities of ptp"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(content: bytes, words: str) -> None:
    if not words:
        parse("/c/1.conf", content)  # empty is none
        return
    with pytest.raises(ConfigError, match=words) as refused:
        parse("/c/1.conf", content)
    assert "/c/1.conf" in str(refused.value)


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_version_is_negotiated(version: str) -> None:
    assert negotiate("net", [version], {"a": {version}, "b": set(SUPPORTED)}) == version


def test_a_network_is_run_with_the_newest_version_that_all_its_plugins_support() -> None:
    plugins = {"new": set(SUPPORTED), "older": {"0.4.0", "1.0.0"}}
    assert negotiate("net", [NEWEST, "1.0.0", "0.4.0"], plugins) == "1.0.0"


def test_a_plugin_that_is_too_old_is_named() -> None:
    with pytest.raises(ConfigError, match=r"its plugin older does not support.*the plugin supports 0\.4\.0"):
        negotiate("net", [NEWEST], {"new": set(SUPPORTED), "older": {"0.4.0"}})
    with pytest.raises(ConfigError, match="no version of CNI in common"):
        negotiate("net", ["1.0.0", "0.4.0"], {"a": {"1.0.0"}, "b": {"0.4.0"}})


# ----------------------------------------------------- plugins beside a list


def chained(files: dict[str, bytes], **fields: Any) -> list[str]:
    """The plugins of a list whose network has a directory with ``files``."""
    document = {"cniVersion": "1.1.0", "name": "net", **fields}
    network = parse(
        "/c/10-net.conflist", json.dumps(document).encode(), lambda name: files.items() if name == "net" else ()
    )
    return [plugin.type for plugin in network.plugins]


def test_files_of_a_networks_own_directory_add_their_plugins_at_the_end() -> None:
    assert added(["b.conf", "a.conf", "c.conflist", ".d.conf"]) == ["a.conf", "b.conf"]
    files = {"/c/net/a.conf": b'{"type": "tuning"}', "/c/net/b.conf": b'{"type": "firewall"}'}
    assert chained(files, plugins=[{"type": "bridge"}]) == ["bridge", "tuning", "firewall"]
    assert chained(files) == ["tuning", "firewall"]
    assert chained(files, plugins=[{"type": "bridge"}], loadOnlyInlinedPlugins=True) == ["bridge"]
    with pytest.raises(ConfigError, match="CNI network net has no plugins"):
        chained(files, loadOnlyInlinedPlugins=True)
    with pytest.raises(ConfigError, match=r"/c/net/a\.conf is not JSON"):
        chained({"/c/net/a.conf": b"{"}, plugins=[{"type": "bridge"}])
    with pytest.raises(ConfigError, match="loadOnlyInlinedPlugins of CNI network net is 7"):
        chained(files, plugins=[{"type": "bridge"}], loadOnlyInlinedPlugins=7)
