"""What is read from ginkgo's report, and how it is told."""

from __future__ import annotations

from typing import Any

from critest import report


def spec(group: str, name: str, state: str, message: str = "", kind: str = "It") -> dict[str, Any]:
    return {
        "ContainerHierarchyTexts": [f"[k8s.io] {group}", "runtime should support"] if group else None,
        "LeafNodeType": kind,
        "LeafNodeText": name,
        "State": state,
        "Failure": {"Message": message} if message else None,
        "RunTime": 1_500_000_000,
    }


def read(*specs: dict[str, Any], left_out: dict[str, str] | None = None) -> list[report.Result]:
    return report.read([{"SpecReports": list(specs)}], left_out or {})


def test_specs_outside_of_the_focus_are_not_counted() -> None:
    assert read(spec("Container", "removal", "skipped")) == []


def test_a_spec_that_skips_itself_counts_with_its_reason() -> None:
    (result,) = read(spec("AppArmor", "profile", "skipped", "AppArmor is disabled on this host"))
    assert (result.group, result.outcome, result.reason) == ("AppArmor", "skipped", "AppArmor is disabled on this host")


def test_a_spec_that_was_left_out_counts_as_skipped() -> None:
    name = "[k8s.io] Image runtime should support by digest"
    (result,) = read(spec("Image", "by digest", "skipped"), left_out={name: "no stand-in"})
    assert (result.outcome, result.reason) == ("skipped", "no stand-in")


def test_every_way_to_fail_is_a_failure() -> None:
    states = ("failed", "panicked", "timedout", "aborted", "interrupted")
    results = read(*(spec("Container", state, state, "why") for state in states))
    assert [result.outcome for result in results] == ["failed"] * len(states)


def test_a_failure_of_the_set_up_is_not_lost() -> None:
    (result,) = read(spec("", "", "failed", "no runtime", kind="SynchronizedBeforeSuite"))
    assert (result.group, result.outcome, result.reason) == ("SynchronizedBeforeSuite", "failed", "no runtime")


def test_a_set_up_that_passed_is_no_spec() -> None:
    assert read(spec("", "", "passed", kind="BeforeSuite")) == []


def test_the_report_tells_groups_failures_and_skip_reasons_and_ends_with_the_numbers() -> None:
    results = read(
        spec("Container", "start", "passed"),
        spec("Container", "stop", "failed", "timed out\nafter 5 s"),
        spec("AppArmor", "one", "skipped", "disabled"),
        spec("AppArmor", "two", "skipped", "disabled"),
    )
    assert report.render(results).split("\n") == [
        "AppArmor: 0 passed, 0 failed, 2 skipped (3.0 s)",
        "  skipped 2: disabled",
        "Container: 1 passed, 1 failed, 0 skipped (3.0 s)",
        "  failed: runtime should support stop",
        "    timed out",
        "    after 5 s",
        "1 passed, 1 failed, 2 skipped",
    ]
