"""Registries that fail: who is asked again, how long is waited, which failure is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import structlog

from cri_py.config import RegistryConfig
from cri_py.errors import (
    CriError,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    Unavailable,
)
from tests.simulators.registry import Fault, Pushed, RegistrySimulator
from tests.unit.images.nodes import HERMETIC, Node, nobody, resolved


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_may_pass_is_tried_again_and_heals(
    node: Node, registry: RegistrySimulator, pushed: Pushed, status: int
) -> None:
    registry.faults.append(Fault("/manifests/", status=status, times=3))
    assert await resolved(node, f"{registry.host}/team/app:1") == pushed.index
    assert node.waits == [1.0, 2.0, 4.0]


async def test_what_does_not_heal_is_given_up_after_so_many_attempts(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    complaint = b'{"errors":[{"code":"UNKNOWN","message":"out of disk"}]}'
    registry.faults.append(Fault("/manifests/", status=500, replace=complaint))
    node.config["pull_attempts"] = 3
    with pytest.raises(Unavailable, match=r"answers 500 for .*: UNKNOWN out of disk"):
        await resolved(node, f"{registry.host}/team/app:1")
    assert len(registry.asked) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 501])
async def test_what_can_not_pass_is_not_tried_again(
    node: Node, registry: RegistrySimulator, pushed: Pushed, status: int
) -> None:
    registry.faults.append(Fault("/manifests/", status=status))
    with pytest.raises(CriError, match=f"{registry.host}"):
        await resolved(node, f"{registry.host}/team/app:1")
    assert len(registry.asked) == 1


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 1.0),
        ({"Retry-After": "soon"}, 1.0),
        ({"Retry-After": "-3"}, 1.0),
        ({"Retry-After": "9" * 5000}, None),
        ({"Retry-After": "61"}, None),
        ({"Retry-After": "Wed, 21 Oct 2065 07:28:30 GMT"}, None),
    ],
)
async def test_a_host_says_when_to_come_again(
    node: Node, registry: RegistrySimulator, pushed: Pushed, headers: dict[str, str], wait_s: float | None
) -> None:
    registry.faults.append(Fault("/manifests/", status=429, headers=headers, times=1))
    if wait_s is None:
        with pytest.raises(Unavailable, match=r"takes no more now for .* s"):
            await resolved(node, f"{registry.host}/team/app:1")
        assert node.waits == []
    else:
        assert await resolved(node, f"{registry.host}/team/app:1") == pushed.index
        assert node.waits == [wait_s]


async def test_a_host_that_takes_no_connection_is_passed_over_after_its_dial_timeout(
    node: Node, registry: RegistrySimulator, pushed: Pushed
) -> None:
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):  # fill its queue; whoever comes now is not answered
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        mirror = f"http://127.0.0.1:{full.getsockname()[1]}"
        node.hosts_toml("r.example", f'server = "{registry.url}"\n[host."{mirror}"]\ndial_timeout = "100ms"\n')
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(HERMETIC.pull_progress_timeout_s / 2):
                assert await resolved(node, "r.example/team/app:1") == pushed.index
    (told,) = [each for each in logs if each["event"] == "hosts passed over"]
    assert "no connection in time" in str(told["failures"])


async def test_content_is_asked_for_as_it_is(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    await resolved(node, f"{registry.host}/team/app:1")
    assert registry.asked[0].headers["accept-encoding"] == "identity"


async def test_a_host_that_hangs_up_is_asked_again(node: Node, registry: RegistrySimulator, pushed: Pushed) -> None:
    registry.faults.append(Fault("/manifests/", hang_up=True, times=2))
    assert await resolved(node, f"{registry.host}/team/app:1") == pushed.index


@pytest.mark.parametrize(
    ("mirror_status", "kind"), [(404, NotFound), (403, PermissionDenied), (500, Unavailable), (418, Unavailable)]
)
async def test_what_a_mirror_answers_outdoes_a_registry_that_can_not_be_reached(
    node: Node, mirror_status: int, kind: type[CriError]
) -> None:
    with RegistrySimulator() as mirror:
        mirror.faults.append(Fault("/v2/", status=mirror_status))
        node.config["registries"] = {nobody(): RegistryConfig(mirrors=(mirror.url,))}
        with pytest.raises(kind, match=f"{mirror.host}.*other hosts: .*{nobody()} can't be reached") as raised:
            await resolved(node, f"{nobody()}/app:1")
        assert type(raised.value).code == kind.code


async def test_that_a_registry_has_nothing_outdoes_a_mirror_that_can_not_be_reached(
    node: Node, registry: RegistrySimulator
) -> None:
    node.config["registries"] = {registry.host: RegistryConfig(mirrors=(f"http://{nobody()}",))}
    with pytest.raises(NotFound, match=f"^{registry.url} has no .*{nobody()} can't be reached"):
        await resolved(node, f"{registry.host}/app:1")


@pytest.mark.parametrize("first", [True, False])
async def test_a_refusal_outdoes_that_another_host_has_nothing(
    node: Node, registry: RegistrySimulator, first: bool
) -> None:
    with RegistrySimulator() as mirror:
        (mirror if first else registry).faults.append(Fault("/v2/", status=403))
        node.config["registries"] = {registry.host: RegistryConfig(mirrors=(mirror.url,))}
        with pytest.raises(PermissionDenied, match=r"denies .*; other hosts: .* has no"):
            await resolved(node, f"{registry.host}/app:1")


async def test_no_host_that_can_be_reached_is_what_the_kubelet_calls_registry_unavailable(node: Node) -> None:
    node.config["registries"] = {nobody(): RegistryConfig(mirrors=(f"http://{nobody()}/mirror",))}
    with pytest.raises(
        RegistryUnavailable, match=r"^RegistryUnavailable: http://127\.0\.0\.1:1 can't be reached"
    ) as raised:
        await resolved(node, f"{nobody()}/app:1")
    assert raised.value.code == "UNKNOWN"
    assert len(node.waits) == HERMETIC.pull_attempts - 1
