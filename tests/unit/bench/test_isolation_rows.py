"""The table of differences: what gets a row, and what of it counts as explained."""

from __future__ import annotations

from tests.bench.isolation import rows


def test_only_differences_have_a_row_and_equal_ones_of_all_pods_have_one() -> None:
    ours = {pod: {"namespace pid": "its own", "mount /": "volatile"} for pod in ("default", "hardened")}
    theirs = {pod: {"namespace pid": "its own", "mount /": "plain"} for pod in ("default", "hardened")}
    ((pods, name, mine, other, why),) = rows(ours, theirs)
    assert (pods, name, mine, other) == ("all", "mount /", "volatile", "plain")
    assert why


def test_what_one_side_lacks_is_a_difference_and_without_a_reason_it_is_not_explained() -> None:
    found = list(rows({"default": {"a": "1"}}, {"default": {"b": "2"}}))
    assert found == [("default", "a", "1", "-", ""), ("default", "b", "-", "2", "")]


def test_of_a_pod_that_is_refused_there_is_nothing_else_to_compare() -> None:
    ours = {"user namespace": {"refused": "not supported"}, "default": {"a": "1"}}
    theirs = {"user namespace": {"a": "1", "b": "2"}, "default": {"a": "1"}}
    assert [row[:3] for row in rows(ours, theirs)] == [("user namespace", "refused", "not supported")]


def test_a_reason_for_some_pods_explains_no_others() -> None:
    for pod, explained in (("default", True), ("privileged", False)):
        ((*_, why),) = rows({pod: {"mount /sys/firmware": "a"}}, {pod: {"mount /sys/firmware": "b"}})
        assert bool(why) is explained
