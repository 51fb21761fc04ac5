from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cri_py.cdi.edits import Edits
from cri_py.cdi.registry import Registry
from cri_py.errors import FailedPrecondition, InvalidArgument, NotFound


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("etc", "run"):
        (tmp_path / name).mkdir()
    return tmp_path / "etc", tmp_path / "run"


@pytest.fixture
def registry(directories: tuple[Path, Path]) -> Registry:
    return Registry([str(directory) for directory in directories])


def write(file: Path, *devices: str, word: str = "", kind: str = "v.com/gpu", common: tuple[str, ...] = ()) -> None:
    described = [{"name": name, "containerEdits": {"env": [f"D{name}={word or file.name}"]}} for name in devices]
    whole = {"cdiVersion": "0.6.0", "kind": kind, "devices": described, "containerEdits": {"env": list(common)}}
    file.write_text(json.dumps(whole))


def test_devices_are_found_by_name_and_what_a_file_has_in_common_comes_once(
    registry: Registry, directories: tuple[Path, Path]
) -> None:
    write(directories[0] / "a.json", "0", "1", common=("COMMON=1",))
    write(directories[0] / "b.json", "0", kind="v.com/nic")
    asked = registry.edits(["v.com/gpu=1", "v.com/nic=0", "v.com/gpu=0", "v.com/gpu=1"])
    assert asked == Edits(env=("COMMON=1", "D1=a.json", "D0=b.json", "D0=a.json"))


def test_what_a_later_directory_says_goes_before(registry: Registry, directories: tuple[Path, Path]) -> None:
    write(directories[0] / "a.json", "0", "1", word="etc")
    write(directories[1] / "a.json", "0", word="run")
    assert registry.edits(["v.com/gpu=0", "v.com/gpu=1"]).env == ("D0=run", "D1=etc")


def test_two_files_of_one_directory_may_not_have_the_same_device(
    registry: Registry, directories: tuple[Path, Path]
) -> None:
    write(directories[0] / "a.json", "0")
    write(directories[0] / "b.json", "0", "1")
    with pytest.raises(FailedPrecondition, match=r"a\.json.*b\.json"):
        registry.edits(["v.com/gpu=0"])
    assert registry.edits(["v.com/gpu=1"]).env == ("D1=b.json",)


def test_files_that_come_change_and_go_are_noticed(registry: Registry, directories: tuple[Path, Path]) -> None:
    file = directories[1] / "a.json"
    with pytest.raises(NotFound, match=r"v\.com/gpu=0.*"):
        registry.edits(["v.com/gpu=0"])
    write(file, "0", word="one")
    assert registry.edits(["v.com/gpu=0"]).env == ("D0=one",)
    write(file, "0", word="two")
    os.utime(file, ns=(1, 1))
    assert registry.edits(["v.com/gpu=0"]).env == ("D0=two",)
    file.unlink()
    with pytest.raises(NotFound):
        registry.edits(["v.com/gpu=0"])


def test_a_file_that_has_not_changed_is_not_read_again(
    registry: Registry, directories: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(directories[0] / "a.json", "0")
    first = registry.edits(["v.com/gpu=0"])
    monkeypatch.setattr("cri_py.cdi.registry.parse", None)
    assert registry.edits(["v.com/gpu=0"]) == first


def test_a_bad_file_is_named_and_keeps_nobody_from_the_others(
    registry: Registry, directories: tuple[Path, Path]
) -> None:
    write(directories[0] / "good.json", "0")
    (directories[0] / "bad.json").write_text("{")
    (directories[0] / "worse.yaml").mkdir()
    os.mkfifo(directories[0] / "fifo.json")
    (directories[0] / "gone.json").symlink_to("/nowhere")
    (directories[0] / "notes.txt").write_text("no description")
    assert registry.edits(["v.com/gpu=0"]).env == ("D0=good.json",)
    with pytest.raises(NotFound) as caught:
        registry.edits(["v.com/gpu=7"])
    for name in ("bad.json", "worse.yaml", "fifo.json", "gone.json"):
        assert name in caught.value.message
    assert "notes.txt" not in caught.value.message


def test_a_name_that_is_none_is_refused(registry: Registry) -> None:
    with pytest.raises(InvalidArgument, match="gpu0"):
        registry.edits(["gpu0"])
