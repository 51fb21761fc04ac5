"""The CRI log format: any chunking gives the same text, no piece exceeds the limit, the last line is closed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.monitor.crilog import LineCutter, stamp

LIMIT = 8
LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) ([^\n]*)\n")
text = st.lists(st.sampled_from([b"a", b"\n", b"\0", b"\xff", b" F ", b"x" * LIMIT, b"y" * (LIMIT + 1)])).map(b"".join)


def parse(log: bytes) -> list[tuple[bytes, bytes]]:
    """[(P or F, text)]; every byte belongs to a line of the format."""
    assert LINE.sub(b"", log) == b""
    return [(tag, line) for _, _, tag, line in LINE.findall(log)]


def cut(chunks: list[bytes]) -> list[tuple[bytes, bytes]]:
    cutter = LineCutter("stdout", LIMIT)
    return parse(b"".join(cutter.feed(chunk, 1) for chunk in chunks) + cutter.end(2))


def joined(lines: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(line + (b"\n" if tag == b"F" else b"") for tag, line in lines)


@given(st.lists(text))
def test_any_chunking_keeps_every_byte(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert joined(cut(chunks)) == whole + (b"" if not whole or whole.endswith(b"\n") else b"\n")


@given(st.lists(text))
def test_any_chunking_gives_the_same_lines(chunks: list[bytes]) -> None:
    assert cut(chunks) == cut([b"".join(chunks)])


@given(st.lists(text))
def test_no_piece_exceeds_the_limit_and_partial_ones_reach_it(chunks: list[bytes]) -> None:
    for tag, line in cut(chunks):
        assert len(line) <= LIMIT
        assert tag == b"F" or len(line) == LIMIT


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"x" * LIMIT + b"\n", [(b"F", b"x" * LIMIT)]),
        (b"x" * (LIMIT + 1) + b"\n", [(b"P", b"x" * LIMIT), (b"F", b"x")]),
        (b"\n\n", [(b"F", b""), (b"F", b"")]),
        (b"no newline", [(b"P", b"no newli"), (b"F", b"ne")]),
        (b"", []),
    ],
)
def test_a_line_ends_with_f_and_what_goes_on_with_p(data: bytes, lines: list[tuple[bytes, bytes]]) -> None:
    assert cut([data]) == lines


def test_a_line_is_told_once_it_is_complete() -> None:
    cutter = LineCutter("stderr", LIMIT)
    assert cutter.feed(b"half", 0) == b""
    assert cutter.feed(b"\n", 0) == b"1970-01-01T00:00:00.000000000Z stderr F half\n"
    assert cutter.end(0) == b""


@pytest.mark.parametrize(
    ("nanos", "written"),
    [
        (0, b"1970-01-01T00:00:00.000000000Z"),
        (1, b"1970-01-01T00:00:00.000000001Z"),
        (1_700_000_000_123_456_789, b"2023-11-14T22:13:20.123456789Z"),
    ],
)
def test_a_stamp_has_nine_digits(nanos: int, written: bytes) -> None:
    assert stamp(nanos) == written
