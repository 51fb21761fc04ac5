from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cri_py.errors import DataLoss, NotFound
from cri_py.images import artifacts
from cri_py.images.building import digest_of
from cri_py.images.content import Content

TITLE = "org.opencontainers.image.title"
ONE, TWO = digest_of(b"one"), digest_of(b"two")


def manifest(*layers: tuple[str, str | None]) -> bytes:
    entries: list[dict[str, Any]] = []
    for digest, title in layers:
        annotations = {} if title is None else {"annotations": {TITLE: title}}
        entries.append({"mediaType": "text/plain", "digest": digest, "size": 3, **annotations})
    return json.dumps({"schemaVersion": 2, "layers": entries}).encode()


def test_a_file_has_its_title_or_else_its_digests_digits() -> None:
    found = artifacts.files_of(manifest((ONE, "models/tiny.bin"), (TWO, None)), "m:1")
    assert found == {"models/tiny.bin": ONE, TWO.partition(":")[2]: TWO}


@pytest.mark.parametrize("title", ["/etc/passwd", "../x", "a/../../x", "..", ".", "a\0b", "./"])
def test_a_title_that_leads_out_is_refused(title: str) -> None:
    with pytest.raises(DataLoss, match="no place of its own"):
        artifacts.files_of(manifest((ONE, title)), "m:1")


def test_two_files_of_one_name_are_refused() -> None:
    with pytest.raises(DataLoss, match="no place of its own"):
        artifacts.files_of(manifest((ONE, "x"), (TWO, "./x")), "m:1")


def test_the_files_are_the_blobs_themselves(tmp_path: Path) -> None:
    content = Content(str(tmp_path / "blobs"))
    content.settle(())
    content.put(ONE, b"one")
    artifacts.lay_out({"a/b": ONE}, content, str(tmp_path / "there"))
    made = tmp_path / "there" / "a" / "b"
    assert made.read_bytes() == b"one"
    assert os.path.samefile(made, content.path(ONE))
    assert made.stat().st_mode & 0o777 == 0o644


def test_a_blob_that_is_gone_is_told(tmp_path: Path) -> None:
    content = Content(str(tmp_path / "blobs"))
    content.settle(())
    with pytest.raises(NotFound, match=ONE):
        artifacts.lay_out({"a": ONE}, content, str(tmp_path / "there"))
