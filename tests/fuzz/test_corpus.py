"""What the fuzzers found, and the seeds they began with, go through every target again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_takes_its_whole_corpus(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files, f"{name} has no seeds"
    for file in files:
        try:
            TARGETS[name](file.read_bytes())
        except Exception as error:
            error.add_note(f"with {file}")
            raise


def test_every_corpus_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
