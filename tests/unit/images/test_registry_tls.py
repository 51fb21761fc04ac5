"""Registries behind TLS, and behind proxies."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
import trustme

from cri_py.config import RegistryConfig
from cri_py.errors import (
    ConfigError,
    RegistryUnavailable,
    Unavailable,
)
from cri_py.images.reference import parse_ref
from tests.simulators.registry import Pushed, RegistrySimulator
from tests.unit.images.nodes import Node, nobody, resolved


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(authority: trustme.CA) -> Iterator[RegistrySimulator]:
    with RegistrySimulator(tls=server_context(authority, "127.0.0.1")) as simulator:
        simulator.push("team/app", "1", [b""])
        yield simulator


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("known", [False, True])
async def test_a_host_that_can_not_prove_who_it_is_is_not_trusted(
    node: Node, authority: trustme.CA, known: bool
) -> None:
    """An unknown authority, or a known one that vouches for another name."""
    name = "other.example" if known else "127.0.0.1"
    with RegistrySimulator(tls=server_context(authority, name)) as simulator:
        simulator.push("team/app", "1", [b""])
        hosts_toml = node.hosts_toml(simulator.host, f'server = "{simulator.url}"\n')
        if known:
            authority.cert_pem.write_to_path(str(hosts_toml.with_name("ca.pem")))
            hosts_toml.write_text(f'server = "{simulator.url}"\nca = "ca.pem"\n')
        words = "IP address mismatch" if known else "unable to get local issuer"
        with pytest.raises(Unavailable, match=f"{simulator.url} can't be trusted: .*{words}"):
            await resolved(node, f"{simulator.host}/team/app:1")
        assert (simulator.asked, node.waits) == ([], [])


async def test_a_host_that_speaks_no_tls_is_told_from_one_that_can_not_be_trusted(
    node: Node, registry: RegistrySimulator
) -> None:
    node.hosts_toml("r.example", f'server = "https://{registry.host}"\n')
    with pytest.raises(Unavailable, match=r"refuses TLS: .*if it speaks plain HTTP, say so"):
        await resolved(node, "r.example/app:1")


@pytest.mark.parametrize("way", ["ca", "skip_verify", "docker"])
async def test_a_host_is_trusted_by_its_authority_or_blindly(
    node: Node, secured: RegistrySimulator, authority: trustme.CA, way: str
) -> None:
    host = secured.host
    directory = node.certs_d / host
    directory.mkdir(parents=True)
    authority.cert_pem.write_to_path(str(directory / "ca.crt"))
    if way != "docker":
        option = 'ca = ["ca.crt"]' if way == "ca" else "skip_verify = true"
        (directory / "hosts.toml").write_text(f'server = "{secured.url}"\n{option}\n')
    assert (await resolved(node, f"{host}/team/app:1")).startswith("sha256:")


async def test_a_mirror_is_trusted_by_the_certificates_of_its_own_directory(
    node: Node, secured: RegistrySimulator, authority: trustme.CA
) -> None:
    (node.certs_d / secured.host).mkdir(parents=True)
    authority.cert_pem.write_to_path(str(node.certs_d / secured.host / "ca.crt"))
    node.config["registries"] = {"registry.example": RegistryConfig(mirrors=(secured.url,))}
    assert (await resolved(node, "registry.example/team/app:1")).startswith("sha256:")


async def test_a_location_is_trusted_by_the_certificates_of_its_own_directory(
    node: Node, secured: RegistrySimulator, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri_py.images.endpoints.is_loopback", lambda _: False)
    (node.certs_d / secured.host).mkdir(parents=True)
    authority.cert_pem.write_to_path(str(node.certs_d / secured.host / "ca.crt"))
    node.conf.write_text(f'[[registry]]\nprefix = "registry.example"\nlocation = "{secured.host}"\n')
    assert (await resolved(node, "registry.example/team/app:1")).startswith("sha256:")


async def test_a_certificate_that_is_replaced_counts_at_once(
    node: Node, secured: RegistrySimulator, authority: trustme.CA
) -> None:
    file = node.certs_d / secured.host / "ca.crt"
    file.parent.mkdir(parents=True)
    trustme.CA().cert_pem.write_to_path(str(file))
    ref = parse_ref(f"{secured.host}/team/app:1")
    async with node.opened() as registries:
        with pytest.raises(Unavailable, match="can't be trusted"):
            await (await registries.repository(ref, None)).manifest("1", None)
        authority.cert_pem.write_to_path(str(file))
        await (await registries.repository(ref, None)).manifest("1", None)


async def test_a_client_certificate_opens_a_host_that_wants_one(node: Node, authority: trustme.CA) -> None:
    context = server_context(authority, "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with RegistrySimulator(tls=context) as simulator:
        simulator.push("team/app", "1", [b""])
        hosts_toml = node.hosts_toml(simulator.host, "")
        authority.cert_pem.write_to_path(str(hosts_toml.with_name("ca.pem")))
        ours = authority.issue_cert("node@example")
        ours.private_key_and_cert_chain_pem.write_to_path(str(hosts_toml.with_name("us.pem")))
        hosts_toml.write_text(f'server = "{simulator.url}"\nca = "ca.pem"\nclient = "us.pem"\n')
        assert (await resolved(node, f"{simulator.host}/team/app:1")).startswith("sha256:")
        hosts_toml.write_text(f'server = "{simulator.url}"\nca = "ca.pem"\n')
        with pytest.raises(Unavailable):
            await resolved(node, f"{simulator.host}/team/app:1")


async def test_a_certificate_file_that_is_none_is_named_and_nobody_else_is_asked(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    hosts_toml = node.hosts_toml(
        "registry.example", f'server = "{registry.url}"\n[host."https://{nobody()}"]\nca = "no.pem"\n'
    )
    with pytest.raises(ConfigError, match=f"{hosts_toml.parent}/no.pem can't be used"):
        await resolved(node, "registry.example/team/app:1")
    assert registry.asked == []


async def test_an_insecure_location_is_tried_with_tls_and_then_without(
    node: Node, registry: RegistrySimulator, secured: RegistrySimulator, pushed: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri_py.images.endpoints.is_loopback", lambda _: False)
    for simulator in (registry, secured):
        node.conf.write_text(f'[[registry]]\nprefix = "r.example"\nlocation = "{simulator.host}"\ninsecure = true\n')
        assert (await resolved(node, "r.example/team/app:1")).startswith("sha256:")
    assert secured.count("/manifests/") == 1


async def test_a_proxy_is_asked_for_what_is_not_near(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    node.environment |= {"HTTP_PROXY": registry.url, "NO_PROXY": "10.0.0.0/8"}
    node.hosts_toml("r.example", 'server = "http://r.example"\n')
    assert await resolved(node, "r.example/team/app:1") == pushed.index
    assert registry.asked[0].path == "http://r.example/v2/team/app/manifests/1"


async def test_a_tls_host_is_reached_through_a_proxy_that_sees_nothing(
    node: Node, registry: RegistrySimulator, secured: RegistrySimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cri_py.images.proxies.is_loopback", lambda _: False)
    node.environment["https_proxy"] = registry.host
    node.hosts_toml(secured.host, f'server = "{secured.url}"\nskip_verify = true\n')
    assert (await resolved(node, f"{secured.host}/team/app:1")).startswith("sha256:")
    assert [(asked.method, asked.path) for asked in registry.asked] == [("CONNECT", secured.host)]


async def test_a_proxy_that_can_not_be_reached_is_named(node: Node) -> None:
    node.environment["HTTP_PROXY"] = f"http://{nobody()}"
    node.hosts_toml("r.example", 'server = "http://r.example"\n')
    with pytest.raises(RegistryUnavailable, match=f"the proxy {nobody()} of http://r.example can't be reached"):
        await resolved(node, "r.example/team/app:1")
