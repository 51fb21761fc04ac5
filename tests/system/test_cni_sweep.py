"""A chain of CNI plugins broken off at every step: of a run, stop and remove of a pod, and of GC after a crash; and
host ports of ours the same.

Afterwards the same call succeeds, and once the pods are gone the plugins hold nothing for anybody: no address, rule,
interface or namespace; nor does the daemon keep a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cri_py.kernel import faults, procfs
from tests.simulators.cni_plugin import PluginSimulator
from tests.simulators.kubelet import Kubelet, Pod, wait_for
from tests.system.daemon import Daemon
from tests.system.test_cni import leases
from tests.system.test_faults_sweep import MOST, Plan
from tests.system.test_host_ports import mapping, tables

MakeDaemon = Callable[..., Daemon]
Look = Callable[[Daemon], list[str]]
ALL = os.environ.get("CRI_PY_SWEEP") == "all"
STRIDES = {faults.KILL: 1 if ALL else 8, faults.FAIL: 1 if ALL else 3}  # a kill costs a start, and the tidying after it
SETTLE_S = 30.0  # a daemon looks for what is left a second after its start


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path / "plan"))
    return Plan(tmp_path / "plan")


class Scene:
    """A pod that makes every plugin of the chain work."""

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        rates = {"kubernetes.io/ingress-bandwidth": "1G", "kubernetes.io/egress-bandwidth": "1G"}
        self._config = kubelet.pod_config(port_mappings=[mapping()], annotations=rates)
        self._pod: Pod | None = None

    def run(self) -> None:
        self._pod = self._kubelet.run_pod(self._config)

    def stop(self) -> None:
        assert self._pod is not None
        self._kubelet.stop_pod(self._pod)

    def remove(self) -> None:
        assert self._pod is not None
        self._kubelet.RemovePodSandbox(pod_sandbox_id=self._pod.id)


VERBS = {"run": Scene.run, "stop": Scene.stop, "remove": Scene.remove}


def plugins_hold(daemon: Daemon) -> list[str]:
    """What Debian's plugins have of any pod, and the daemon's notes of it; a line each."""
    rules = [
        line
        for program in ("iptables-save", "ip6tables-save")
        for line in subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
        if f'\\"{daemon.bridge}\\"' in line
    ]
    kept = [path.name for path in (daemon.root / "cni").iterdir()]
    shapers = [name for name in os.listdir("/sys/class/net") if name.startswith("bwp")]
    return [*leases(daemon), *rules, *kept, *shapers]


def nothing_is_held(daemon: Daemon, note: str, look: Look) -> None:
    deadline = time.monotonic() + SETTLE_S
    while held := look(daemon):
        assert time.monotonic() < deadline, (note, held)
        time.sleep(0.05)
    assert daemon.left_over() == [], note


def sweep(daemon: Daemon, plan: Plan, verb: str, act: int, look: Look = plugins_hold) -> list[str]:
    """Returns where it happened, in order. ``look`` tells what is there of pods beside what every daemon leaves."""
    body, places = VERBS[verb], []
    for step in range(1, MOST, STRIDES[act]):
        scene = Scene(daemon.kubelet)
        if body is not Scene.run:
            scene.run()
        plan.set(faults.DAEMON, step, act)
        with contextlib.suppress(grpc.RpcError):
            body(scene)
        place = plan.clear()
        note = f"{verb}, step {step}: {place}"
        if act == faults.KILL and place:
            daemon.kill()
            daemon.start()
        try:
            body(scene)
        except grpc.RpcError as error:
            raise AssertionError(f"{note}: the retry failed: {error.code()} {error.details()}") from error
        daemon.kubelet.sweep()
        nothing_is_held(daemon, note, look)
        if not place:
            return places
        places.append(place)
    raise AssertionError(f"{verb} never ends")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", VERBS)
def test_the_daemon_is_killed_at_every_step_of_a_chain(make_daemon: MakeDaemon, plan: Plan, verb: str) -> None:
    assert sweep(make_daemon(cni=["bridge", "portmap", "bandwidth", "tuning"]), plan, verb, faults.KILL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["run", "stop"])
def test_a_call_of_the_daemon_fails_at_every_step_of_a_chain(make_daemon: MakeDaemon, plan: Plan, verb: str) -> None:
    assert sweep(make_daemon(cni=["bridge", "portmap"]), plan, verb, faults.FAIL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["run", "stop"])
def test_the_daemon_is_killed_at_every_step_of_built_in_host_ports(
    make_daemon: MakeDaemon, plan: Plan, verb: str
) -> None:
    assert sweep(make_daemon(), plan, verb, faults.KILL, tables)


# ---------------------------------------------------------------------- GC


def with_two_plugins(make_daemon: MakeDaemon, directory: Path) -> tuple[Daemon, list[PluginSimulator]]:
    """Whose chain speaks CNI 1.1, which Debian's plugins don't yet."""
    plugins = [PluginSimulator(directory, name) for name in ("first", "second")]
    conf = directory / "net.d"
    conf.mkdir()
    chain = [{"type": plugin.kind, "address": f"10.7{number}.0"} for number, plugin in enumerate(plugins)]
    (conf / "10-two.conflist").write_text(json.dumps({"cniVersion": "1.1.0", "name": "two", "plugins": chain}))
    daemon = make_daemon(
        f'[network]\nplugin = "cni"\ncni_gc_period_s = 0.3\n'
        f'cni_conf_dir = "{conf}"\ncni_bin_dirs = ["{directory}/bin"]\n'
    )
    return daemon, plugins


def lose_all_pods(daemon: Daemon) -> None:
    """As a power cut that takes the records, too."""
    daemon.crash()
    for name in ("pods.db", "pods.db-wal", "pods.db-shm"):
        (daemon.root / name).unlink(missing_ok=True)


@pytest.mark.timeout(600)
def test_the_daemon_is_killed_at_every_step_of_gc(make_daemon: MakeDaemon, plan: Plan, tmp_path: Path) -> None:
    daemon, plugins = with_two_plugins(make_daemon, tmp_path)
    for step in range(1, MOST, STRIDES[faults.KILL]):
        daemon.kubelet.run_pod()
        lose_all_pods(daemon)
        (plugins[1].directory / "leases" / "10.71.0.99").write_text("nobody")  # a DEL that this plugin has forgotten
        daemon.start()
        lives = daemon.kubelet.run_pod()
        plan.set(faults.DAEMON, step, faults.KILL)
        wait_for(lambda lives=lives: plan.place() or not strangers(plugins, lives), bool)
        place = plan.clear()
        if place:
            daemon.kill()
            daemon.start()
            wait_for(lambda lives=lives: strangers(plugins, lives), lambda left: not left)
        assert [owner for plugin in plugins for owner in plugin.leases().values()] == [lives.id, lives.id], place
        daemon.kubelet.sweep()
        assert daemon.left_over() == [], place
        assert (list((daemon.root / "cni").iterdir()), strangers(plugins, lives)) == ([], []), place
        if not place:
            assert step > 1
            return
    raise AssertionError("GC never ends")


def strangers(plugins: list[PluginSimulator], lives: Pod) -> list[str]:
    return [owner for plugin in plugins for owner in plugin.leases().values() if owner != lives.id]


def test_a_plugin_that_a_killed_daemon_has_left_running_is_ended(
    make_daemon: MakeDaemon, plan: Plan, tmp_path: Path
) -> None:
    daemon, plugins = with_two_plugins(make_daemon, tmp_path)
    plugins[1].behave(ADD="hang")
    hanging = plugins[1].directory / "hanging"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(daemon.kubelet.run_pod)
        wait_for(hanging.exists, bool)
        daemon.kill()
        with pytest.raises(grpc.RpcError):
            running.result()
    plugins[1].behave()
    daemon.start()
    assert procfs.state(int(hanging.read_text())) in (None, "Z")  # reaped, or to be by the machine's init
    wait_for(lambda: [plugin.leases() for plugin in plugins], lambda left: left == [{}, {}])
    daemon.kubelet.run_pod()
    daemon.kubelet.sweep()
    assert daemon.left_over() == []
