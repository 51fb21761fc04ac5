"""The registry client against simulators: who is asked, how often, what is resumed, who sees which credentials."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme

from cri_py.config import RegistryConfig
from cri_py.errors import (
    ConfigError,
    CriError,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    RegistryUnavailable,
    ResourceExhausted,
    Unavailable,
)
from cri_py.images.manifest import Descriptor
from cri_py.images.reference import parse_ref
from cri_py.images.registries import Registries
from cri_py.images.registry import Repository
from cri_py.model import Digest, RegistryAuth
from tests.simulators.registry import Fault, Pushed, RegistrySimulator
from tests.unit.images.conftest import HERMETIC

BLOB = bytes(range(256)) * 4000
AUTH = RegistryAuth("robot", "s3cr3t")


class Sink:
    """A blob in memory."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.algorithm = "sha256"
        self.written = 0

    @property
    def offset(self) -> int:
        return len(self.content)

    async def restart(self, algorithm: str) -> None:
        self.content, self.algorithm = b"", algorithm

    async def write(self, piece: bytes) -> None:
        self.content += piece
        self.written += len(piece)

    async def hexdigest(self) -> str:
        return hashlib.new(self.algorithm, self.content).hexdigest()


class Node:
    """The way out of a node whose time the test moves; ``waits`` are the rests between attempts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certs_d = directory / "certs.d"
        self.conf = directory / "registries.conf"
        self.auth_file = directory / "auth.json"
        self.environment: dict[str, str] = {}
        self.now_s = 1000.0
        self.waits: list[float] = []
        self.settings: dict[str, Any] = {}

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Registries]:
        config = replace(
            HERMETIC,
            certs_d=(str(self.certs_d),),
            registries_conf=str(self.conf),
            auth_files=(str(self.auth_file),),
            pull_retry_wait_s=1.0,
            **self.settings,
        )
        registries = Registries(
            config, environment=self.environment, clock_s=lambda: self.now_s, sleep=self.sleep, chance=lambda: 1.0
        )
        try:
            yield registries
        finally:
            await registries.close()

    @asynccontextmanager
    async def repository(self, ref: str, auth: RegistryAuth | None = None) -> AsyncIterator[Repository]:
        async with self.opened() as registries:
            yield await registries.repository(parse_ref(ref), auth)

    def hosts_toml(self, host: str, text: str) -> Path:
        directory = self.certs_d / host
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hosts.toml").write_text(text)
        return directory / "hosts.toml"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def blob(registry: RegistrySimulator) -> Descriptor:
    described = registry.describe(BLOB, "application/octet-stream")
    return Descriptor("", Digest(described["digest"]), len(BLOB))


@pytest.fixture
def pushed(registry: RegistrySimulator) -> Pushed:
    return registry.push("team/app", "1", [b""])


def fail_once(registry: RegistrySimulator, **fault: Any) -> None:
    registry.faults.append(Fault("/blobs/", times=1, **fault))


def whole_that_claims_to_be_the_rest(registry: RegistrySimulator) -> None:
    registry.ranges = False
    fail_once(registry, headers={"Content-Range": f"bytes 1000-{len(BLOB) - 1}/{len(BLOB)}"})


def nobody() -> str:
    """A host where nobody listens."""
    return "127.0.0.1:1"


async def resolved(node: Node, ref: str, auth: RegistryAuth | None = None) -> str:
    """The digest that a tag has."""
    async with node.repository(ref, auth) as repository:
        return (await repository.manifest(ref.rpartition(":")[2], None)).digest


# ------------------------------------------------------------------------ resume


@pytest.mark.parametrize("held", [1, 1000, len(BLOB) - 1])
async def test_a_blob_is_resumed_from_what_an_earlier_life_held(
    node: Node, registry: RegistrySimulator, blob: Descriptor, held: int
) -> None:
    sink = Sink(BLOB[:held])
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers["range"] for asked in registry.asked] == [f"bytes={held}-"]
    assert sink.written == len(BLOB) - held


async def test_a_blob_that_is_all_there_is_verified_and_not_asked_for(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, Sink(BLOB))
    assert registry.asked == []


async def test_a_cut_blob_goes_on_where_it_was_cut(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    registry.faults.append(Fault("/blobs/", cut_after=300_000, times=2))
    sink = Sink()
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers.get("range") for asked in registry.asked] == [None, "bytes=300000-", "bytes=600000-"]
    assert node.waits == [1.0, 2.0]


async def test_a_blob_that_gets_on_is_never_given_up(node: Node, registry: RegistrySimulator) -> None:
    content = bytes(12 << 20)
    described = registry.describe(content, "")
    registry.faults.append(Fault("/blobs/", cut_after=(1 << 20) + 1))
    node.settings["pull_attempts"] = 2
    sink = Sink()
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(Descriptor("", Digest(described["digest"]), len(content)), sink)
    assert sink.content == content
    assert set(node.waits) == {1.0}


@pytest.mark.parametrize(
    "prepare",
    [
        lambda registry: setattr(registry, "ranges", False),
        whole_that_claims_to_be_the_rest,
        lambda registry: fail_once(registry, content_range=f"bytes 7-9/{len(BLOB)}"),
        lambda registry: fail_once(registry, content_range=f"bytes 1000-1009/{len(BLOB) + 1}"),
        lambda registry: fail_once(registry, content_range="nonsense"),
        lambda registry: fail_once(registry, status=416),
    ],
    ids=["ignored", "claimed", "elsewhere", "another size", "unreadable", "refused"],
)  # fmt: skip
async def test_a_host_that_can_not_resume_sends_all_again(
    node: Node, registry: RegistrySimulator, blob: Descriptor, prepare: Callable[[RegistrySimulator], None]
) -> None:
    prepare(registry)
    sink = Sink(BLOB[:1000])
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert sink.written == len(BLOB), "what does not fit is not taken"


async def test_a_blob_whose_etag_changes_between_pieces_is_fetched_whole(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    registry.faults += [Fault("/blobs/", cut_after=1000, times=1), Fault("/blobs/", etag="other", times=1)]
    sink = Sink()
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers.get("range") for asked in registry.asked] == [None, "bytes=1000-", None]


async def test_damage_in_what_was_held_is_mended_by_the_same_host(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    sink = Sink(b"x" * 1000)
    async with node.repository(f"{registry.host}/app:1") as repository:
        await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert len(registry.asked) == 2


async def test_another_host_goes_on_with_what_the_first_sent(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    with RegistrySimulator() as mirror:
        mirror.blobs.update(registry.blobs)
        mirror.faults.append(Fault("/blobs/", cut_after=1000))
        node.settings["registries"] = {registry.host: RegistryConfig(mirrors=(mirror.url,))}
        sink = Sink()
        async with node.repository(f"{registry.host}/app:1") as repository:
            await repository.blob(blob, sink)
    assert sink.content == BLOB
    assert [asked.headers.get("range") for asked in registry.asked] == ["bytes=1000-"]


async def test_a_full_disk_is_no_reason_to_ask_another_host(
    node: Node, registry: RegistrySimulator, blob: Descriptor
) -> None:
    class Full(Sink):
        async def write(self, piece: bytes) -> None:
            raise ResourceExhausted("the disk is full")

    with RegistrySimulator() as mirror:
        mirror.blobs.update(registry.blobs)
        node.settings["registries"] = {registry.host: RegistryConfig(mirrors=(mirror.url,))}
        async with node.repository(f"{registry.host}/app:1") as repository:
            with pytest.raises(ResourceExhausted):
                await repository.blob(blob, Full())
    assert registry.asked == []


async def test_the_host_that_served_a_blob_is_logged(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    with structlog.testing.capture_logs() as logs:
        async with node.repository(f"{registry.host}/app:1") as repository:
            await repository.blob(blob, Sink())
    assert [(each["host"], each["digest"]) for each in logs if each["event"] == "blob fetched"] == [
        (registry.url, blob.digest)
    ]


async def test_a_dripping_host_is_given_up(node: Node, registry: RegistrySimulator, blob: Descriptor) -> None:
    registry.faults.append(Fault("/blobs/", drip_s=0.01))
    node.settings |= {"pull_progress_timeout_s": 0.2, "pull_minimum_bytes_per_s": 1000}
    async with node.repository(f"{registry.host}/app:1") as repository:
        with pytest.raises(DeadlineExceeded, match=r"sent only \d+ bytes in 0\.2"):
            await repository.blob(blob, Sink())
    assert len(registry.asked) == 1


# ----------------------------------------------------------------------- attempts


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
    node.settings["pull_attempts"] = 3
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


# ---------------------------------------------------------- which failure is told


@pytest.mark.parametrize(
    ("mirror_status", "kind"), [(404, NotFound), (403, PermissionDenied), (500, Unavailable), (418, Unavailable)]
)
async def test_what_a_mirror_answers_outdoes_a_registry_that_can_not_be_reached(
    node: Node, mirror_status: int, kind: type[CriError]
) -> None:
    with RegistrySimulator() as mirror:
        mirror.faults.append(Fault("/v2/", status=mirror_status))
        node.settings["registries"] = {nobody(): RegistryConfig(mirrors=(mirror.url,))}
        with pytest.raises(kind, match=f"{mirror.host}.*other hosts: .*{nobody()} can't be reached") as raised:
            await resolved(node, f"{nobody()}/app:1")
        assert type(raised.value).code == kind.code


async def test_that_a_registry_has_nothing_outdoes_a_mirror_that_can_not_be_reached(
    node: Node, registry: RegistrySimulator
) -> None:
    node.settings["registries"] = {registry.host: RegistryConfig(mirrors=(f"http://{nobody()}",))}
    with pytest.raises(NotFound, match=f"^{registry.url} has no .*{nobody()} can't be reached"):
        await resolved(node, f"{registry.host}/app:1")


@pytest.mark.parametrize("first", [True, False])
async def test_a_refusal_outdoes_that_another_host_has_nothing(
    node: Node, registry: RegistrySimulator, first: bool
) -> None:
    with RegistrySimulator() as mirror:
        (mirror if first else registry).faults.append(Fault("/v2/", status=403))
        node.settings["registries"] = {registry.host: RegistryConfig(mirrors=(mirror.url,))}
        with pytest.raises(PermissionDenied, match=r"denies .*; other hosts: .* has no"):
            await resolved(node, f"{registry.host}/app:1")


async def test_no_host_that_can_be_reached_is_what_the_kubelet_calls_registry_unavailable(node: Node) -> None:
    node.settings["registries"] = {nobody(): RegistryConfig(mirrors=(f"http://{nobody()}/mirror",))}
    with pytest.raises(
        RegistryUnavailable, match=r"^RegistryUnavailable: http://127\.0\.0\.1:1 can't be reached"
    ) as raised:
        await resolved(node, f"{nobody()}/app:1")
    assert raised.value.code == "UNKNOWN"
    assert len(node.waits) == HERMETIC.pull_attempts - 1


# -------------------------------------------------------------------------- logins


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
    node.settings["registries"] = {"registry.example": RegistryConfig(mirrors=(registry.url,))}
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


# ------------------------------------------------------------------- certs.d, live


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
    node.settings["registries"] = {"registry.example": RegistryConfig(mirrors=(registry.url,))}
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


# ----------------------------------------------------------------------------- TLS


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
    node.settings["registries"] = {"registry.example": RegistryConfig(mirrors=(secured.url,))}
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


# ------------------------------------------------------------------------- proxies


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
