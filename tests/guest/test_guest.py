"""The kernel and system tests again, on cgroup v2, Debian 13 and Python 3.13, in a throw-away guest."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

import pytest

from tests.guest import machine
from tests.simulators.kubelet import wait_for
from tests.system.prometheus import Prometheus, dashboard_queries

pytestmark = [pytest.mark.guest, pytest.mark.root]

_STARTS: Final = "many starts, of the daemon, of commands or of containers: seconds each in a guest"
_KILLS: Final = "kills what forks all the time, which user-mode Linux answers with a panic (mmput in copy_process)"
_BYTES: Final = "moves many bytes or calls, which have one way on every node"
_LAYERS: Final = "images and their layers are files, on whatever node"
# Below tests/, for the guest in qemu: what user-mode Linux, which runs all else, can't do, and what is best seen there.
IN_QEMU: Final = {
    "kernel/test_cgroup_limits.py": f"wants huge pages, a disk and the like, and {_KILLS}",
    "kernel/test_cgroups.py": f"wants cpuset and the like, and {_KILLS}",
    "kernel/test_hostports.py": "wants nft nat",
    "kernel/test_network.py": "wants nft nat",
    "system/test_attacks.py::test_a_fork_bomb_that_fills_its_pod_is_stopped": _KILLS,
    "system/test_host_ports.py::test_a_host_port_survives_a_crash_and_goes_with_its_pod": "wants nft nat",
    "system/test_host_ports.py::test_on_the_hosts_network_a_port_needs_no_rule": "wants nft",
    "system/test_isolation.py::test_limits_are_the_kernels": "wants cpuset",
    "system/test_limits.py": "wants cpuset, huge pages and a disk",
    "system/systemd_in_guest.py::test_a_cpuset_is_a_property_too": "wants cpuset",
    "system/test_life.py": "the daemon at work on a kernel as nodes have it",
}
# Left to the host, below tests/: no matter of cgroups, systemd or AppArmor, and slow or impossible in a guest.
NOT_IN_GUESTS: Final = {
    "kernel/test_cni.py": "plugins get seconds, and less, for what takes longer in an emulated machine; wants nft nat",
    "kernel/test_full_disk.py": _LAYERS,
    "kernel/test_layer_forms.py": _LAYERS,
    "kernel/test_layerize_overlay.py": _LAYERS,
    "kernel/test_layers.py": _LAYERS,
    "system/test_attacks.py::test_an_exec_shows_nothing_of_the_node_to_who_watches_it_come": _KILLS,
    "system/test_attacks.py::test_nobody_who_shares_pids_finds_the_node_behind_a_container_that_is_being_made": _KILLS,
    "system/test_built_in_network.py::test_pods_get_addresses_of_the_kubelets_ranges_also_after_a_restart": _STARTS,
    "system/test_built_in_network.py::test_three_pods_outlive_the_daemon_and_are_gone_after_a_reboot": "wants nft nat",
    "system/test_cni.py": f"{_STARTS}, and nft nat",
    "system/test_cni_sweep.py": f"{_STARTS}, and nft nat",
    "system/test_devices.py::test_a_cdi_device_brings_nodes_environment_mounts_and_groups": _STARTS,
    "system/test_devices.py::test_a_hook_that_fails_is_told_and_leaves_nothing": _STARTS,
    "system/test_exec.py::test_output_is_cut_at_16_mib": _BYTES,
    "system/test_explain.py::test_of_a_container_that_has_ended_the_record_is_told": _STARTS,
    "system/test_explain.py::test_one_that_waits_to_be_started_is_told_of_by_its_record": _STARTS,
    "system/test_explain.py::test_what_a_container_puts_into_its_dev_leads_nowhere": _STARTS,
    "system/test_explain.py::test_what_is_wrong_is_told_in_one_line_with_the_way_out": _STARTS,
    "system/test_faults.py": _STARTS,
    "system/test_faults_sweep.py": _STARTS,
    "system/test_host_ports.py": f"{_STARTS}, and nft nat",
    "system/test_image_commands.py": _STARTS,
    "system/test_image_exchange.py": "wants skopeo and umoci",
    "system/test_images.py": _LAYERS,
    "system/test_mount_attacks.py::test_a_place_that_turns_into_a_link_meanwhile_leads_no_volume_out": _STARTS,
    "system/test_node.py::test_a_config_over_the_limits_is_refused_however_long_it_is": _BYTES,
    "system/test_node.py::test_a_stop_of_the_daemon_ends_event_streams_with_a_status": _STARTS,
    "system/test_node.py::test_nothing_is_executed_in_the_state_directory": _STARTS,
    "system/test_node.py::test_requests_and_answers_may_be_longer_than_16_mib": _BYTES,
    "system/test_node.py::test_the_socket_may_belong_to_a_group": _STARTS,
    "system/test_prometheus.py": "wants Prometheus",
    "system/test_pulls.py": _LAYERS,
    "system/test_registries.py": _LAYERS,
    "system/test_stops.py": _KILLS,
    "system/test_streaming.py::test_a_hundred_sessions_at_once_all_end": _BYTES,
    "system/test_streaming.py::test_a_session_in_which_nobody_says_anything_ends": _STARTS,
    "system/test_streaming.py::test_every_kind_of_session_transfers_while_the_daemon_is_killed_and_restarted": _STARTS,
    "system/test_streaming.py::test_over_tls_with_a_certificate_of_its_own_sessions_go_as_well": _STARTS,
    "system/test_streaming.py::test_sessions_outlive_the_daemon": _STARTS,
    "system/test_tracing.py": "wants OpenTelemetry",
    "system/test_volumes.py::test_a_missing_host_path_is_an_error_unless_it_is_to_be_made": _STARTS,
    "system/test_volumes.py::test_a_mount_that_hangs_is_killed_at_its_deadline_and_named": _STARTS,
    "system/test_volumes.py::test_volumes_survive_the_daemon": _STARTS,
}
# What the host may lack: AppArmor in its kernel, systemd as init.
ONLY_IN_GUESTS: Final = ("tests/system/apparmor_in_guest.py", "tests/system/systemd_in_guest.py")
# And what user-mode Linux lacks besides: PSI, huge pages, a disk, cpuset.
ONLY_IN_QEMU: Final = ("tests/system/pressure_in_guest.py", "tests/system/systemd_limits_in_guest.py")
# On the console of one that has died of what is no fault of ours: of the panic above, and in qemu of an instruction
# that the kernel patched on one processor while the other's was translated already (int3 where nobody expects one).
PANICS: Final = ("fork_handler", "Kernel panic - not syncing: Fatal exception in interrupt")
TRIES: Final = 3
BOOT_S: Final = 2400  # many times what it takes on a quiet machine: a slow one is no failure
SHARDS: Final = 4  # user-mode Linux has one processor, and a panic costs no more than a shard
PROCESSORS: Final = os.cpu_count() or 1  # a guest keeps one busy; qemu has two, and seldom work for both
ALL_S: Final = (1 + SHARDS) * TRIES * BOOT_S


class Boot(NamedTuple):
    """One guest, and what pytest is told there."""

    engine: str
    arguments: tuple[str, ...]


class Outcome(NamedTuple):
    """How it ended. ``cases``: of the report, None if there is none."""

    status: int
    output: str
    cases: list[ElementTree.Element] | None
    share: Path


def _shards() -> dict[str, Boot]:
    """All else, file by file, dealt out to guests of user-mode Linux: the longest first, to whoever has least."""
    left_out = {f"tests/{name}" for name in (*IN_QEMU, *NOT_IN_GUESTS)}
    found = [path for room in ("kernel", "system") for path in (machine.ROOT / "tests" / room).glob("test_*.py")]
    files = [*sorted({str(path.relative_to(machine.ROOT)) for path in found} - left_out), *ONLY_IN_GUESTS]
    single = [f"--deselect={name}" for name in sorted(left_out) if "::" in name]
    dealt: list[list[str]] = [[] for _ in range(SHARDS)]
    for file in sorted(files, key=_size, reverse=True):
        min(dealt, key=lambda names: sum(map(_size, names))).append(file)
    return {f"uml {n + 1} of {SHARDS}": Boot("uml", (*names, *single)) for n, names in enumerate(dealt)}


def _size(file: str) -> int:
    """In bytes, which tells roughly how long it takes."""
    return (machine.ROOT / file).stat().st_size


# In the order in which they begin: what computes ten times slower first.
QEMU: Final = "qemu"
ALL: Final[Mapping[str, Boot]] = {
    QEMU: Boot("tcg", (*(f"tests/{name}" for name in IN_QEMU), *ONLY_IN_QEMU)),
    **_shards(),
}


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Of all guests that are asked for, as many at once as this machine has processors for.

    None outlives this: other tests look for processes that were left behind.
    """
    machine.machine()
    machine.packages()  # both are made here at the latest, and not by two at once
    asked = {name: None for item in request.session.items if isinstance(item, pytest.Function) for name in _asked(item)}
    shares = {name: _share(tmp_path_factory.mktemp("share")) for name in asked}
    with ThreadPoolExecutor(PROCESSORS) as pool:
        running = {name: pool.submit(_run, boot, shares[name]) for name, boot in ALL.items() if name in asked}
    return {name: outcome.result() for name, outcome in running.items()}


