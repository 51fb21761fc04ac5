"""What systemd may do to a caller: refuse, hang, go away, be somewhere else."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cri_py.cgroups.systemd import Property
from cri_py.errors import Internal, InvalidArgument, Unavailable
from cri_py.pods.systemd_bus import SystemdBus
from tests.simulators.systemd import CLOSE, HANG, SystemdSimulator

LIMIT = Property("MemoryMax", "t", 1 << 20)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[SystemdSimulator]:
    with SystemdSimulator(tmp_path) as simulator:
        yield simulator


@pytest.fixture
def bus(systemd: SystemdSimulator, monkeypatch: pytest.MonkeyPatch) -> SystemdBus:
    monkeypatch.setattr("cri_py.pods.systemd_bus.PRIVATE", systemd.address)
    return SystemdBus((systemd.address,), timeout_s=10)


def test_a_scope_is_delegated_has_its_limits_and_goes_when_it_is_empty(
    systemd: SystemdSimulator, bus: SystemdBus
) -> None:
    bus.start_scope("x.scope", "a-b.slice", 7, "words", [LIMIT])
    assert systemd.units["x.scope"] == {
        "Description": "words",
        "Slice": "a-b.slice",
        "PIDs": [7],
        "Delegate": True,
        "DefaultDependencies": False,
        "CollectMode": "inactive-or-failed",
        "MemoryMax": 1 << 20,
    }
    bus.change("x.scope", [Property("MemoryMax", "t", 5)])
    assert systemd.units["x.scope"]["MemoryMax"] == 5
    bus.stop("x.scope")
    assert systemd.units == {}


def test_a_slice_that_is_known_is_started_as_it_is(systemd: SystemdSimulator, bus: SystemdBus) -> None:
    systemd.units["a.slice"] = {"MemoryMax": 5}
    bus.start_slice("a.slice", "words")
    assert systemd.calls == ["StartTransientUnit", "StartUnit"]
    assert systemd.units["a.slice"] == {"MemoryMax": 5}


def test_stopping_what_is_not_there_succeeds(bus: SystemdBus) -> None:
    bus.stop("x.scope")


def test_changing_what_is_not_there_is_told_by_its_name(bus: SystemdBus) -> None:
    with pytest.raises(Internal, match="SetUnitProperties: NoSuchUnit"):
        bus.change("x.scope", [LIMIT])


def test_a_value_that_systemd_does_not_take_is_the_callers_mistake(systemd: SystemdSimulator, bus: SystemdBus) -> None:
    systemd.faults["SetUnitProperties"] = "org.freedesktop.DBus.Error.InvalidArgs"
    with pytest.raises(InvalidArgument, match="it was told to"):
        bus.change("x.scope", [LIMIT])


def test_a_job_that_comes_to_nothing_is_told_with_its_result(systemd: SystemdSimulator, bus: SystemdBus) -> None:
    systemd.faults["job"] = "failed"
    with pytest.raises(Internal, match=r"x\.scope ended as failed"):
        bus.start_scope("x.scope", "a.slice", 7, "words", [])


@pytest.mark.parametrize("fault", [HANG, CLOSE])
@pytest.mark.parametrize(
    ("method", "act"),
    [
        ("StartTransientUnit", lambda bus: bus.start_scope("x.scope", "a.slice", 7, "words", [])),
        ("StopUnit", lambda bus: bus.stop("x.scope")),
        ("SetUnitProperties", lambda bus: bus.change("x.scope", [LIMIT])),
        ("Get", lambda bus: bus.version()),
    ],
)
def test_one_that_hangs_or_goes_away_is_unavailable_within_the_deadline_and_met_again(
    systemd: SystemdSimulator, bus: SystemdBus, method: str, act: Callable[[SystemdBus], object], fault: str
) -> None:
    systemd.faults[method] = fault
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"systemd could not .*(time|closed)"):
        act(SystemdBus((systemd.address,), timeout_s=0.2) if fault == HANG else bus)
    assert time.monotonic() - begun < 5
    systemd.faults.clear()
    assert bus.version() == "257"


def test_where_nobody_listens_every_address_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=f"{tmp_path}/a: .*{tmp_path}/b: .*node's init"):
        SystemdBus((f"{tmp_path}/a", f"{tmp_path}/b"), timeout_s=0.2).version()


def test_one_that_accepts_and_says_nothing_leaves_time_for_the_next(systemd: SystemdSimulator, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/silent")
        silent.listen()
        assert SystemdBus((f"{tmp_path}/silent", systemd.address), timeout_s=2).version() == "257"


def test_without_the_private_socket_the_bus_is_asked(systemd: SystemdSimulator, tmp_path: Path) -> None:
    """A bus is greeted first, and told which signals are wanted."""
    assert SystemdBus((f"{tmp_path}/none", systemd.address), timeout_s=10).version() == "257"
    assert systemd.calls == ["Hello", "AddMatch", "Subscribe", "Get"]
