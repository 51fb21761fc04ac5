"""The groups above pods: remembered by whoever made them, removed when nobody is below, left where others are."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cri_py.errors import KernelError
from cri_py.pods.group_parents import GroupParents


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def make(parents: GroupParents, parent: Path) -> Path:
    """A pod's group below ``parent``, as a thread makes it."""
    with parents.below([str(parent)]):
        (parent / "pod").mkdir(parents=True)
    return parent / "pod"


def test_empty_parents_of_ours_are_removed_up_to_what_was_there_before(mount: Path) -> None:
    (mount / "kubelets").mkdir()
    parents = GroupParents(mount.parent / "note")
    pod = make(parents, mount / "kubelets/burstable/x")
    parents.sweep()
    assert pod.is_dir()
    pod.rmdir()
    parents.sweep()
    assert (mount / "kubelets").is_dir()
    assert not (mount / "kubelets/burstable").exists()
    assert not parents


def test_a_parent_that_others_use_is_removed_when_they_are_gone(mount: Path) -> None:
    parents = GroupParents(mount.parent / "note")
    make(parents, mount / "ours").rmdir()
    (mount / "ours/theirs").mkdir()
    parents.sweep()
    assert (mount / "ours/theirs").is_dir()
    (mount / "ours/theirs").rmdir()
    parents.sweep()
    assert not (mount / "ours").exists()


def test_a_parent_that_others_have_removed_and_made_again_is_theirs(mount: Path) -> None:
    parents = GroupParents(mount.parent / "note")
    make(parents, mount / "ours").rmdir()
    (mount / "ours").rmdir()
    (mount / "between").mkdir()  # gets the number that is free now, where numbers come again
    (mount / "ours").mkdir()
    parents.sweep()
    assert (mount / "ours").is_dir()
    assert not parents


def test_a_parent_that_others_have_removed_and_we_have_made_again_is_ours(mount: Path) -> None:
    parents = GroupParents(mount.parent / "note")
    make(parents, mount / "ours").rmdir()
    (mount / "ours").rmdir()
    (mount / "between").mkdir()
    make(parents, mount / "ours").rmdir()
    parents.sweep()
    assert not (mount / "ours").exists()


def test_a_killed_daemons_parents_are_removed_by_the_next(mount: Path) -> None:
    """Also those that it had not made yet, or only in part."""
    with GroupParents(mount.parent / "note").below([str(mount / "a/b/c")]):
        (mount / "a/b").mkdir(parents=True)
        following = GroupParents(mount.parent / "note")
    following.sweep()
    assert not (mount / "a").exists()
    assert not GroupParents(mount.parent / "note")


def test_nothing_goes_while_a_pod_is_being_made_below(mount: Path) -> None:
    parents = GroupParents(mount.parent / "note")
    make(parents, mount / "ours").rmdir()
    with parents.below([str(mount / "ours")]):
        parents.sweep()
        assert (mount / "ours").is_dir()
    parents.sweep()
    assert not (mount / "ours").exists()


def test_one_that_was_there_before_is_not_ours_even_if_it_becomes_empty(mount: Path) -> None:
    (mount / "kubepods").mkdir()
    parents = GroupParents(mount.parent / "note")
    make(parents, mount / "kubepods").rmdir()
    parents.sweep()
    assert (mount / "kubepods").is_dir()


def test_on_a_full_disk_nothing_is_made_and_later_sweeps_go_on(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parents = GroupParents(mount.parent / "note")
    make(parents, mount / "ours").rmdir()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(KernelError, match="No space left"), parents.below([str(mount / "other")]):
            pytest.fail("nobody may make what nobody can note")
    assert parents.sweep()
    assert not (mount / "ours").exists()


def test_a_sweep_that_meets_a_pod_being_made_says_so(mount: Path) -> None:
    parents = GroupParents(mount.parent / "note")
    with parents.below([str(mount / "ours")]):
        assert not parents.sweep()
    assert parents.sweep()
