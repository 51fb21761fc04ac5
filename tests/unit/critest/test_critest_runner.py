"""What critest/run gives to critest and makes of what comes back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from critest import runner

# Keeps its arguments and writes the report that lies beside it where it is asked to.
_CRITEST = """\
#!/bin/sh
here=$(dirname "$0")
for word; do
    printf '%s\\n' "$word" >> "$here/arguments"
    case $word in --ginkgo.json-report=*) report=${word#*=};; esac
done
[ ! -e "$here/report" ] || cp "$here/report" "$report"
"""


@pytest.fixture
def critest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a program that stands in for critest."""
    program = tmp_path / "critest"
    program.write_text(_CRITEST)
    program.chmod(0o755)
    monkeypatch.setenv("CRITEST", str(program))
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def will_report(critest: Path, *states: str) -> None:
    specs = [
        {
            "ContainerHierarchyTexts": ["[k8s.io] Container"],
            "LeafNodeType": "It",
            "LeafNodeText": f"spec {number}",
            "State": state,
            "Failure": {"Message": "why"} if state == "failed" else None,
        }
        for number, state in enumerate(states)
    ]
    (critest / "report").write_text(json.dumps([{"SpecReports": specs}]))


def test_without_critest_it_says_where_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CRITEST", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runner.main([]) == 2
    assert "https://github.com/kubernetes-sigs/cri-tools/releases" in capsys.readouterr().err


def test_the_endpoint_the_expressions_and_what_follows_two_dashes_reach_critest(critest: Path) -> None:
    will_report(critest, "passed")
    runner.main(["--endpoint", "unix:///x.sock", "--focus", "a|b", "--skip", "c d", "--", "--ginkgo.seed", "1"])
    given = (critest / "arguments").read_text().splitlines()
    assert {
        "--runtime-endpoint=unix:///x.sock",
        "--image-endpoint=unix:///x.sock",
        "--ginkgo.focus=a|b",
        "--ginkgo.skip=c d",
    } <= set(given)
    assert given[-2:] == ["--ginkgo.seed", "1"]


@pytest.mark.parametrize(
    ("states", "status", "last_line"),
    [
        (["passed", "skipped"], 0, "1 passed, 0 failed, 0 skipped"),
        (["passed", "failed"], 1, "1 passed, 1 failed, 0 skipped"),
        (["skipped"], 2, "0 passed, 0 failed, 0 skipped"),
    ],
    ids=["all pass", "one fails", "none is chosen"],
)
def test_the_last_line_has_the_numbers_and_the_exit_status_tells_a_failure(
    critest: Path, capsys: pytest.CaptureFixture[str], states: list[str], status: int, last_line: str
) -> None:
    will_report(critest, *states)
    assert runner.main(["--endpoint", "unix:///x.sock"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == last_line


def test_a_critest_that_leaves_no_report_is_not_a_success(critest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["--endpoint", "unix:///x.sock"]) == 2
    assert f"{critest}/critest ended with status 0 and left no report" in capsys.readouterr().err
