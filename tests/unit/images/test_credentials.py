"""Auth files, and the programs that they name."""

from __future__ import annotations

import base64
import json
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import ConfigError, DeadlineExceeded, Unavailable
from cri_py.images.auth import Credentials, auth_key, auth_keys, parse_auth_file
from cri_py.images.credentials import AuthFiles, KeychainCall, search

ONE, TWO = Credentials("u", "one"), Credentials("u", "two")


def entry(credentials: Credentials) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()}


def found(document: dict[str, Any], host: str, repository: str) -> object:
    return search(parse_auth_file(json.dumps(document).encode(), "f"), host, repository)


@pytest.mark.parametrize(
    ("keys", "host", "repository", "expected"),
    [
        (("r.io", "r.io/team"), "r.io", "team/app", TWO),
        (("r.io", "r.io/team/app"), "r.io", "team/app", TWO),
        (("r.io", "r.io/teams"), "r.io", "team/app", ONE),
        (("other", "r.io:5000"), "r.io:5000", "app", TWO),
        (("r.io", "r.io:5000"), "r.io", "app", ONE),
        (("https://r.io/v1/", "x"), "r.io", "app", ONE),
        (("https://r.io/some/where", "x"), "r.io", "app", ONE),
        (("r.io/v2/", "x"), "r.io", "app", ONE),
        (("https://index.docker.io/v1/", "x"), "registry-1.docker.io", "library/app", ONE),
        (("docker.io/library", "docker.io"), "registry-1.docker.io", "library/app", ONE),
        (("R.IO", "x"), "r.io", "app", ONE),
        (("a", "b"), "r.io", "app", None),
    ],
)
def test_the_most_specific_entry_counts(
    keys: tuple[str, str], host: str, repository: str, expected: Credentials | None
) -> None:
    assert found({"auths": {keys[0]: entry(ONE), keys[1]: entry(TWO)}}, host, repository) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"username": "a", "password": "b"}, Credentials("a", "b")),
        ({"identitytoken": "i", "auth": ""}, Credentials(identity_token="i")),
        ({"registrytoken": "r"}, Credentials(registry_token="r")),
        ({"email": "x@y"}, None),
        ({}, None),
    ],
)
def test_an_entry_has_any_of_its_forms(written: dict[str, str], expected: Credentials | None) -> None:
    assert found({"auths": {"r.io": written}}, "r.io", "app") == expected


