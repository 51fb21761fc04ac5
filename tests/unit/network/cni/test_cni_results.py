"""Results of every version, read, written and converted."""

from __future__ import annotations

from typing import Any

import pytest

from cri_py.errors import Internal
from cri_py.network.cni.results import Result, addresses, convert, read
from cri_py.network.cni.versions import NEWEST, SUPPORTED

FULL: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "cni0", "mac": "0a:00:00:00:00:01"},
        {"name": "eth0", "sandbox": "/run/netns/x", "mtu": 1400},
    ],
    "ips": [
        {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
        {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400}, {"dst": "::/0"}],
    "dns": {"nameservers": ["10.1.0.1"], "search": ["test"]},
}


def test_the_same_version_stays_as_it_came() -> None:
    assert convert({**FULL, "future": 1}, "1.1.0", "1.1.0")["future"] == 1


def test_versions_before_1_1_lack_what_it_brought() -> None:
    old = convert(FULL, "1.1.0", "1.0.0")
    assert old["cniVersion"] == "1.0.0"
    assert old["interfaces"][1] == {"name": "eth0", "sandbox": "/run/netns/x"}
    assert old["routes"][0] == {"dst": "0.0.0.0/0", "gw": "10.1.0.1"}


def test_versions_before_1_0_tell_the_family_of_an_address() -> None:
    old = convert(FULL, "1.1.0", "0.4.0")
    assert [ip["version"] for ip in old["ips"]] == ["4", "6"]


def test_the_oldest_versions_have_one_address_of_each_family() -> None:
    old = convert(FULL, "1.1.0", "0.2.0")
    assert old == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
        "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
        "dns": {"nameservers": ["10.1.0.1"], "search": ["test"]},
    }


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("to", SUPPORTED)
def test_addresses_survive_every_conversion(version: str, to: str) -> None:
    there = convert(convert(FULL, NEWEST, version), version, to)
    assert [str(ip) for ip in addresses(read(there, to), "eth0")] == ["10.1.0.5/16", "fd00::5/64"]


def test_null_is_as_good_as_nothing() -> None:
    result = read({"ips": [{"address": "10.1.0.5/16"}], "routes": None, "dns": {}, "interfaces": None}, "1.0.0")
    assert [str(ip) for ip in addresses(result, "eth0")] == ["10.1.0.5/16"]


def test_addresses_of_other_interfaces_are_not_the_pods() -> None:
    document = {**FULL, "ips": [*FULL["ips"], {"address": "10.1.0.1/16", "interface": 0}]}
    assert len(addresses(read(document, "1.1.0"), "eth0")) == 2


def test_an_address_that_comes_twice_counts_once() -> None:
    document = {**FULL, "ips": [FULL["ips"][0], FULL["ips"][0]]}
    assert [str(ip) for ip in addresses(read(document, "1.1.0"), "eth0")] == ["10.1.0.5/16"]


@pytest.mark.parametrize("document", [{"ips": 1}, {"ips": [{"address": 5}]}, {"interfaces": [{}]}, {"ip4": {}}])
def test_what_makes_no_sense_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(Internal, match="makes no sense"):
        read(document, "0.2.0" if "ip4" in document else "1.0.0")


def test_no_address_and_one_that_is_none_are_refused() -> None:
    with pytest.raises(Internal, match="gave no address to eth0"):
        addresses(Result(), "eth0")
    with pytest.raises(Internal, match="address that is none"):
        addresses(read({"ips": [{"address": "10.1.0.500/16"}]}, "1.0.0"), "eth0")
