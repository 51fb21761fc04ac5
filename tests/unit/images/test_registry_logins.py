"""Registries that ask who we are: tokens, pull secrets, auth files, and who sees them."""

from __future__ import annotations

import json

import pytest

from cri_py.config import RegistryConfig
from cri_py.errors import (
    ConfigError,
    CriError,
    PermissionDenied,
    Unavailable,
)
from cri_py.images.reference import parse_ref
from cri_py.model import RegistryAuth
from tests.simulators.registry import Fault, Pushed, RegistrySimulator
from tests.unit.images.nodes import AUTH, Node, resolved


async def test_a_token_is_remembered_from_pull_to_pull_until_it_expires(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login, registry.fresh_tokens, registry.expires_in = "bearer", True, 300
    ref = parse_ref(f"{registry.host}/team/app:1")
    async with node.opened() as registries:
        for moved_s, tokens in ((0, 1), (260, 1), (20, 2), (0, 2)):
            node.now_s += moved_s
            await (await registries.repository(ref, AUTH)).manifest("1", None)
            assert registry.count("/token") == tokens
        assert len(registry.asked) == 8, "a warm pull asks once"


async def test_a_token_that_the_registry_no_longer_takes_is_replaced(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login, registry.fresh_tokens = "bearer", True
    ref = parse_ref(f"{registry.host}/team/app:1")
    async with node.opened() as registries:
        await (await registries.repository(ref, AUTH)).manifest("1", None)
        registry.tokens.clear()
        await (await registries.repository(ref, AUTH)).manifest("1", None)
    assert registry.count("/token") == 2


async def test_a_token_is_not_lent_to_who_has_other_credentials(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login = "bearer"
    ref = parse_ref(f"{registry.host}/team/app:1")
    async with node.opened() as registries:
        await (await registries.repository(ref, AUTH)).manifest("1", None)
        for auth in (None, RegistryAuth("robot", "wr0ng")):
            with pytest.raises(PermissionDenied):
                await (await registries.repository(ref, auth)).manifest("1", None)


async def test_a_refused_token_is_not_shown_again(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    registry.login, registry.fresh_tokens = "bearer", True
    ref = parse_ref(f"{registry.host}/team/app:1")
    async with node.opened() as registries:
        await (await registries.repository(ref, AUTH)).manifest("1", None)
        registry.tokens.clear()
        registry.secret = "another"
        for _ in range(2):
            registry.asked.clear()
            with pytest.raises(PermissionDenied):
                await (await registries.repository(ref, AUTH)).manifest("1", None)
    assert registry.asked[0].authorization == ""


async def test_a_host_that_is_redirected_to_gets_no_answer_to_its_challenge(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    with RegistrySimulator("bearer") as nosy:
        registry.faults.append(Fault("/v2/", redirect=f"{nosy.url}{{path}}"))
        with pytest.raises(PermissionDenied, match=f"{nosy.url} denies"):
            await resolved(node, f"{registry.host}/team/app:1", AUTH)
        assert [(asked.path, asked.authorization) for asked in nosy.asked] == [("/v2/team/app/manifests/1", "")]


async def test_an_endless_401_ends(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    registry.login = "loop"
    with pytest.raises(PermissionDenied, match="denies"):
        await resolved(node, f"{registry.host}/team/app:1", AUTH)
    assert len(registry.asked) <= 6


@pytest.mark.parametrize(
    "challenges",
    [
        ("Negotiate", 'Bearer realm="{url}/token",service="sim"'),
        ('Negotiate dG9r, Basic realm="x", Bearer realm="{url}/token"',),
        ('Bearer realm="{url}/token" , service="a, \\"b\\"", scope=x',),
    ],
)
async def test_a_way_in_is_found_among_several(
    node: Node, registry: RegistrySimulator, pushed: Pushed, challenges: tuple[str, ...]
) -> None:
    registry.login = "bearer"
    registry.challenges = tuple(text.replace("{url}", registry.url) for text in challenges)
    assert await resolved(node, f"{registry.host}/team/app:1", AUTH) == pushed.index


async def test_an_unknown_way_in_is_named(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    registry.login, registry.challenges = "basic", ("Negotiate",)
    with pytest.raises(Unavailable, match="offers: negotiate"):
        await resolved(node, f"{registry.host}/team/app:1", AUTH)


async def test_an_identity_token_is_refreshed_by_a_post(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login = "bearer"
    await resolved(node, f"{registry.host}/team/app:1", RegistryAuth(identity_token="s3cr3t"))
    (form,) = registry.forms
    assert (form["grant_type"], form["scope"]) == (["refresh_token"], ["repository:x:pull"])


@pytest.mark.parametrize("auth", [AUTH, RegistryAuth(identity_token="s3cr3t")], ids=["password", "identity"])
async def test_a_login_that_is_sent_on_to_another_host_is_not_shown_there(
    node: Node, registry: RegistrySimulator, pushed: Pushed, auth: RegistryAuth
) -> None:
    registry.login = "bearer"
    with RegistrySimulator("bearer") as nosy:
        registry.faults.append(Fault("/token", redirect=f"{nosy.url}{{path}}"))
        with pytest.raises(PermissionDenied):
            await resolved(node, f"{registry.host}/team/app:1", auth)
        assert (nosy.forms, [asked.authorization for asked in nosy.asked if asked.authorization]) == ([], [])


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, (PermissionDenied, "refuses the credentials")),
        (500, (Unavailable, "answers 500")),
        (429, (Unavailable, "answers 429")),
        (404, (Unavailable, "answers 404")),
    ],
)
async def test_a_token_server_that_fails_is_named(
    node: Node, registry: RegistrySimulator, pushed: Pushed, status: int, expected: tuple[type[CriError], str]
) -> None:
    kind, words = expected
    registry.login = "bearer"
    registry.faults.append(Fault("/token", status=status))
    with pytest.raises(kind, match=f"token server {registry.url} {words}"):
        await resolved(node, f"{registry.host}/team/app:1", AUTH)


async def test_a_token_server_that_heals_is_asked_again(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login = "bearer"
    registry.faults.append(Fault("/token", status=503, times=2, headers={"Retry-After": "5"}))
    assert await resolved(node, f"{registry.host}/team/app:1", AUTH) == pushed.index
    assert node.waits == [5.0, 5.0]


async def test_auth_files_open_a_repository_and_its_mirror(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login = "basic"
    node.config["registries"] = {"registry.example": RegistryConfig(mirrors=(registry.url,))}
    ours = {f"{registry.host}/other": {"auth": "YTpi"}, f"{registry.host}/team": {"auth": registry.basic()[6:]}}
    node.auth_file.write_text(json.dumps({"auths": ours}))
    assert await resolved(node, "registry.example/team/app:1") == pushed.index


async def test_a_broken_auth_file_is_an_error_and_no_reason_to_be_nobody(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login, registry.anonymous = "bearer", True
    node.auth_file.write_text('{\n"auths": {\n]')
    with pytest.raises(ConfigError, match=r"auth\.json:3: not JSON"):
        await resolved(node, f"{registry.host}/team/app:1")


async def test_a_pull_secret_goes_before_the_nodes_credentials(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    registry.login = "basic"
    node.auth_file.write_text(json.dumps({"auths": {registry.host: {"username": "a", "password": "b"}}}))
    assert await resolved(node, f"{registry.host}/team/app:1", AUTH) == pushed.index
