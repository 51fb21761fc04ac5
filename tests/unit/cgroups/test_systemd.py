from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.cgroups import Write, systemd
from cri_py.cgroups.systemd import UNLIMITED
from cri_py.errors import InvalidArgument

POD = "kubepods-burstable-pod1_2.slice"
PATH = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
ID = "ab" * 32
SLICES = st.lists(st.text("ab0_.:@", min_size=1, max_size=5), min_size=1, max_size=5).map(
    lambda parts: f"{'-'.join(parts)}.slice"
)


def limits(resources: dict[str, Any]) -> dict[str, object]:
    return {each.name: each.value for each in systemd.properties(systemd.scope_writes(resources))}


def test_a_slice_lies_in_those_that_its_name_begins_with() -> None:
    assert systemd.slice_path(POD) == PATH
    assert systemd.slice_path("system.slice") == "/system.slice"


@given(SLICES)
def test_each_folder_of_a_slices_path_is_a_slice_whose_name_the_next_one_goes_on(name: str) -> None:
    folders = systemd.slice_path(name).strip("/").split("/")
    assert folders[-1] == name
    for above, below in itertools.pairwise(folders):
        assert systemd.child_slice(above, below.removesuffix(".slice").rsplit("-", 1)[1]) == below
    systemd.check_slice(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "/kubepods/pod1",
            "kubepods",
            "kubepods.slice/pod1.slice",
            "/kubepods.slice",
            "-.slice",
            ".slice",
            "a--b.slice",
        ),
        *(
            "-a.slice",
            "a-.slice",
            "a b.slice",
            "a/../b.slice",
            "x.scope",
            "\0.slice",
            f"{'a' * 250}.slice",
            "a.slice\n",
        ),
    ],
)
def test_what_is_no_slice_is_refused_with_the_form_that_is_right(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"driver systemd wants.*kubepods-burstable-podUID\.slice"):
        systemd.check_slice(name)


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        *(("/cri_py", "cri_py.slice"), ("/a/b", "a-b.slice"), ("/cri_py-second", "cri_py_second.slice")),
        *(("/kubepods.slice", "kubepods.slice"), ("/a.slice/a-b.slice", "a-b.slice"), ("/ä", "_.slice")),
    ],
)
def test_the_configs_parent_has_its_slice(parent: str, name: str) -> None:
    assert systemd.own_slice(parent) == name


@given(st.text(min_size=1, max_size=20).filter(lambda text: "/" not in text))
def test_whatever_the_config_names_its_slice_is_one(parent: str) -> None:
    systemd.check_slice(systemd.own_slice(f"/{parent}"))


def test_a_scope_is_told_from_the_groups_in_it_and_from_others() -> None:
    scope = f"{PATH}/{systemd.container_scope(ID)}"
    assert systemd.scope_of(f"{scope}/container") == systemd.scope_of(scope) == scope
    assert systemd.scope_of(PATH) == ""
    assert systemd.container_of(f"cri-py-{ID}.scope") == ID
    for other in (systemd.holder_scope(ID), f"cri-containerd-{ID}.scope", "keep", "cri-py-12.scope"):
        assert systemd.container_of(other) == ""


def test_limits_of_a_container_are_properties_of_its_scope() -> None:
    asked = {
        "cpu": {"shares": 2048, "quota": 50_000, "period": 100_000, "cpus": "0-1,9", "mems": "0"},
        "memory": {"limit": 1 << 30, "swap": 3 << 30, "reservation": 1 << 20},
        "pids": {"limit": 10},
        "unified": {"memory.high": "900", "memory.min": "5", "io.weight": "default 300", "memory.oom.group": "1"},
    }
    assert limits(asked) == {
        "AllowedCPUs": b"\x03\x02",
        "AllowedMemoryNodes": b"\x01",
        "CPUQuotaPerSecUSec": 500_000,
        "CPUQuotaPeriodUSec": 100_000,
        "CPUWeight": 174,
        "IOWeight": 300,
        "MemoryHigh": 900,
        "MemoryLow": 1 << 20,
        "MemoryMax": 1 << 30,
        "MemoryMin": 5,
        "MemorySwapMax": 2 << 30,
        "TasksMax": 11,  # and the one that keeps the scope
    }


