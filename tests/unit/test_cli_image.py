"""How ``cri-py image`` shows pulls and lists."""

from __future__ import annotations

import io
import json
import os
from types import SimpleNamespace
from typing import Self

import pytest

from cri_py import cli, cli_image
from cri_py.config import Config
from cri_py.errors import NotFound
from cri_py.images.progress import LayerProgress
from cri_py.model import Digest
from cri_py.rpc.images_client import Inspected, Listed, Step

IDS = [f"sha256:{digit * 64}" for digit in "abc"]
SIZE = 2_000_000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Client:
    """Stands for a daemon with two images, one of them without a tag."""

    def __init__(self, listen: str) -> None:
        assert listen == Config().listen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def pull(self, ref: str) -> list[Step]:
        layers = [
            (layer(IDS[0], SIZE, SIZE, present=True), layer(IDS[1], 0, 0)),
            (layer(IDS[0], SIZE, SIZE, present=True), layer(IDS[1], SIZE // 2, SIZE // 4)),
        ]
        return [*(Step(each, "") for each in layers), Step((), IDS[2])]

    def images(self) -> list[Listed]:
        named = Listed(IDS[0], ("b.test/app:1", "b.test/app:2"), (), SIZE, True)
        return [named, Listed(IDS[1], (), ("a.test/app@" + IDS[2],), 999, False), Listed(IDS[2], (), (), 5, False)]

    def inspect(self, ref: str) -> Inspected | None:
        return Inspected(self.images()[0], b'{"os":"linux"}', (IDS[1],)) if ref == "b.test/app:1" else None


def layer(digest: str, fetched: int, unpacked: int, *, present: bool = False) -> LayerProgress:
    return LayerProgress(Digest(digest), SIZE, fetched, unpacked, present)


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_image, "ImagesClient", Client)
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("COLUMNS", "80")


def run(verb: str, out: io.StringIO, **flags: object) -> str:
    assert getattr(cli_image, verb)(Config(), SimpleNamespace(**flags), out) == 0
    return out.getvalue()


def test_a_terminal_shows_a_bar_for_each_layer_and_draws_over_the_last() -> None:
    first, second, third = run("pull", Terminal(), ref="b.test/app:1").split("\x1b[2A")
    assert first.split("\n")[0].endswith("a" * 12 + " already here")
    assert first.split("\n")[1].endswith(f"{'b' * 12} [{' ' * 30}] 0 B of 2.0 MB")
    assert second.split("\n")[1].endswith(f"[{'=' * 7}{'-' * 8}{' ' * 15}] 1.0 MB of 2.0 MB")
    assert third.split("\n")[1].endswith(f"[{'=' * 30}] 2.0 MB unpacked")
    assert third.split("\n")[-2] == IDS[2]


def test_more_layers_than_the_terminal_has_lines_are_drawn_on_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(done: int) -> tuple[LayerProgress, ...]:
        digests = [f"sha256:{number:064}"[:-52] + "0" * 52 for number in range(1 << 20, (1 << 20) + 50)]
        return tuple(
            layer(digest, SIZE if at <= done else 0, SIZE if at < done else 0) for at, digest in enumerate(digests)
        )

    steps = [*(Step(many(done), "") for done in (0, 30, 50)), Step((), IDS[2])]
    monkeypatch.setattr(Client, "pull", lambda *_: steps)
    monkeypatch.setenv("LINES", "6")
    monkeypatch.setenv("COLUMNS", "40")
    screens = run("pull", Terminal(), ref="b.test/app:1").split("\x1b[5A")
    assert len(screens) == 4
    for screen in screens[:3]:
        lines = screen.removeprefix("\x1b[J").split("\n")[:-1]
        assert len(lines) == 5
        assert all(len(line.removeprefix("\r")) < 40 for line in lines)
    assert "and 46 more, 0 of them here" in screens[0]
    assert f"[{'-' * 25}" in screens[1].split("\n")[0], "what moves is shown"
    assert "and 46 more, 30 of them here" in screens[1]
    assert "and 46 more, 46 of them here" in screens[2]


def test_elsewhere_there_are_plain_lines_not_more_than_one_a_second() -> None:
    said = run("pull", io.StringIO(), ref="b.test/app:1")
    assert "\x1b" not in said
    assert said.splitlines()[-1] == IDS[2]
    assert said.splitlines()[:-1] == ["2.0 MB of 4.0 MB fetched, 1 of 2 layers unpacked"]


def test_the_list_has_a_line_for_each_name_and_one_for_an_image_without() -> None:
    rows = [line.split() for line in run("ls", io.StringIO(), json=False).splitlines()]
    assert rows[0] == ["IMAGE", "ID", "SIZE"]
    assert sorted(rows[1:]) == [
        ["<none>", "c" * 12, "5", "B"],
        [f"a.test/app@{IDS[2]}", "b" * 12, "999", "B"],
        ["b.test/app:1", "a" * 12, "2.0", "MB"],
        ["b.test/app:2", "a" * 12, "2.0", "MB"],
    ]


def test_the_list_as_json_has_every_field() -> None:
    first = json.loads(run("ls", io.StringIO(), json=True))[0]
    assert first == {
        "id": IDS[0], "tags": ["b.test/app:1", "b.test/app:2"], "digests": [], "size": SIZE, "pinned": True
    }  # fmt: skip


def test_inspect_shows_names_layers_and_config_or_the_way_out() -> None:
    found = json.loads(run("inspect", io.StringIO(), ref="b.test/app:1"))
    assert (found["id"], found["chainIDs"], found["config"]) == (IDS[0], [IDS[1]], {"os": "linux"})
    with pytest.raises(NotFound, match="cri-py image ls"):
        run("inspect", io.StringIO(), ref="no-such")


def test_an_interrupted_command_ends_as_a_shell_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "pull", interrupted)
    assert cli.run(["image", "pull", "--config", os.devnull, "b.test/app:1"], io.StringIO()) == 130
