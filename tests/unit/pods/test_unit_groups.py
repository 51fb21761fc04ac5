"""Slices and scopes of a simulated systemd, in a cgroup filesystem of plain files."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cri_py.cgroups import Made, Write
from cri_py.cgroups.v2 import V2
from cri_py.errors import CriError, Internal, InvalidArgument, KernelError, Unavailable
from cri_py.pods.systemd_bus import SystemdBus
from cri_py.pods.unit_groups import UnitGroups, _waiting_process
from tests.simulators.systemd import CLOSE, HANG, SystemdSimulator

SANDBOX, CONTAINER = "5a" * 32, "c0" * 32
POD = "/kubepods.slice/kubepods-pod1.slice"
SCOPE = f"cri-py-{CONTAINER}.scope"
GROUP = f"{POD}/{SCOPE}/container"
HOLDER = f"cri-py-holder-{SANDBOX}.scope"


class PlainFiles(V2):
    """A hierarchy without a kernel behind it: groups are directories, and a limit is a file once it is written."""

    refusing = ""

    def create(self, path: str, resources: Mapping[str, Any], pod: bool = False) -> Made:
        planned = self.plan(path, resources)
        os.makedirs(self.mount + path, exist_ok=True)
        for write in planned:
            if write.file.endswith(f"/{self.refusing}"):
                shutil.rmtree(self.mount + path)
                raise KernelError(errno.EINVAL, "Invalid argument", "write", write.file)
            Path(write.file).write_text(write.text)
        return Made(path, ())

    def enter_plan(self, path: str) -> Sequence[str]:
        procs = Path(f"{self.mount}{path}/cgroup.procs")
        if procs.parent.is_dir():
            procs.touch()
        return (str(procs),)

    def kill(self, path: str, deadline_s: float) -> None:
        return

    def remove(self, path: str, deadline_s: float = 2.0) -> None:
        shutil.rmtree(self.mount + path, ignore_errors=True)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[SystemdSimulator]:
    with SystemdSimulator(tmp_path) as simulator:
        yield simulator


@pytest.fixture
def groups(systemd: SystemdSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UnitGroups]:
    monkeypatch.setattr("cri_py.pods.systemd_bus.PRIVATE", systemd.address)
    bus = SystemdBus((systemd.address,), timeout_s=10)
    made = UnitGroups(PlainFiles(str(systemd.groups)), "/cri", tmp_path / "parents", bus, shutil.which("sleep") or "")
    yield made
    for scope in list(made._waiting):
        made._release(scope)
    made.close()


def impatient(groups: UnitGroups, systemd: SystemdSimulator) -> None:
    groups._bus = SystemdBus((systemd.address,), timeout_s=0.2)


def said(systemd: SystemdSimulator, file: str) -> str:
    """A file below the pod's group; "" if it is not there."""
    path = Path(f"{systemd.groups}{POD}/{file}")
    return path.read_text() if path.exists() else ""


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_a_pod_that_names_no_parent_gets_a_slice_of_ours(groups: UnitGroups) -> None:
    assert groups.of_pod("", "1") == "/cri.slice/cri-pod1.slice"
    assert groups.of_pod("kubepods-pod1.slice", "1") == POD


@pytest.mark.parametrize("parent", ["/kubepods/pod1", "kubepods", "-.slice"])
def test_a_parent_of_the_other_drivers_form_is_refused(groups: UnitGroups, parent: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"{parent}.*such as kubepods-burstable-podUID\.slice"):
        groups.check_parent(parent)
    groups.check_parent("")


def test_groups_of_the_other_driver_keep_their_names(groups: UnitGroups) -> None:
    """Pods from before this driver was chosen."""
    assert groups.of_holder("/kubepods/pod1", "s") == "/kubepods/pod1/holder-s"
    assert groups.of_container("/kubepods/pod1", CONTAINER) == f"/kubepods/pod1/{CONTAINER}"
    assert groups.container_of(f"/kubepods/pod1/{CONTAINER}") == groups.container_of(f"{POD}/{SCOPE}") == CONTAINER
    assert groups.container_of(f"{POD}/{HOLDER}") == ""


