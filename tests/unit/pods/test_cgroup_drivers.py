from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from cri_py.cgroups.v1 import V1
from cri_py.cgroups.v2 import V2
from cri_py.config import CgroupConfig
from cri_py.errors import FailedPrecondition, Unavailable
from cri_py.pods import cgroup_drivers
from cri_py.pods.places import Places
from cri_py.pods.systemd_bus import SystemdBus

ON_V2 = V2("/sys/fs/cgroup")


@pytest.fixture
def booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with systemd as init, which answers."""
    monkeypatch.setattr(cgroup_drivers, "BOOTED", str(tmp_path))
    monkeypatch.setattr(SystemdBus, "version", lambda self: "257")
    return tmp_path


def unreachable(self: SystemdBus) -> str:
    raise Unavailable("systemd could not ask its version")


def test_auto_is_systemd_where_it_is_init_and_answers(booted: Path) -> None:
    assert cgroup_drivers.choose("auto", ON_V2) == cgroup_drivers.choose("systemd", ON_V2) == "systemd"
    assert cgroup_drivers.choose("cgroupfs", ON_V2) == "cgroupfs"


def test_on_version_1_there_is_only_cgroupfs(booted: Path) -> None:
    assert cgroup_drivers.choose("auto", V1(())) == "cgroupfs"
    with pytest.raises(FailedPrecondition, match=r"cgroup v1.*unified_cgroup_hierarchy=1.*cgroups\.driver"):
        cgroup_drivers.choose("systemd", V1(()))


def test_with_another_init_there_is_only_cgroupfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroup_drivers, "BOOTED", f"{tmp_path}/none")
    assert cgroup_drivers.choose("auto", ON_V2) == "cgroupfs"
    with pytest.raises(FailedPrecondition, match=r"not this node's init.*cgroups\.driver"):
        cgroup_drivers.choose("systemd", ON_V2)


def test_systemd_that_does_not_answer_is_not_chosen(booted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemdBus, "version", unreachable)
    assert cgroup_drivers.choose("auto", ON_V2) == "cgroupfs"
    with pytest.raises(FailedPrecondition, match="could not ask its version"):
        cgroup_drivers.choose("systemd", ON_V2)


def test_a_driver_that_is_not_what_the_node_would_have_is_logged(
    booted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the kubelet, which was told systemd before, would be refused without a word here."""
    monkeypatch.setattr(SystemdBus, "version", unreachable)
    with structlog.testing.capture_logs() as logged:
        cgroup_drivers.groups(CgroupConfig(driver="auto"), ON_V2, Places(str(tmp_path), str(tmp_path))).close()
    assert "does not answer" in logged[0]["event"]


@pytest.mark.parametrize("driver", ["systemd", "cgroupfs"])
def test_what_makes_groups_is_what_was_chosen(booted: Path, driver: str, tmp_path: Path) -> None:
    places = Places(str(tmp_path), str(tmp_path))
    groups = cgroup_drivers.groups(CgroupConfig(driver=driver), ON_V2, places)
    assert groups.driver == driver
    groups.close()
