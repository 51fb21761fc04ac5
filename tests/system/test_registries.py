"""Registries as an operator configures them under a running daemon: certs.d, registries.conf, auth files, secrets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import refused
from tests.simulators.registry import File, Pushed, RegistrySimulator, tar_layer
from tests.system.daemon import Daemon

ELSEWHERE = "registry.elsewhere.test"
NOBODY = "127.0.0.1:1"


@pytest.fixture
def private() -> Iterator[RegistrySimulator]:
    """Wants robot's password."""
    with RegistrySimulator("bearer") as simulator:
        yield simulator


@pytest.fixture
def pushed(private: RegistrySimulator) -> Pushed:
    return private.push("team/app", "1", [tar_layer(File("motd", b"hello\n"))])


@pytest.fixture
def serving(make_daemon: Callable[[str], Daemon], tmp_path: Path) -> Daemon:
    return make_daemon(
        f'[images]\ncerts_d = ["{tmp_path}/certs.d"]\nregistries_conf = "{tmp_path}/registries.conf"\n'
        f'auth_files = ["{tmp_path}/auth.json"]\npull_attempts = 2\npull_retry_wait_s = 0.01\n'
    )


def test_files_that_change_count_at_the_next_pull(
    serving: Daemon, private: RegistrySimulator, pushed: Pushed, tmp_path: Path
) -> None:
    kubelet, image = serving.kubelet, f"{ELSEWHERE}/team/app:1"
    conf, auth = tmp_path / "registries.conf", tmp_path / "auth.json"
    conf.write_text(f'[[registry]]\nlocation = "{ELSEWHERE}"\nblocked = true\n')
    with refused("FAILED_PRECONDITION", f"{ELSEWHERE}/team/app is blocked by {conf}:1"):
        kubelet.pull(image)
    conf.write_text(f'[[registry]]\nprefix = "{ELSEWHERE}"\nlocation = "{private.host}"\n')
    with refused("PERMISSION_DENIED", f"{private.host}"):
        kubelet.pull(image)
    auth.write_text(json.dumps({"auths": {f"{private.host}/team": {"auth": private.basic().partition(" ")[2]}}}))
    assert kubelet.pull(image) == pushed.config
    auth.write_text("{")
    (tmp_path / "certs.d" / ELSEWHERE).mkdir(parents=True)
    hosts_toml = tmp_path / "certs.d" / ELSEWHERE / "hosts.toml"
    hosts_toml.write_text(f'server = "http://{NOBODY}"\n[host."{private.url}"]\ncapabilities = ["pull", 3]\n')
    with refused("INVALID_ARGUMENT", f"{hosts_toml}:3"):
        kubelet.pull(image)
    hosts_toml.write_text(f'server = "{private.url}"\n')
    secret = pb.AuthConfig(username=private.user, password=private.secret)
    assert kubelet.pull(image, auth=secret) == pushed.config
    assert f"ns={ELSEWHERE}" in private.asked[-1].path
    assert "a registry is configured twice" in serving.log_file.read_text()


def test_a_registry_that_is_down_gets_the_reason_that_the_kubelet_knows(serving: Daemon) -> None:
    """The kubelet strips the code of an UNKNOWN status alone and then looks at how the text begins."""
    with refused("UNKNOWN", "RegistryUnavailable: "):
        serving.kubelet.pull(f"{NOBODY}/app:1")
