"""hosts.toml and registries.conf as a pull obeys them, read each time."""

from __future__ import annotations

import pytest
import structlog

from cri_py.config import RegistryConfig
from cri_py.errors import (
    ConfigError,
    FailedPrecondition,
    RegistryUnavailable,
)
from cri_py.images.manifest import Descriptor
from cri_py.images.reference import parse_ref
from cri_py.model import Digest
from tests.simulators.registry import Fault, Pushed, RegistrySimulator
from tests.unit.images.nodes import Node, Sink, nobody, resolved


async def test_hosts_toml_is_read_at_every_pull(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    ref = parse_ref("registry.example/team/app:1")
    async with node.opened() as registries:
        node.hosts_toml("registry.example", f'server = "http://{nobody()}"\n')
        with pytest.raises(RegistryUnavailable):
            await (await registries.repository(ref, None)).manifest("1", None)
        node.hosts_toml("registry.example", f'[host."{registry.url}"]\n')
        await (await registries.repository(ref, None)).manifest("1", None)
        assert registry.asked[-1].path == "/v2/team/app/manifests/1?ns=registry.example"
        node.hosts_toml("registry.example", f'[host."{registry.url}"]\ncapabilities = ["pul"]\n')
        with pytest.raises(ConfigError, match=r"registry.example/hosts\.toml:2: .*capabilities"):
            await registries.repository(ref, None)


async def test_a_mirror_that_may_only_be_asked_for_content_is_not_asked_for_tags(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    with RegistrySimulator() as mirror:
        mirror.blobs.update(registry.blobs)
        node.hosts_toml(
            "registry.example",
            f'server = "{registry.url}"\n[host."{mirror.url}"]\n'
            'capabilities = ["pull"]\nheader = { x-key = ["a", "b"] }\n',
        )
        async with node.repository("registry.example/team/app:1") as repository:
            await repository.manifest("1", None)
            assert mirror.asked == []
            await repository.blob(Descriptor("", Digest(pushed.config), len(mirror.blobs[pushed.config])), Sink())
        assert [asked.headers["x-key"] for asked in mirror.asked] == ["a, b"]
        assert registry.count("/blobs/") == 0


async def test_no_host_for_tags_is_said(node: Node, registry: RegistrySimulator) -> None:
    node.hosts_toml("registry.example", f'server = "{registry.url}"\ncapabilities = ["pull"]\n')
    with pytest.raises(FailedPrecondition, match="no host may serve the manifest 1"):
        await resolved(node, "registry.example/app:1")


async def test_the_headers_of_a_host_are_not_shown_to_where_it_redirects(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    with RegistrySimulator() as mirror:
        mirror.faults.append(Fault("/v2/", redirect=f"{registry.url}{{path}}"))
        node.hosts_toml("registry.example", f'[host."{mirror.url}"]\nheader = {{ authorization = "Basic x" }}\n')
        assert await resolved(node, "registry.example/team/app:1") == pushed.index
        assert mirror.asked[0].authorization == "Basic x"
    assert registry.asked[0].authorization == ""


async def test_a_redirect_with_spaces_is_no_second_request(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.faults.append(Fault("/manifests/1", redirect="/v2/team/app/manifests/1?a b%2Fc HTTP/1.1", times=1))
    assert await resolved(node, f"{registry.host}/team/app:1") == pushed.index
    assert registry.asked[-1].path == "/v2/team/app/manifests/1?a%20b%2Fc%20HTTP/1.1"


async def test_registries_conf_leads_to_its_mirrors_and_locations(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    node.conf.write_text(f'[[registry]]\nprefix = "registry.example/x"\nlocation = "{registry.host}/team"\n')
    async with node.opened() as registries:
        found = await registries.repository(parse_ref("registry.example/x/app:1"), None)
        assert (await found.manifest("1", None)).digest == pushed.index
        node.conf.write_text('[[registry]]\nprefix = "registry.example"\nblocked = true\n')
        with pytest.raises(FailedPrecondition, match=r"blocked by .*registries\.conf:1"):
            await registries.repository(parse_ref("registry.example/x/app:1"), None)


async def test_a_host_that_both_families_configure_is_told_of_loudly(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    hosts_toml = node.hosts_toml("registry.example", f'server = "{registry.url}"\n')
    node.conf.write_text(f'[[registry]]\nprefix = "registry.example"\nlocation = "{nobody()}"\n')
    with structlog.testing.capture_logs() as logs:
        assert await resolved(node, "registry.example/team/app:1") == pushed.index
    (told,) = [each for each in logs if each["event"] == "a registry is configured twice"]
    assert told["log_level"] == "warning"
    assert (told["used"], told["ignored"]) == (str(hosts_toml), [f"{node.conf}:1"])


async def test_misspelt_keys_are_told_of(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    hosts_toml = node.hosts_toml("registry.example", f'server = "{registry.url}"\nskip_verfy = true\n')
    node.conf.write_text("short-names = 1\n")
    with structlog.testing.capture_logs() as logs:
        await resolved(node, "registry.example/team/app:1")
    (told,) = [each for each in logs if "keys" in each]
    assert told["keys"] == [f"{node.conf}:1: short-names", f"{hosts_toml}:2: skip_verfy"]


async def test_a_blocked_registry_is_blocked_whoever_else_knows_the_way(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    node.hosts_toml("registry.example", f'server = "{registry.url}"\n')
    node.config["registries"] = {"registry.example": RegistryConfig(mirrors=(registry.url,))}
    node.conf.write_text('[[registry]]\nlocation = "registry.example"\nblocked = true\n')
    with pytest.raises(FailedPrecondition, match="is blocked by"):
        await resolved(node, "registry.example/team/app:1")


async def test_the_default_hosts_toml_is_for_hosts_that_nothing_names(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    node.hosts_toml("_default", f'server = "{registry.url}"\n')
    assert await resolved(node, "registry.example/team/app:1") == pushed.index
    node.conf.write_text(f'[[registry]]\nprefix = "registry.example"\nlocation = "{nobody()}"\n')
    with pytest.raises(RegistryUnavailable):
        await resolved(node, "registry.example/team/app:1")
