"""The images that stand in for the ones that critest names."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from critest.images import programs
from critest.images.catalogue import light_image
from critest.images.layers import Image, Layer


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> Image:
    monkeypatch.setattr(programs, "debian_busybox", lambda: Path(__file__))
    monkeypatch.setattr(programs, "applets", lambda _program: ["ls", "sh"])
    entry = light_image()
    return entry.make(entry.names)


def members(layer: Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer.pack().blob))) as archive:
        return {member.name: member for member in archive}


def test_the_light_image_has_the_applets_as_links_and_the_users_and_groups_of_the_others(light: Image) -> None:
    found = members(light.layers[0])
    assert {found[f"bin/{applet}"].linkname for applet in ("ls", "sh")} == {"bin/busybox"}
    assert found["bin/busybox"].mode == 0o755
    assert {"etc/passwd", "etc/group", "tmp"} <= set(found)


def test_the_light_image_takes_the_name_that_critest_uses(light: Image) -> None:
    assert light.names == ["e2e-test-images/busybox:1.29-2"]


def test_a_layer_is_the_same_bytes_at_every_making_and_says_its_uncompressed_digest() -> None:
    def made() -> Layer:
        layer = Layer()
        layer.file("a/b", "text")
        return layer

    packed = made().pack()
    assert packed == made().pack()
    assert packed.diff_id == "sha256:" + hashlib.sha256(gzip.decompress(packed.blob)).hexdigest()


def test_the_directories_above_a_file_come_before_it_and_once() -> None:
    layer = Layer()
    layer.file("a/b/c", "")
    layer.file("a/b/d", "")
    assert list(members(layer)) == ["a", "a/b", "a/b/c", "a/b/d"]
