"""Names of devices and the filesystem of the layers, as this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

from cri_py.pods.metrics_devices import Devices


def test_the_filesystem_has_its_size_and_a_name(tmp_path: Path) -> None:
    found, expected = Devices().filesystem(str(tmp_path)), os.statvfs(tmp_path)
    assert found.size == expected.f_blocks * expected.f_frsize
    assert found.inodes == expected.f_files
    assert found.device


def test_a_filesystem_over_no_device_is_named_by_its_source() -> None:
    found = Devices().filesystem("/proc/self")
    assert (found.device, found.disk) == ("proc", "")


def test_a_number_that_no_device_has_has_no_name_until_one_has() -> None:
    assert Devices().name("4095:77") == ""
