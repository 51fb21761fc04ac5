"""What can be said of the guest without booting it."""

from __future__ import annotations

import re

from tests.guest import machine
from tests.guest.test_guest import NOT_IN_GUESTS, NOT_IN_UML, ONLY_IN_QEMU


def test_what_user_mode_linux_leaves_out_runs_in_qemu() -> None:
    """By name: a test that is renamed or moved would otherwise run in neither, and nobody would notice."""
    files = [machine.ROOT / name.partition("::")[0] for name in ONLY_IN_QEMU]
    found = {
        name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert set(NOT_IN_UML) <= found


def test_what_is_left_to_the_host_is_there() -> None:
    assert all((machine.ROOT / "tests" / name).exists() for name in NOT_IN_GUESTS)


def test_packages_are_asked_for_without_the_hosts_markers() -> None:
    project = {
        "project": {
            "dependencies": ["grpcio>=1.85.1"],
            "optional-dependencies": {
                "dev": ["backports.zstd>=1.0; python_version < '3.14'", "ruff>=0.6", "pytest>=8"]
            },
        }
    }
    assert machine.requirements(project) == ["grpcio>=1.85.1", "backports.zstd>=1.0", "pytest>=8"]
