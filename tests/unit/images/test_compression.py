from __future__ import annotations

import gzip
import importlib
import io
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import DataLoss, ResourceExhausted, Unimplemented
from cri_py.images.compression import PIECE_BYTES, inflate

zstd = importlib.import_module("backports.zstd")
PACKERS = {"gzip": gzip.compress, "zstd": zstd.compress, "plain": bytes}
PLAIN = b"plain" * 1_000_000


def inflated(content: bytes, limit: int = 1 << 30) -> bytes:
    return b"".join(inflate(io.BytesIO(content), "layer 1", limit))


@pytest.mark.parametrize("packer", PACKERS)
def test_what_was_packed_comes_out_in_bounded_pieces(packer: str) -> None:
    pieces = list(inflate(io.BytesIO(PACKERS[packer](PLAIN)), "layer 1", 1 << 30))
    assert b"".join(pieces) == PLAIN
    assert max(len(piece) for piece in pieces) <= PIECE_BYTES


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
@given(parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_members_that_follow_each_other_are_one_stream(packer: str, parts: list[bytes]) -> None:
    assert inflated(b"".join(PACKERS[packer](part) for part in parts)) == b"".join(parts)


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_cut_stream_is_refused(packer: str, keep: float) -> None:
    content = PACKERS[packer](PLAIN)
    with pytest.raises(DataLoss, match="layer 1 ends in the middle"):
        inflated(content[: int(len(content) * keep)])


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_a_damaged_stream_is_refused(packer: str) -> None:
    content = bytearray(PACKERS[packer](bytes(range(256)) * 50))
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    with pytest.raises(DataLoss, match="layer 1"):
        inflated(bytes(content))


def test_a_wrong_checksum_is_refused() -> None:
    content = gzip.compress(b"x" * 100)
    with pytest.raises(DataLoss, match="damaged"):
        inflated(content[:-8] + zlib.crc32(b"other").to_bytes(4, "little") + content[-4:])


@pytest.mark.parametrize("packer", PACKERS)
def test_more_than_the_limit_is_refused(packer: str) -> None:
    with pytest.raises(ResourceExhausted, match="more than 1 MiB"):
        inflated(PACKERS[packer](bytes(64 << 20)), limit=1 << 20)


def test_zstd_without_its_library_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(Unimplemented, match=r"install .*backports\.zstd"):
        inflated(zstd.compress(b"x"))
