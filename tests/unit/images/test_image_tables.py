"""Files of others: read when they changed, wrong values named by line, Go's durations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import ConfigError
from cri_py.images.tables import FILE_LIMIT, Fresh, duration_s, parse_toml


def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path) -> None:
    file, parsed = tmp_path / "f", list[bytes]()

    def parse(content: bytes, path: str) -> int:
        assert path == str(file)
        parsed.append(content)
        return len(content)

    files = Fresh(parse)
    assert files.get(str(file)) is None
    file.write_bytes(b"one")
    assert [files.get(str(file)), files.get(str(file))] == [3, 3]
    replacement = tmp_path / "g"
    replacement.write_bytes(b"two")
    os.rename(replacement, file)
    assert files.get(str(file)) == 3
    assert parsed == [b"one", b"two"]
    file.unlink()
    assert files.get(str(file)) is None


def test_a_file_that_can_not_be_parsed_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x = ")
    files = Fresh(parse_toml)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"f:1: not TOML"):
            files.get(str(file))


def test_what_is_no_file_or_too_big_is_refused_by_name(tmp_path: Path) -> None:
    files = Fresh(lambda content, _: content)
    with pytest.raises(ConfigError, match=f"{tmp_path} can't be read"):
        files.get(str(tmp_path))
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, FILE_LIMIT + 1)
    with pytest.raises(ConfigError, match=f"{big} has more than"):
        files.get(str(big))


def test_bytes_that_are_no_text_are_named_by_line() -> None:
    with pytest.raises(ConfigError, match=r"f:2: not TOML: this is no UTF-8"):
        parse_toml(b"x = 1\ny = '\xff'", "f")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("10s", 10.0), ("1m30s", 90.0), ("1.5h", 5400.0), ("500ms", 0.5), ("2us", 2e-6), ("2µs", 2e-6), ("0s", 0.0)),
        *((wrong, None) for wrong in ("", "10", "s", "-1s", "10 s", "1d", "1s ", "1.2.3s")),
    ],
)
def test_a_duration_is_read_as_go_does(text: str, seconds: float | None) -> None:
    assert duration_s(text) == (pytest.approx(seconds) if seconds is not None else None)


@given(st.text(max_size=20))
def test_any_text_is_a_duration_or_none(text: str) -> None:
    assert (duration_s(text) or 0.0) >= 0.0
