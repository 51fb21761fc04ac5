from __future__ import annotations

import os
from pathlib import Path

import pytest

from cri_py.cdi import edits
from cri_py.errors import InvalidArgument, NotFound
from cri_py.model import Device
from cri_py.pods.devices import look_up, look_up_cdi
from cri_py.pods.spec_devices import DeviceNode


def test_a_device_is_found_with_its_numbers_also_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    for path in ("/dev/null", str(tmp_path / "link")):
        (node,) = look_up(Device("/dev/x", path, "rw"))
        assert (node.path, node.kind, node.major, node.minor, node.access) == ("/dev/x", "c", 1, 3, "rw")


def test_without_a_place_of_its_own_it_has_the_hosts() -> None:
    assert [node.path for node in look_up(Device("", "/dev/null", "r"))] == ["/dev/null"]


def test_a_directory_brings_the_devices_in_it(tmp_path: Path) -> None:
    found = look_up(Device("/gpu/", "/dev/", "r"))
    assert "/gpu/null" in {node.path for node in found}
    assert all(os.path.exists("/dev" + node.path.removeprefix("/gpu")) and node.access == "r" for node in found)
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="directory without devices"):
        look_up(Device("/gpu", str(tmp_path), "r"))


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="not a device"):
        look_up(Device("/x", str(tmp_path / "file"), "r"))
    with pytest.raises(NotFound, match="/nowhere is not on this node"):
        look_up(Device("/x", str(tmp_path / "nowhere"), "r"))


def test_a_cdi_file_may_leave_everything_to_the_node_or_nothing() -> None:
    bare = look_up_cdi(edits.Node("/dev/gpu", "/dev/zero", access="r"))
    assert (bare.path, bare.kind, bare.major, bare.minor, bare.access) == ("/dev/gpu", "c", 1, 5, "r")
    whole = edits.Node("/dev/gpu0", "", "c", 195, 0, 0o600, "rw", 1, 2)
    assert look_up_cdi(whole) == DeviceNode("/dev/gpu0", "c", 195, 0, "rw", 0o600, 1, 2)
    assert look_up_cdi(edits.Node("/dev/null", mode=0, uid=4)).mode == 0
    assert look_up_cdi(edits.Node("/run/fifo", kind="p")) == DeviceNode("/run/fifo", "p", 0, 0)


def test_a_cdi_file_that_is_wrong_about_a_device_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="of type c, a CDI file has it of type b"):
        look_up_cdi(edits.Node("/dev/null", kind="b"))
    with pytest.raises(NotFound, match="/dev/gpu9"):
        look_up_cdi(edits.Node("/dev/gpu9"))
    with pytest.raises(InvalidArgument, match="not a device"):
        look_up_cdi(edits.Node("/proc/self/exe"))
