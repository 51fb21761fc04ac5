"""``cri-py explain``: whom it asks, and what it does where the container is gone meanwhile."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self

import pytest

from cri_py import cli_explain
from cri_py.config import Config
from cri_py.errors import NotFound
from cri_py.explain import reading
from cri_py.explain.facts import Asked, Member, Subject

RUNNING = Subject(
    *("c" * 64, "app", "i:1", "sha256:1", "running", 1, 2, 0, 0, "", "", 4711, "/g", "/b", (0, 0, ()), {}),
    *("p" * 64, 900, 800, Asked({}, {}, {})),
)
ENDED = replace(RUNNING, state="exited", pid=0, exit_code=3, reason="Error", finished_at=3)


class Client:
    """Stands for a daemon that tells of one container, which may end after the first look."""

    def __init__(self, *subjects: Subject) -> None:
        self._subjects = list(subjects)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def subject(self, container_id: str) -> Subject:
        if not RUNNING.id.startswith(container_id):
            raise NotFound(f"there is no container {container_id!r}")
        return self._subjects.pop(0)

    def members(self, sandbox_id: str) -> list[Member]:
        assert sandbox_id == RUNNING.sandbox_id
        return []


def run(monkeypatch: pytest.MonkeyPatch, client: Client, container: str = "ccc", *, as_json: bool = True) -> str:
    out = io.StringIO()
    monkeypatch.setattr(cli_explain, "RuntimeClient", lambda _listen: client)
    assert cli_explain.explain(Config(), SimpleNamespace(container=container, json=as_json), out) == 0  # type: ignore[arg-type]
    return out.getvalue()


def test_of_one_that_ends_while_it_is_looked_at_the_record_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise reading.Gone

    monkeypatch.setattr(reading, "look", gone)
    told = json.loads(run(monkeypatch, Client(RUNNING, ENDED)))
    assert (told["source"], told["container"]["exit_code"]) == ("record", 3)
    # its record may be late
    told = json.loads(run(monkeypatch, Client(RUNNING, RUNNING)))
    assert (told["source"], told["why"].partition(";")[0]) == ("record", "it has just ended")


def test_of_one_that_ended_the_kernel_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "look", None)
    assert "exit code 3, Error" in run(monkeypatch, Client(ENDED), as_json=False)


def test_one_that_is_not_there_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match=r"no container 'x' \(crictl ps -a"):
        run(monkeypatch, Client(), "x")
