"""Removing a pod's cgroups while other pods' calls remove theirs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cri_py.pods.groups import _removed


def test_a_parent_that_another_call_removes_between_two_looks_counts_as_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "kubepods"
    parent.mkdir()
    remove = os.rmdir

    def busy_then_gone(path: str) -> None:
        monkeypatch.setattr(os, "rmdir", remove)
        remove(path)
        raise OSError(errno.EBUSY, "the other call's pod was still in it", path)

    monkeypatch.setattr(os, "rmdir", busy_then_gone)
    assert _removed(str(parent), until=float("inf"))


def test_a_parent_that_holds_other_pods_is_left(tmp_path: Path) -> None:
    (tmp_path / "kubepods" / "pod-of-others").mkdir(parents=True)
    assert not _removed(str(tmp_path / "kubepods"), until=float("inf"))
