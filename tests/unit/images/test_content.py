"""Blobs by digest: put, kept, verified, and not trusted after a crash."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from cri_py.errors import DataLoss, NotFound
from cri_py.images.content import Content
from cri_py.model import Digest
from tests.simulators.registry import sha256

HELLO = Digest(sha256(b"hello"))
OTHER = Digest(sha256(b"other"))


@pytest.fixture
def content(tmp_path: Path) -> Content:
    content = Content(str(tmp_path / "blobs"))
    content.settle(())
    return content


def test_a_blob_is_found_by_its_digest(content: Content) -> None:
    content.put(HELLO, b"hello")
    assert (content.has(HELLO, 5), content.has(HELLO, 6), content.size(OTHER)) == (True, False, None)
    assert content.read(HELLO, 5) == b"hello"
    with content.open(HELLO) as file:
        content.remove(HELLO)
        assert file.read() == b"hello", "who reads is not disturbed"
    assert content.digests() == []
    content.remove(HELLO)


def test_a_file_becomes_a_blob(content: Content) -> None:
    assert content.put_file(HELLO, io.BytesIO(b"hello")) == 5
    assert content.digests() == [HELLO]


def test_a_file_of_another_digest_is_refused_and_leaves_nothing(content: Content, tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match=OTHER):
        content.put_file(HELLO, io.BytesIO(b"other"))
    assert [files for _, _, files in os.walk(tmp_path) if files] == []


def test_an_absent_blob_says_what_to_do(content: Content) -> None:
    with pytest.raises(NotFound, match="pull the image again"):
        content.open(HELLO)


@pytest.mark.parametrize("damaged", [b"hellO", b"hell", b"hello!"])
def test_a_damaged_blob_is_not_read(content: Content, damaged: bytes) -> None:
    content.put(HELLO, b"hello")
    assert content.intact(HELLO)
    Path(content.path(HELLO)).write_bytes(damaged)
    assert not content.intact(HELLO)
    with pytest.raises(DataLoss, match="damaged"):
        content.read(HELLO, 5)


def test_what_no_record_names_is_not_trusted_after_a_restart(content: Content, tmp_path: Path) -> None:
    content.put(HELLO, b"hello")
    content.put(OTHER, b"other")
    again = Content(str(tmp_path / "blobs"))
    again.settle({HELLO})
    assert again.digests() == [HELLO]
    assert Path(again.partial(OTHER)).read_bytes() == b"other", "a pull takes it up, after hashing it"


def test_partial_blobs_that_nobody_takes_up_are_dropped(content: Content) -> None:
    for digest, age_s in ((HELLO, 0), (OTHER, 90_000)):
        path = Path(content.partial(digest))
        path.write_bytes(b"part")
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    content.drop_old_partials()
    assert [os.path.exists(content.partial(digest)) for digest in (HELLO, OTHER)] == [True, False]


def test_leased_blobs_are_not_taken_away(content: Content) -> None:
    content.put(HELLO, b"hello")
    content.put(OTHER, b"other")
    with content.lease([HELLO]):
        with content.lease([HELLO]):
            pass
        assert content.take_unneeded({OTHER}, content.digests()) == []
    (gone,) = content.take_unneeded({OTHER}, [HELLO, OTHER])
    assert content.digests() == [OTHER]
    assert Path(gone).read_bytes() == b"hello"


def test_what_was_half_written_is_gone_after_a_restart(content: Content, tmp_path: Path) -> None:
    content.put(HELLO, b"hello")
    content.take_unneeded((), [HELLO])
    Path(content.partial(OTHER)).write_bytes(b"oth")
    content.settle(())
    assert os.listdir(tmp_path / "blobs" / "partial") == [OTHER.replace(":", "-")]


def test_usage_counts_all_files(content: Content) -> None:
    assert content.usage() == (0, 0)
    content.put(HELLO, b"hello")
    used, inodes = content.usage()
    assert (used >= 4096, inodes) == (True, 1)