async def test_a_life_leaves_no_unit_group_or_process(systemd: SystemdSimulator, groups: UnitGroups) -> None:
    before = children()
    made = await groups.make_pod(POD, SANDBOX)
    assert made == (f"{systemd.groups}{POD}",)
    await groups.held(POD, SANDBOX)
    assert set(systemd.units) == {"kubepods-pod1.slice", HOLDER}
    await groups.make(GROUP, {"memory": {"limit": 1 << 20}, "pids": {"limit": 5}})
    unit = systemd.units[SCOPE]
    assert (unit["Slice"], unit["MemoryMax"], unit["TasksMax"]) == ("kubepods-pod1.slice", 1 << 20, 6)
    assert said(systemd, f"{SCOPE}/container/pids.max") == "5"
    assert unit["PIDs"] == [int(said(systemd, f"{SCOPE}/keep/cgroup.procs"))]
    await groups.remove(GROUP)
    assert SCOPE not in systemd.units
    assert await groups.remove_pod(POD, SANDBOX, made)
    assert systemd.units == {}
    assert children() == before


def test_a_process_that_hears_nothing_of_a_scope_ends_by_itself() -> None:
    """As when the daemon dies between the two."""
    with _waiting_process(shutil.which("sleep") or "") as (pid, gate):
        gate.close()
        assert os.waitpid(pid, 0)[1] != 0


async def test_a_slice_of_the_kubelets_stays(systemd: SystemdSimulator, groups: UnitGroups) -> None:
    (systemd.groups / POD[1:]).mkdir(parents=True)
    systemd.units["kubepods-pod1.slice"] = {}
    assert await groups.make_pod(POD, SANDBOX) == ()
    assert await groups.remove_pod(POD, SANDBOX, ())
    assert set(systemd.units) == {"kubepods-pod1.slice"}


async def test_a_pods_slice_stays_while_a_container_is_in_it(systemd: SystemdSimulator, groups: UnitGroups) -> None:
    made = await groups.make_pod(POD, SANDBOX)
    await groups.make(GROUP, {})
    assert not await groups.remove_pod(POD, SANDBOX, made)
    await groups.remove(GROUP)
    assert await groups.remove_pod(POD, SANDBOX, ())
    assert systemd.units == {}


async def test_slices_above_pods_that_are_ours_go_when_they_are_empty(
    systemd: SystemdSimulator, groups: UnitGroups
) -> None:
    made = await groups.make_pod(POD, SANDBOX)
    systemd.units["kubepods.slice"] = {}  # started by its child, as systemd does
    await groups.remove_pod(POD, SANDBOX, made)
    groups._remove_parents()
    assert systemd.units == {}


@pytest.mark.parametrize("fault", [HANG, CLOSE, "org.freedesktop.DBus.Error.AccessDenied"])
async def test_a_scope_that_systemd_does_not_start_leaves_nothing_and_can_be_tried_again(
    systemd: SystemdSimulator, groups: UnitGroups, fault: str
) -> None:
    await groups.make_pod(POD, SANDBOX)
    before = children()
    systemd.faults["StartTransientUnit"] = fault
    patient = groups._bus
    if fault == HANG:
        impatient(groups, systemd)
    with pytest.raises(CriError) as caught:
        await groups.make(GROUP, {})
    assert isinstance(caught.value, Unavailable if fault in {HANG, CLOSE} else Internal)
    assert children() == before
    assert said(systemd, f"{SCOPE}/keep/cgroup.procs") == ""
    systemd.faults.clear()
    groups._bus = patient
    await groups.make(GROUP, {})
    await groups.remove(GROUP)
    await groups.remove_pod(POD, SANDBOX, ())


