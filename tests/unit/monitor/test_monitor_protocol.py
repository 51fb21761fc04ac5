"""Frames: any message survives, what is none is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.monitor import protocol

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values))
def test_any_message_survives_its_frame(message: dict[str, Any]) -> None:
    assert protocol.decode(protocol.encode(message)) == message


def test_bytes_that_are_no_text_survive_as_surrogates() -> None:
    path = b"/\xff\xfe".decode("utf-8", "surrogateescape")
    assert protocol.decode(protocol.encode({"log": path}))["log"].encode("utf-8", "surrogateescape") == b"/\xff\xfe"


@pytest.mark.parametrize("frame", [b"", b"[]", b"1", b"null", b'{"op"', b"\xff"])
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError):
        protocol.decode(frame)


def test_a_frame_that_stands_for_a_memfd_is_no_message_of_ours() -> None:
    assert protocol.encode({"memfd": True, "seq": 1}) != protocol.MEMFD