def _asked(item: pytest.Function) -> list[str]:
    """The guests that a test wants to have been booted."""
    if item.originalname == test_the_guest_passes.__name__:
        return [item.callspec.params["guest"]]
    return [QEMU] if item.originalname == test_prometheus_answers_from_what_the_guest_told.__name__ else []


def _share(directory: Path) -> Path:
    """A folder for the guest: the project's files as they are now, and the packages."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=machine.ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, target = machine.ROOT / name, directory / "src" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    shutil.copytree(machine.packages(), directory / "site", copy_function=_link)
    shutil.copy2(machine.HERE / "inside", directory / "inside")
    return directory


def _link(source: str, target: str) -> None:
    """The cache may lie on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _run(boot: Boot, share: Path) -> Outcome:
    """Boot it, and again if its kernel died of what is no fault of ours."""
    report, said = share / "junit.xml", ""
    command = f"bash inside {shlex.join(boot.arguments)}"
    for _ in range(TRIES):
        status, output = machine.boot(command, engine=boot.engine, share=share, timeout_s=BOOT_S)
        said += output
        if report.exists() or not any(panic in output for panic in PANICS):
            break
    cases = list(ElementTree.parse(report).getroot().iter("testcase")) if report.exists() else None
    return Outcome(status, said, cases, share)