async def test_a_limit_that_the_kernel_refuses_ends_the_scope(systemd: SystemdSimulator, groups: UnitGroups) -> None:
    await groups.make_pod(POD, SANDBOX)
    before = children()
    PlainFiles.refusing = "memory.max"
    try:
        with pytest.raises(InvalidArgument, match=r"memory\.max"):
            await groups.make(GROUP, {"memory": {"limit": 1}})
    finally:
        PlainFiles.refusing = ""
    assert SCOPE not in systemd.units
    assert children() == before


async def test_a_unit_that_systemd_makes_elsewhere_is_refused(
    systemd: SystemdSimulator, groups: UnitGroups, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a container with cgroups of its own."""
    monkeypatch.setattr(systemd, "groups", tmp_path / "elsewhere")
    with pytest.raises(Internal, match=r"kubepods-pod1\.slice, but not at"):
        await groups.make_pod(POD, SANDBOX)


async def test_an_update_is_told_to_systemd_and_taken_back(
    systemd: SystemdSimulator, groups: UnitGroups, scoped: Path
) -> None:
    undo = await groups.change(GROUP, {"memory": {"limit": 1 << 21}, "pids": {"limit": 9}})
    assert (systemd.units[SCOPE]["MemoryMax"], systemd.units[SCOPE]["TasksMax"]) == (1 << 21, 10)
    assert (scoped / "memory.max").read_text() == str(1 << 21)
    await groups.take_back(undo)
    assert (systemd.units[SCOPE]["MemoryMax"], systemd.units[SCOPE]["TasksMax"]) == (1 << 20, 6)
    assert (scoped / "memory.max").read_text() == str(1 << 20)


@pytest.mark.parametrize("fault", [HANG, CLOSE, "org.freedesktop.systemd1.NoSuchUnit"])
async def test_an_update_that_systemd_does_not_take_changes_nothing(
    systemd: SystemdSimulator, groups: UnitGroups, scoped: Path, fault: str
) -> None:
    systemd.faults["SetUnitProperties"] = fault
    if fault == HANG:
        impatient(groups, systemd)
    with pytest.raises(CriError, match="systemd"):
        await groups.change(GROUP, {"memory": {"limit": 1 << 21}})
    assert systemd.units[SCOPE]["MemoryMax"] == 1 << 20
    assert (scoped / "memory.max").read_text() == str(1 << 20)


@pytest.fixture
async def scoped(systemd: SystemdSimulator, groups: UnitGroups) -> Path:
    """The container's own group; its scope has files that say what systemd was told."""
    asked = {"memory": {"limit": 1 << 20}, "pids": {"limit": 5}}
    await groups.make_pod(POD, SANDBOX)
    await groups.make(GROUP, asked)
    own = Path(f"{systemd.groups}{GROUP}")
    (own / "memory.current").write_text("0")
    (own.parent / "memory.max").write_text(str(1 << 20))
    (own.parent / "pids.max").write_text("6")
    return own


async def test_an_end_without_systemd_is_unavailable_and_can_be_tried_again(
    systemd: SystemdSimulator, groups: UnitGroups, scoped: Path
) -> None:
    systemd.faults["StopUnit"] = HANG
    patient = groups._bus
    impatient(groups, systemd)
    with pytest.raises(Unavailable):
        await groups.remove(GROUP)
    systemd.faults.clear()
    groups._bus = patient
    await groups.remove(GROUP)
    assert SCOPE not in systemd.units


def test_writes_of_a_scope_are_told_from_its_containers(systemd: SystemdSimulator, groups: UnitGroups) -> None:
    """Of a unit that is gone nothing can be taken back, and that is told."""
    with pytest.raises(Internal, match="NoSuchUnit"):
        groups._take_back((Write(f"{systemd.groups}{POD}/{SCOPE}/memory.max", "5"),))
