"""Trees of files as layers: what of them is told, and always in the same bytes. What needs root is in tests/kernel."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from cri_py.errors import Aborted, FailedPrecondition
from cri_py.images import layerize
from cri_py.images.layerize import layer_pieces


def layer(root: Path) -> bytes:
    return b"".join(layer_pieces(str(root)))


def members(root: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer(root))) as tar:
        return {member.name: member for member in tar}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/motd").write_text("hello")
    (root / "etc/motd").chmod(0o4640)
    os.link(root / "etc/motd", root / "linked")
    (root / "link").symlink_to("/etc/motd")
    os.mkfifo(root / "pipe", 0o600)
    for path in ("etc/motd", "link", "pipe", "etc"):
        os.utime(root / path, (7, 1_500_000_000), follow_symlinks=False)
    return root


def test_every_kind_is_told_with_its_attributes(tree: Path) -> None:
    found = members(tree)
    assert list(found) == ["etc", "etc/motd", "link", "linked", "pipe"]
    assert found["etc"].isdir()
    assert (found["etc/motd"].mode, found["etc/motd"].size, found["etc/motd"].mtime) == (0o4640, 5, 1_500_000_000)
    assert (found["etc/motd"].uid, found["etc/motd"].gid) == (os.geteuid(), os.getegid())
    assert (found["link"].issym(), found["link"].linkname) == (True, "/etc/motd")
    assert (found["linked"].islnk(), found["linked"].linkname) == (True, "etc/motd")
    assert found["pipe"].isfifo()


def test_no_owner_is_told_by_name_and_no_root_entry_changes_the_root(tree: Path) -> None:
    assert all((member.uname, member.gname) == ("", "") for member in members(tree).values())
    assert "." not in members(tree)


def test_the_same_tree_is_the_same_bytes_however_it_was_made(tmp_path: Path) -> None:
    for name, order in (("one", "abc"), ("two", "cab")):
        (tmp_path / name).mkdir()
        for letter in order:
            (tmp_path / name / letter).write_text(letter)
            os.utime(tmp_path / name / letter, (len(name), 5))
    os.utime(tmp_path / "two/a", (999, 5))
    assert layer(tmp_path / "one") == layer(tmp_path / "two")


def test_long_names_and_names_that_are_no_text_survive(tmp_path: Path) -> None:
    names = ["n" * 250, os.fsdecode(b"not-\xff-utf8"), "ümläut"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ("m" * 200)).write_text("x")
    assert set(names) | {f"deep/{'m' * 200}"} <= set(members(tmp_path))


def test_sockets_are_left_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        (tmp_path / "file").write_text("x")
        assert list(members(tmp_path)) == ["file"]


def test_a_link_out_of_the_tree_is_told_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/out").symlink_to("../secret")
    (tmp_path / "tree/up").symlink_to("..")
    assert b"secret\0" not in layer(tmp_path / "tree").replace(b"../secret\0", b"")
    assert all(member.issym() for member in members(tmp_path / "tree").values())


def test_a_name_that_would_hide_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".wh.passwd").write_text("")
    with pytest.raises(FailedPrecondition, match=r"\.wh\.passwd"):
        layer(tmp_path)


def test_a_tree_of_more_names_than_a_layer_may_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layerize, "ENTRIES_MAX", 5)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    layer(tmp_path)
    (tmp_path / "b/another").touch()
    (tmp_path / "b/third").touch()
    with pytest.raises(FailedPrecondition, match="more than 5"):
        layer(tmp_path)


def test_what_is_swapped_for_a_link_while_it_is_read_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    root = tmp_path / "tree"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "key").write_text("own")
    pieces = layer_pieces(str(root))
    read = [next(pieces)]  # the header of a
    (root / "b/key").unlink()
    (root / "b").rmdir()
    (root / "b").symlink_to(tmp_path / "secret")
    (root / "a/key").unlink()
    (root / "a/key").symlink_to(tmp_path / "secret/key")
    content = b"".join([*read, *pieces])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert all(not member.isreg() for member in tar)


def test_a_file_that_grows_is_told_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n")
    pieces = layer_pieces(str(tmp_path))
    read = [next(pieces)]
    with (tmp_path / "log").open("ab") as log:
        log.write(b"two\n")
    with tarfile.open(fileobj=io.BytesIO(b"".join([*read, *pieces]))) as tar:
        file = tar.extractfile("log")
        assert file is not None
        assert file.read() == b"one\n"


def test_a_file_that_is_cut_meanwhile_ends_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n")
    pieces = layer_pieces(str(tmp_path))
    next(pieces)
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(Aborted, match="log"):
        list(pieces)
