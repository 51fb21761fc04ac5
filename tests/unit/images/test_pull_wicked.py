"""Pulls of layers that were made to harm: each is refused in words, leaves nothing, and the next good pull works."""

from __future__ import annotations

import gzip
import importlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.errors import CriError, DataLoss, ResourceExhausted
from cri_py.images.service import Images
from tests.simulators.registry import File, RegistrySimulator, directory, hard_link, symlink, tar_layer
from tests.unit.images.nodes import leftovers

zstd = importlib.import_module("backports.zstd")
GOOD = tar_layer(File("etc/good", b"good"))
ZEROS = bytes(64 << 20)


def bomb(packed_zeros: bytes, pack: Callable[[bytes], bytes]) -> bytes:
    """A small layer, and behind its end more than a gibibyte of zeros: they are unpacked, but not written."""
    return pack(tar_layer(File("f"))) + packed_zeros * 17


WICKED: dict[str, tuple[Callable[[], bytes], type[CriError], str]] = {
    "a gzip bomb": (lambda: bomb(gzip.compress(ZEROS, 1), gzip.compress), ResourceExhausted, "compression bomb"),
    "a zstd bomb": (lambda: bomb(zstd.compress(ZEROS), zstd.compress), ResourceExhausted, "compression bomb"),
    "a way up": (lambda: tar_layer(File("../../escaped", b"x")), DataLoss, "leaves the layer"),
    "a way up in the middle": (lambda: tar_layer(File("a/../../escaped", b"x")), DataLoss, "leaves the layer"),
    "a hard link out": (lambda: tar_layer(hard_link("a", "../../escaped")), DataLoss, "leaves the layer"),
    "a link in a circle": (lambda: tar_layer(symlink("l", "l"), File("l/x")), DataLoss, "layer 1"),
    "a file for a root": (lambda: tar_layer(File("/", b"x")), DataLoss, "in place of its root"),
    "very deep": (lambda: tar_layer(File("d/" * 300 + "f")), DataLoss, "deep"),
    "cut": (lambda: tar_layer(File("f", b"x" * 5000))[:2000], DataLoss, "layer 1"),
    "cut when packed": (lambda: gzip.compress(os.urandom(5000))[:-100], DataLoss, "layer 1"),
    "damaged when packed": (lambda: zlib.compress(GOOD), DataLoss, "layer 1"),
}
KIND: dict[str, list[File]] = {
    "an absolute name": [File("/etc/shadow", b"x")],
    "a link out, and through it": [symlink("out", "/etc"), File("out/cri_py-escaped", b"x")],
    "names twice": [File("f", b"1"), File("f", b"2"), directory("d"), directory("d")],
    "a file becomes a directory and back": [File("f"), File("f/x"), File("f"), directory("f"), File("f/y")],
    "a whiteout of nothing": [File(".wh.nothing"), File("a/.wh..wh..opq"), File("x/.wh...")],
    "names that are no text": [File("\udcff\udcfe"), File("d\udc80/f")],
}


@pytest.mark.parametrize("name", WICKED)
async def test_a_wicked_layer_is_refused_and_nothing_of_it_stays(
    images: Images, registry: RegistrySimulator, root: Path, name: str
) -> None:
    make, kind, said = WICKED[name]
    registry.push("app", "wicked", [make()], compressed=False)
    with pytest.raises(kind, match=said):
        await images.pull(f"{registry.host}/app:wicked", None)
    assert (images.list(), leftovers(root)) == ([], [])
    assert images.content.digests() == []
    registry.push("app", "good", [GOOD])
    assert await images.pull(f"{registry.host}/app:good", None) in images.list()
    assert await images.check(deep=True) == []


@pytest.mark.parametrize("name", KIND)
async def test_what_is_odd_and_harmless_lands_inside(
    images: Images, registry: RegistrySimulator, root: Path, name: str
) -> None:
    registry.push("app", "odd", [tar_layer(*KIND[name])])
    image = await images.pull(f"{registry.host}/app:odd", None)
    assert await images.check(deep=True) == []
    await images.remove(image.id)
    assert leftovers(root) == []
    assert "cri_py-escaped" not in os.listdir("/etc")
