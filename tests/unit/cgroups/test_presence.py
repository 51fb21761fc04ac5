"""CPUs and memory nodes that are asked for, beside those that the node has."""

from __future__ import annotations

import pytest

from cri_py.cgroups import presence
from cri_py.errors import InvalidArgument


@pytest.mark.parametrize(
    ("online", "asked", "there"),
    [
        ("0-3", "0-3", True),
        ("0-3", "1,3", True),
        ("0", "0", True),
        ("0-1,3", "3,0", True),
        ("0-3", "4", False),
        ("0-3", "2-4", False),
        ("0-1,3", "0-3", False),
        ("0-3", "3-1", False),
        ("0-3", "0-4000000000", False),
    ],
)
def test_every_range_must_be_there(online: str, asked: str, there: bool) -> None:
    assert presence.covers(online, asked) is there


def test_an_absent_cpu_is_refused_with_its_field_and_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence.files, "read_if_there", lambda _: b"0-1\n")
    with pytest.raises(InvalidArgument, match=r"cpuset_cpus is '0-2', but this node has 0-1"):
        presence.check({"cpu": {"cpus": "0-2"}})
    presence.check({"cpu": {"cpus": "1"}})


def test_without_numa_there_is_node_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence.files, "read_if_there", lambda _: b"")
    presence.check({"cpu": {"mems": "0"}})
    with pytest.raises(InvalidArgument, match="cpuset_mems"):
        presence.check({"cpu": {"mems": "1"}})


def test_without_a_cpuset_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(presence.files, "read_if_there")
    presence.check({})
    presence.check({"cpu": {"shares": 2}})