def test_no_limit_has_a_word_of_its_own() -> None:
    asked = {"cpu": {"quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}
    assert limits(asked) == {
        "CPUQuotaPerSecUSec": UNLIMITED,
        "CPUQuotaPeriodUSec": 100_000,
        "MemoryMax": UNLIMITED,
        "MemorySwapMax": UNLIMITED,
        "TasksMax": UNLIMITED,
    }


def test_the_last_word_is_unifieds() -> None:
    assert limits({"memory": {"limit": 5}, "unified": {"memory.max": "7"}}) == {"MemoryMax": 7}
    assert limits({"cpu": {"shares": 1024}, "unified": {"cpu.idle": "1"}}) == {"CPUWeight": 0}


@pytest.mark.parametrize(
    ("file", "text"),
    [("memory.high", "lots"), ("cpu.max", "1 2 3"), ("cpu.max", "1 0"), ("cpuset.cpus", "0-10:2/5"), ("pids.max", "-")],
)
def test_what_can_not_be_read_is_left_to_the_kernel(file: str, text: str) -> None:
    assert limits({"unified": {file: text}}) == {}


@given(
    st.sampled_from(["memory.high", "cpu.max", "cpu.weight", "cpuset.cpus", "pids.max", "io.weight"]),
    st.text("0123456789-,. maxKE", max_size=30) | st.integers().map(str),
)
def test_whatever_a_key_says_no_property_is_more_than_d_bus_can_carry(file: str, text: str) -> None:
    for value in limits({"unified": {file: text}}).values():
        assert isinstance(value, bytes) or (isinstance(value, int) and 0 <= value <= UNLIMITED)
        assert not isinstance(value, bytes) or len(value) <= 1024


@pytest.mark.parametrize("cpus", ["0-99999999999999999999", "5-2"])
def test_cpus_that_no_kernel_has_are_left_to_the_kernel(cpus: str) -> None:
    assert limits({"cpu": {"cpus": cpus}}) == {}


def test_amounts_may_have_the_kernels_suffixes() -> None:
    assert limits({"unified": {"memory.high": "5M", "memory.low": "2k"}}) == {"MemoryHigh": 5 << 20, "MemoryLow": 2048}


def test_what_files_say_is_taken_back_as_properties() -> None:
    said = [Write("cpuset.cpus", ""), Write("cpu.max", "max 100000"), Write("pids.max", "11"), Write("cpu.weight", "1")]
    assert {each.name: each.value for each in systemd.properties(said)} == {
        "AllowedCPUs": b"",
        "CPUQuotaPerSecUSec": UNLIMITED,
        "CPUQuotaPeriodUSec": 100_000,
        "CPUWeight": 1,
        "TasksMax": 11,
    }


@given(st.integers(1000, 10_000_000), st.integers(1000, 1_000_000))
def test_systemds_quota_is_whole_percents_and_never_below_the_containers(quota: int, period: int) -> None:
    share = limits({"cpu": {"quota": quota, "period": period}})["CPUQuotaPerSecUSec"]
    assert isinstance(share, int)
    assert share % 10_000 == 0
    assert quota * 1_000_000 <= share * period < (quota * 1_000_000 + 10_000 * period)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_a_list_of_cpus_is_a_bit_for_each(cpus: set[int]) -> None:
    (found,) = systemd.properties([Write("cpuset.cpus", ",".join(map(str, sorted(cpus))))])
    assert isinstance(found.value, bytes)
    assert {number for number in range(208) if int.from_bytes(found.value, "little") >> number & 1} == cpus
