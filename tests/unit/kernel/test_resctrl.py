"""Classes of Intel's resource control, on a directory like the kernel's; there the kernel makes a class's files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.kernel import resctrl

ID = "c0ffee"


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    real = os.mkdir

    def mkdir(path: str, mode: int = 0o777) -> None:
        real(path, mode)
        (Path(path) / "tasks").touch()
        if "mon_groups" not in path:
            (Path(path) / "schemata").write_text("")
            real(f"{path}/mon_groups")

    mkdir(str(tmp_path / "resctrl"))
    monkeypatch.setattr(os, "mkdir", mkdir)
    return tmp_path / "resctrl"


def enter(mount: Path, **rdt: Any) -> Path:
    resctrl.enter(rdt, ID, str(mount))
    return Path(resctrl.directory_of(rdt, ID, str(mount)))


def test_without_the_file_system_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is not there"):
        enter(tmp_path / "none", closID="a")


def test_a_class_of_its_own_is_made_filled_and_removed(mount: Path) -> None:
    made = enter(mount, schemata=["MB:0=50"])
    assert made == mount / ID
    assert (made / "tasks").read_text() == "0\n"
    assert (made / "schemata").read_text() == "MB:0=50\n"
    for name in ("tasks", "schemata"):  # which the kernel takes along
        (made / name).unlink()
    (made / "mon_groups").rmdir()
    resctrl.leave({"schemata": ["MB:0=50"]}, ID, str(mount))
    assert not made.exists()
    resctrl.leave({}, ID, str(mount))


def test_a_named_class_is_made_with_its_rules_or_has_to_be_there(mount: Path) -> None:
    made = enter(mount, closID="gold", l3CacheSchema="L3:0=f")
    assert (made / "schemata").read_text() == "L3:0=f\n"
    assert enter(mount, closID="gold", l3CacheSchema="L3:0=f") == made
    assert enter(mount, closID="gold") == made
    with pytest.raises(FailedPrecondition, match="has not 'L3:0=1'"):
        enter(mount, closID="gold", l3CacheSchema="L3:0=1")
    with pytest.raises(FailedPrecondition, match="is not there"):
        enter(mount, closID="silver")
    resctrl.leave({"closID": "gold"}, ID, str(mount))
    assert made.exists()


def test_the_default_class_is_the_root(mount: Path) -> None:
    assert enter(mount, closID="/") == mount
    assert (mount / "tasks").read_text() == "0\n"


def test_a_group_that_is_counted_takes_the_process_too(mount: Path) -> None:
    made = enter(mount, closID="/", enableMonitoring=True)
    assert (made / "mon_groups" / ID / "tasks").read_text() == "0\n"
    assert resctrl.task_files({"closID": "/", "enableMonitoring": True}, ID, "/m") == [
        "/m/tasks",
        f"/m/mon_groups/{ID}/tasks",
    ]


def test_what_the_kernel_refuses_is_told_with_its_file(mount: Path) -> None:
    os.mkdir(f"{mount}/gold")
    (mount / "gold/tasks").unlink()
    with pytest.raises(FailedPrecondition, match="tasks: No such file"):
        enter(mount, closID="gold")