@pytest.mark.timeout(ALL_S)
@pytest.mark.parametrize("guest", ALL)
def test_the_guest_passes(guest: str, outcomes: Mapping[str, Outcome]) -> None:
    """Fails with the names and the texts of what failed inside, and if nothing ran."""
    status, output, cases, _ = outcomes[guest]
    if cases is None:
        pytest.fail(f"the guest ended with status {status} and left no report:\n{output[-6000:]}", pytrace=False)
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    if bad or status:
        names = "\n".join(f"  {case.get('classname')}::{case.get('name')}" for case in bad)
        pytest.fail(f"{len(bad)} of {len(cases)} failed in the guest:\n{names}\n\n{output[-12000:]}", pytrace=False)
    assert cases, output


@pytest.mark.timeout(ALL_S)
def test_prometheus_answers_from_what_the_guest_told(outcomes: Mapping[str, Outcome], tmp_path: Path) -> None:
    """The guest has no Prometheus: its daemon's pages, with the times when they were read, are the host's to ask."""
    scrapes = sorted((outcomes[QEMU].share / "scrapes").iterdir(), key=lambda file: float(file.name.partition(".")[2]))
    times = [float(file.name.partition(".")[2]) for file in scrapes]
    pages = [file.read_text() for file in scrapes]
    prometheus = Prometheus.of_recorded(tmp_path, list(zip(times, pages, strict=True)))
    try:
        queries = [query for query in dashboard_queries() if "container_" in query and "cri_py_" not in query]
        assert len([query for query in queries if "container_pressure" in query]) >= 3
        wait_for(prometheus.is_ready, bool)
        assert [query for query in queries if not prometheus.numbers(query, at=times[-1])] == []
        held = 'rate(container_pressure_cpu_waiting_seconds_total{container="held"}[20s])'
        assert prometheus.numbers(held, at=times[-1])[0] > 0.3
    finally:
        prometheus.stop()
