from __future__ import annotations

import pytest

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.pods import files
from tests.unit.pods.builders import sandbox


def test_hosts_names_localhost_and_every_address_of_the_pod() -> None:
    lines = files.hosts_text("web", ["10.85.0.2", "fd00::2"]).splitlines()
    assert lines[:2] == ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback"]
    assert lines[-2:] == ["10.85.0.2\tweb", "fd00::2\tweb"]


def test_on_the_hosts_network_hosts_is_the_nodes() -> None:
    assert files.hosts_text("node", [], node_text="127.0.0.1 node\n") == "127.0.0.1 node\n"


def test_the_hostname_is_the_pods_the_nodes_or_the_ids() -> None:
    host = model.NamespaceOption(network=model.NamespaceMode.NODE)
    assert files.sandbox_hostname(sandbox(), "node") == "web"
    assert files.sandbox_hostname(sandbox(namespaces=host), "node") == "node"
    assert files.sandbox_hostname(sandbox(hostname=""), "node") == "5a5a5a5a5a5a"
    assert files.hostname_text("web") == "web\n"


def test_resolv_conf_has_all_that_was_asked_for() -> None:
    dns = model.DnsConfig(
        ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"), ("a.example", "b.example"), ("ndots:5", "rotate")
    )
    assert files.resolv_conf_text(dns, "node") == (
        "search a.example b.example\n"
        "nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n"
        "options ndots:5 rotate\n"
    )


def test_without_a_word_from_the_kubelet_resolv_conf_is_the_nodes() -> None:
    assert files.resolv_conf_text(None, "nameserver 1.1.1.1\n") == "nameserver 1.1.1.1\n"
    assert files.resolv_conf_text(model.DnsConfig(), "nameserver 1.1.1.1\n") == "nameserver 1.1.1.1\n"


@pytest.mark.parametrize("entry", ["a b", "a\nb", "", "a\0"])
def test_an_entry_stays_on_its_line(entry: str) -> None:
    with pytest.raises(InvalidArgument, match=r"dns_config\.searches"):
        files.resolv_conf_text(model.DnsConfig(searches=(entry,)), "")
