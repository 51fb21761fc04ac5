"""The explanation as a page."""

from __future__ import annotations

import re
from dataclasses import replace

from cri_py.explain import account, text
from cri_py.explain.facts import Explanation, Seen, Subject


def page(explanation: Explanation, width: int = 100, *, colours: bool = False) -> str:
    return text.page(explanation, width=width, colours=colours)


def test_a_fact_stands_beside_its_name_with_its_field_below(subject: Subject, seen: Seen) -> None:
    lines = page(account.of_kernel(subject, seen)).splitlines()
    assert lines[0] == f"app ({'c' * 12}) in pod shop/web: running as process 4711 since 2023-11-14 22:13:21 UTC"
    at = lines.index("  uid      1234")
    assert lines[at + 2] == "           ← linux.security_context.run_as_user: 1234"
    assert "  net     the pod's, shared with side" in lines


def test_neighbours_that_say_the_same_are_told_together(subject: Subject, seen: Seen) -> None:
    told = page(account.without_process(subject))
    assert "  net uts  the pod's\n" in told


def test_colours_change_nothing_but_the_colours(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(subject, seen)
    coloured = page(told, colours=True)
    assert coloured.startswith("\x1b[1m")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == page(told)


def test_lines_fit_a_narrow_terminal(subject: Subject, seen: Seen) -> None:
    told = page(account.of_kernel(subject, seen), 60)
    long = [line for line in told.splitlines()[2:] if len(line) > 60 and " " in line.strip()[2:]]
    assert long == []


def test_what_differs_is_marked(subject: Subject, seen: Seen) -> None:
    told = page(account.of_kernel(subject, replace(seen, oom_score_adj=1)))
    assert "! asked for is 500" in told


def test_what_a_container_chose_does_not_steer_the_terminal(subject: Subject, seen: Seen) -> None:
    """A mount's path may hold any byte but NUL; a message repeats the program's name."""
    evil = seen.mounts[-1]._replace(path="/x\x1b[2J\udcff\n")
    told = page(account.of_kernel(subject, replace(seen, mounts=[evil])))
    assert "/x\\x1b[2J\\udcff\\n" in told
    ended = replace(subject, state="exited", reason="StartError", message='exec: "\x1b]0;x\x07"', pid=0)
    assert "\x1b" not in page(account.without_process(ended))
