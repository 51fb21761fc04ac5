"""The kernel and system tests again, on cgroup v2, Debian 13 and Python 3.13, in a throw-away guest."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from tests.guest import machine

pytestmark = [pytest.mark.guest, pytest.mark.root]

# What user-mode Linux can't do; the guest in qemu runs it.
NOT_IN_UML: Final = {
    "test_kill_ends_processes_that_fork_away": "its kernel panics when a fork is interrupted by a kill",
    "test_a_kill_ends_a_fork_bomb_that_fills_its_group": "the same",
    "test_a_fork_bomb_that_fills_its_pod_is_stopped": "the same",
    "test_what_leaves_the_node_is_masqueraded": "it has no nft nat",
}
# Left to the host: each of their kills costs a start of the daemon, seconds in a guest, or hits a process that forks,
# which user-mode Linux answers with a panic (mmput in copy_process); what they prove is no matter of cgroups. Nor is
# what the tests of pulls and archives prove, which move hundreds of megabytes and want skopeo and umoci.
# Host ports want nft nat.
NOT_IN_GUESTS: Final = (
    *("system/test_faults_sweep.py", "system/test_faults.py", "system/test_stops.py"),
    *("system/test_pulls.py", "system/test_registries.py", "system/test_image_exchange.py"),
    *("system/test_host_ports.py", "kernel/test_hostports.py"),
    *("system/test_prometheus.py", "system/test_tracing.py"),  # no Prometheus, no OpenTelemetry
)
UML_PANIC: Final = "fork_handler"  # on its console when it has died of that
BOOTS: Final = 3
BOOT_S: Final = 2400  # several times what it takes on a quiet machine: a slow one is no failure
ALL_BOOTS_S: Final = BOOTS * BOOT_S + 600  # and to make the guest before them
ONLY_WITH_APPARMOR: Final = ("tests/system/apparmor_in_guest.py",)  # the host's kernel may have none
ONLY_IN_QEMU: Final = (
    "tests/kernel/test_cgroups.py",
    "tests/kernel/test_network.py",
    "tests/system/test_life.py",
    "tests/system/test_isolation.py::test_limits_are_the_kernels",  # cpuset among them
    "tests/system/test_attacks.py::test_a_fork_bomb_that_fills_its_pod_is_stopped",
)


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A folder for the guest: the project's files as they are now, and the packages."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=machine.ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = machine.ROOT / name, tmp_path / "src" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    shutil.copytree(machine.packages(), tmp_path / "site", copy_function=_link)
    shutil.copy2(machine.HERE / "inside", tmp_path / "inside")
    return tmp_path


def _link(source: str, target: str) -> None:
    """The cache may lie on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.mark.timeout(ALL_BOOTS_S)
def test_kernel_and_system_tests_pass_in_user_mode_linux(share: Path) -> None:
    left_out = " and ".join(f"not {name}" for name in NOT_IN_UML)
    ignored = [f"--ignore=tests/{name}" for name in NOT_IN_GUESTS]
    chosen = ["tests/kernel", "tests/system", *ONLY_WITH_APPARMOR, *ignored, "-k", left_out]
    _pass_inside(chosen, engine="uml", share=share)


@pytest.mark.timeout(ALL_BOOTS_S)
def test_the_kernels_own_side_passes_on_debians_kernel(share: Path) -> None:
    _pass_inside([*ONLY_IN_QEMU], engine="tcg", share=share)


def _pass_inside(arguments: Sequence[str], *, engine: str, share: Path) -> None:
    """Fails with the names and the texts of what failed inside, and if nothing ran."""
    report = share / "junit.xml"
    for _ in range(BOOTS):
        command = f"bash inside {shlex.join(arguments)}"
        status, output = machine.boot(command, engine=engine, share=share, timeout_s=BOOT_S)
        if report.exists() or UML_PANIC not in output:
            break
        print(f"the guest's own kernel died and is booted again:\n{output[-1500:]}")
    if not report.exists():
        pytest.fail(f"the guest ended with status {status} and left no report:\n{output[-6000:]}", pytrace=False)
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    if bad or status:
        names = "\n".join(f"  {case.get('classname')}::{case.get('name')}" for case in bad)
        pytest.fail(f"{len(bad)} of {len(cases)} failed in the guest:\n{names}\n\n{output[-12000:]}", pytrace=False)
    assert cases, output
