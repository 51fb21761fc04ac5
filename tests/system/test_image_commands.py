"""``cri-py image`` against a running daemon, as a person would use it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.simulators.registry import RegistrySimulator
from tests.system.daemon import Daemon

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _no_kept_connection(registry: RegistrySimulator) -> Iterator[None]:
    """The daemon keeps connections to a registry for the next pull; here that would look like a leak of the test."""
    yield
    registry.hang_up()


@pytest.fixture
def command(daemon: Daemon) -> Command:
    """Runs ``cri-py image …`` for the daemon's directories."""

    def run(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        places = ["--root", str(daemon.root), "--state", str(daemon.state), "--config", str(daemon.config_file)]
        line = [sys.executable, "-m", "cri_py", "image", verb, *places, *arguments]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    return run


def tags(command: Command) -> set[str]:
    return {tag for image in json.loads(command("ls", "--json").stdout) for tag in image["tags"]}


def test_a_pull_tells_the_id_that_inspect_knows(command: Command) -> None:
    pulled = command("pull", "registry.test/busybox:1")
    assert pulled.returncode == 0, pulled.stderr
    image_id = pulled.stdout.splitlines()[-1]
    found = json.loads(command("inspect", image_id).stdout)
    assert found["id"] == image_id
    assert "registry.test/busybox:1" in found["tags"]
    assert found["config"]["rootfs"]["diff_ids"]
    assert len(found["chainIDs"]) == len(found["config"]["rootfs"]["diff_ids"])


def test_a_tag_is_given_and_taken_alone(command: Command) -> None:
    command("pull", "registry.test/busybox:1")
    assert command("tag", "registry.test/busybox:1", "example.test/mine:2").stdout == "example.test/mine:2\n"
    assert {"registry.test/busybox:1", "example.test/mine:2"} <= tags(command)
    assert command("rm", "example.test/mine:2").returncode == 0
    assert "example.test/mine:2" not in tags(command)
    assert "registry.test/busybox:1" in tags(command)


def test_the_list_is_a_table_of_names_ids_and_sizes(command: Command) -> None:
    command("pull", "registry.test/busybox:1")
    head, *rows = command("ls").stdout.splitlines()
    assert head.split() == ["IMAGE", "ID", "SIZE"]
    assert any(row.startswith("registry.test/busybox:1 ") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("pull", "registry.test/missing:1"), "missing"),
        (("inspect", "no-such-image"), "cri-py image ls"),
        (("rm", "no-such-image"), "cri-py image ls"),
        (("tag", "no-such-image", "a:b"), "no-such-image"),
        (("pull", "UPPER CASE"), "UPPER CASE"),
    ],
)
def test_what_is_not_there_is_told_with_the_way_out(command: Command, arguments: tuple[str, ...], word: str) -> None:
    done = command(*arguments)
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_daemon_the_command_says_how_to_have_one(tmp_path: object) -> None:
    line = [sys.executable, "-m", "cri_py", "image", "ls", "--state", f"{tmp_path}", "--root", f"{tmp_path}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "cri-py serve" in done.stderr


def test_nothing_is_wrong_with_the_store_after_all_this(command: Command) -> None:
    command("pull", "registry.test/busybox:1")
    checked = command("check", "--deep")
    assert checked.stdout == "nothing is wrong\n"
    assert checked.returncode == 0


def test_the_running_daemon_repairs_its_store(command: Command, daemon: Daemon) -> None:
    command("pull", "registry.test/busybox:1")
    orphan = daemon.root / "images/layers/orphan"
    orphan.mkdir()
    blobs = daemon.root / "images/blobs/sha256"
    (blobs / ("0" * 64)).write_bytes(b"of nobody")
    repaired = command("check", "--repair")
    assert repaired.stdout.splitlines()[-1] == "2 found, 2 repaired", repaired.stderr
    assert repaired.returncode == 0
    assert not orphan.exists()
    assert command("check").stdout == "nothing is wrong\n"
