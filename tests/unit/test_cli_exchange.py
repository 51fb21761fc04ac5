"""What the commands for images without a registry write where they run."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cri_py import cli, cli_exchange
from tests.simulators.registry import File, tar_layer

ARCHIVE = tar_layer(File("oci-layout", b"{}"), File("index.json", b"[]"), File("blobs/sha256/aa", b"a" * 3_000_000))


class Daemon:
    """Sends an archive in the pieces that it is given."""

    sent: Sequence[bytes] = ()

    def __init__(self, _listen: str) -> None:
        pass

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def give(self, _refs: Sequence[str]) -> Iterator[bytes]:
        yield from self.sent


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> type[Daemon]:
    monkeypatch.setattr(cli_exchange, "ExchangeClient", Daemon)
    monkeypatch.setattr(Daemon, "sent", ())
    return Daemon


def export(*arguments: str | Path) -> int:
    return cli.run(["image", "export", "app:1", *map(str, arguments), "--config", "/dev/null"], io.StringIO())


def files(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


@pytest.mark.parametrize("size", [700, 1 << 20])
def test_an_export_into_a_directory_is_its_archive_unpacked(tmp_path: Path, daemon: type[Daemon], size: int) -> None:
    daemon.sent = [ARCHIVE[start : start + size] for start in range(0, len(ARCHIVE), size)]
    assert export("--layout", "-o", tmp_path / "new/layout") == 0
    expected = {"oci-layout": b"{}", "index.json": b"[]", "blobs/sha256/aa": b"a" * 3_000_000}
    assert files(tmp_path / "new/layout") == expected


@pytest.mark.parametrize("made", [True, False])
def test_an_export_that_is_cut_leaves_the_place_as_it_was(tmp_path: Path, daemon: type[Daemon], made: bool) -> None:
    daemon.sent = [ARCHIVE[:2_000_000]]
    if made:
        (tmp_path / "layout").mkdir()
    assert export("--layout", "-o", tmp_path / "layout") == 1
    assert os.listdir(tmp_path) == (["layout"] if made else [])
    assert not files(tmp_path)


def test_nothing_that_leads_out_of_the_directory_is_written(tmp_path: Path, daemon: type[Daemon]) -> None:
    for name in ("../out", "/out", "a/../../out"):
        daemon.sent = [tar_layer(File("oci-layout", b"{}"), File(name, b"x"))]
        assert export("--layout", "-o", tmp_path / "layout") == 1
    assert os.listdir(tmp_path) == []


def test_a_directory_with_something_in_it_is_left_alone(tmp_path: Path, daemon: type[Daemon]) -> None:
    daemon.sent = [ARCHIVE]
    (tmp_path / "mine").write_text("mine")
    assert export("--layout", "-o", tmp_path) == 1
    assert files(tmp_path) == {"mine": b"mine"}
