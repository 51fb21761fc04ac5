"""Which cgroups a pod has, and their removal while other pods' calls remove theirs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cri_py.cgroups.hierarchy import Cgroups
from cri_py.cgroups.v1 import V1
from cri_py.cgroups.v2 import V2
from cri_py.errors import CriError, Internal, InvalidArgument, KernelError
from cri_py.pods.group_parents import GroupParents
from cri_py.pods.groups import Groups, _removed


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


@pytest.mark.parametrize(
    ("version", "holder"),
    [(V1(()), "/kubepods/pod1"), (V2("/sys/fs/cgroup"), "/kubepods/pod1/holder-s1")],
    ids=["v1", "v2"],
)
def test_the_holder_sits_where_its_version_lets_it(version: Cgroups, holder: str, tmp_path: Path) -> None:
    groups = Groups(version, "/cri", GroupParents(tmp_path / "parents"))
    assert groups.of_holder("/kubepods/pod1", "s1") == holder
    groups.close()


@pytest.mark.parametrize(
    ("number", "syscall", "raised"),
    [
        (errno.EINVAL, "write", InvalidArgument),
        (errno.ERANGE, "write", InvalidArgument),
        (errno.EIO, "write", Internal),
        (errno.EINVAL, "mkdir", Internal),
    ],
)
async def test_a_limit_that_the_kernel_refuses_is_the_callers_mistake(
    monkeypatch: pytest.MonkeyPatch, number: int, syscall: str, raised: type[CriError], tmp_path: Path
) -> None:
    """A CPU that the node has not, for one."""
    version = V1(())

    def refuse(path: str, resources: object) -> None:
        raise KernelError(number, os.strerror(number), syscall, "99 to cpuset.cpus")

    monkeypatch.setattr(version, "create", refuse)
    groups = Groups(version, "/cri", GroupParents(tmp_path / "parents"))
    with pytest.raises(raised, match=r"99 to cpuset\.cpus"):
        await groups.make("/kubepods/pod1/c", {})
    groups.close()
