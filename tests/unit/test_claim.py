"""A directory has one owner, and is free again once that has gone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.state.claim import claimed


def test_a_claimed_directory_is_refused_by_the_owners_pid_until_it_is_let_go(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with claimed(str(tmp_path)):
        with pytest.raises(FailedPrecondition, match=f"pid {os.getpid()}") as refusal, claimed(str(link)):
            pass
        assert "--root" in refusal.value.hint
    with claimed(str(tmp_path)):
        pass


def test_what_a_dead_owner_left_is_no_claim(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("4194304000000\n")
    with claimed(str(tmp_path)):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_directory_where_nothing_can_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(FailedPrecondition, match=r"/lock can't be opened for writing"), claimed(str(tmp_path)):
        pass
