"""What can be said of the guest without booting it."""

from __future__ import annotations

import re

from tests.guest import machine
from tests.guest.test_guest import ALL, IN_QEMU, NOT_IN_GUESTS, ONLY_IN_GUESTS, ONLY_IN_QEMU


def test_what_user_mode_linux_does_not_run_is_there() -> None:
    """By name: a test that is renamed or moved would otherwise run where it can't, or nowhere."""
    for name in (*IN_QEMU, *NOT_IN_GUESTS):
        file, _, test = name.partition("::")
        found = re.findall(r"^(?:async )?def (test_\w+)", (machine.ROOT / "tests" / file).read_text(), re.MULTILINE)
        assert test in found if test else found, name


def test_each_file_is_left_out_or_in_one_guest() -> None:
    listed = sorted(argument for boot in ALL.values() for argument in boot.arguments if argument.endswith(".py"))
    rooms = [machine.ROOT / "tests" / room for room in ("kernel", "system")]
    files = {f"{room.name}/{path.name}" for room in rooms for path in room.glob("test_*.py")}
    by_name = {*ONLY_IN_GUESTS, *ONLY_IN_QEMU}
    assert listed == sorted({*(f"tests/{name}" for name in files - set(NOT_IN_GUESTS)), *by_name})


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