def test_a_helper_goes_before_a_stored_secret_and_a_store_comes_last() -> None:
    document = {
        "auths": {"a.io": entry(ONE), "b.io/team": entry(TWO)},
        "credHelpers": {"a.io": "ha", "b.io": "hb", "docker.io": "hub"},
        "credsStore": "st",
    }
    assert found(document, "a.io", "x") == KeychainCall("ha", "a.io")
    assert found(document, "b.io", "team/x") == TWO
    assert found(document, "c.io", "x") == KeychainCall("st", "c.io")
    assert found(document, "registry-1.docker.io", "x") == KeychainCall("hub", "https://index.docker.io/v1/")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{\n"auths":\n!}', "f:3: not JSON"),
        ("", "f:1: not JSON"),
        ('{"auths": 1}', "f: Expected"),
        ('{"auths": {"r.io": {"auth": "geheim!"}}}', "f: auths.r.io: .*no base64"),
        ('{"credsStore": "../evil"}', "f: '../evil' is no credential helper"),
        ('{"credHelpers": {"a": "x/y"}}', "f: 'x/y' is no credential helper"),
    ],
)
def test_a_wrong_file_is_named_and_not_shown(content: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        parse_auth_file(content.encode(), "f")
    assert "geheim" not in str(raised.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_auth_file_or_refused(content: bytes) -> None:
    try:
        parse_auth_file(content, "f")
    except ConfigError as error:
        said = error.message
    else:
        return
    assert said.startswith("f:")


@given(st.text(max_size=60), st.text(max_size=20))
def test_a_key_is_found_under_itself(name: str, repository: str) -> None:
    key = auth_key(name)
    assert auth_key(key) == key or key.startswith(("/", "http"))
    assert auth_keys("r.io", repository)[-1] == "r.io"


# ---------------------------------------------------------------------- programs


class Node:
    """A node with programs in its PATH and an auth file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "auth.json"

    def install(self, name: str, script: str) -> None:
        path = self.root / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def find(
        self, host: str, repository: str = "app", keychains: tuple[str, ...] = (), timeout_s: float = 10.0
    ) -> object:
        environment = {"PATH": f"{self.root}:/usr/bin:/bin", "ROOT": str(self.root)}
        return AuthFiles([str(self.root / "none"), str(self.file)], environment, timeout_s).find(
            host, repository, keychains
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path)
    made.file.write_text('{"credHelpers": {"r.io": "test"}}')
    return made


def test_a_helper_is_asked_for_the_host_and_answers(node: Node) -> None:
    node.install(
        "test", 'read server; echo "{\\"Username\\":\\"$1\\",\\"Secret\\":\\"$server\\",\\"ServerURL\\":\\"\\"}"'
    )
    assert node.find("r.io") == Credentials("get", "r.io")


def test_a_helper_may_answer_with_an_identity_token(node: Node) -> None:
    node.install("test", 'echo \'{"Username":"<token>","Secret":"i"}\'')
    assert node.find("r.io") == Credentials(identity_token="i")


def test_a_helper_without_credentials_sends_us_as_nobody(node: Node) -> None:
    node.install("test", "echo credentials not found in native keychain; exit 1")
    assert node.find("r.io") is None
    assert node.find("other.io") is None


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("exit 3", Unavailable, "docker-credential-test failed with 3 for r.io"),
        ("kill -9 $$", Unavailable, "failed with -9"),
        ("echo geheim", Unavailable, "printed no JSON"),
        ("echo '{\"Secret\":3}'", Unavailable, "printed no JSON"),
        ("head -c 1000000 /dev/zero", Unavailable, "printed no JSON"),
    ],
)
def test_a_helper_that_fails_is_named_and_not_shown(node: Node, script: str, kind: type[Exception], words: str) -> None:
    node.install("test", script)
    with pytest.raises(kind, match=words) as raised:
        node.find("r.io")
    assert "geheim" not in str(raised.value)


def test_a_helper_that_is_missing_or_can_not_run_is_named(node: Node) -> None:
    with pytest.raises(ConfigError, match="docker-credential-test is not in PATH"):
        node.find("r.io")
    (node.root / "docker-credential-test").write_bytes(b"\x7fELF nonsense")
    (node.root / "docker-credential-test").chmod(0o755)
    with pytest.raises(Unavailable, match="can't be executed"):
        node.find("r.io")


def test_a_helper_that_hangs_is_killed_with_its_children_at_the_deadline(node: Node) -> None:
    node.install("test", "sleep 1000 & echo $! > $ROOT/child; exec sleep 1000")
    with pytest.raises(DeadlineExceeded, match=r"did not end within 2 s and was killed"):
        node.find("r.io", timeout_s=2)
    with suppress(ProcessLookupError):  # it is gone already
        child = os.pidfd_open(int((node.root / "child").read_text()))
        try:
            assert select.select([child], [], [], 10)[0], "the child lives on"
        finally:
            os.close(child)


def test_a_helper_that_leaves_a_child_with_the_pipe_does_not_hold_us_up(node: Node) -> None:
    node.install("test", 'sleep 1000 & echo \'{"Username":"u","Secret":"s"}\'')
    assert node.find("r.io") == Credentials("u", "s")


def test_helpers_of_registries_conf_are_asked_for_all_hosts(node: Node) -> None:
    node.install("test", "exit 3")
    node.install("other", 'echo \'{"Username":"u","Secret":"s"}\'')
    node.file.write_text('{"auths": {"a.io": {"username": "f", "password": "f"}}}')
    assert node.find("b.io", keychains=("other",)) == Credentials("u", "s")
    assert node.find("a.io", keychains=("containers-auth.json", "other")) == Credentials("f", "f")
    assert node.find("a.io", keychains=("other", "containers-auth.json")) == Credentials("u", "s")
