"""Each verb is broken off at every step: the daemon killed, or a call of it or of its monitors failing.

Afterwards, and after a restart where the daemon was killed, the same call succeeds, and once everything is removed
nothing is left. A sweep is over when the verb ends before the step that was chosen.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri_py.kernel import faults
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import CUSTOM
from tests.simulators.kubelet import Kubelet, Pod
from tests.system.daemon import Daemon

MOST = 400  # steps of a verb; a sweep that gets there counts wrong
STRIDE = 1 if os.environ.get("CRI_PY_SWEEP") == "all" else 4  # each kill costs a start of the daemon


@dataclass
class Scene:
    """A pod with a container as far as the verb under test needs them."""

    kubelet: Kubelet
    pod_config: pb.PodSandboxConfig
    config: pb.ContainerConfig
    pod: Pod | None = None
    container: str = ""

    def run_pod(self) -> None:
        self.pod = self.kubelet.run_pod(self.pod_config)

    def create(self) -> None:
        assert self.pod is not None
        self.container = self.kubelet.create(self.pod, config=self.config)

    def start(self) -> None:
        self.kubelet.start(self.container)

    def exec(self) -> None:
        answer = self.kubelet.exec(self.container, "echo", "hello")
        assert (answer.stdout, answer.exit_code) == (b"hello\n", 0)

    def stop(self) -> None:
        self.kubelet.stop(self.container)

    def remove(self) -> None:
        self.kubelet.remove(self.container)

    def stop_pod(self) -> None:
        assert self.pod is not None
        self.kubelet.stop_pod(self.pod)

    def remove_pod(self) -> None:
        assert self.pod is not None
        self.kubelet.RemovePodSandbox(pod_sandbox_id=self.pod.id)


Act = Callable[[Scene], None]
# verb: what has to be before
VERBS: dict[str, tuple[Act, tuple[Act, ...]]] = {
    "run": (Scene.run_pod, ()),
    "create": (Scene.create, (Scene.run_pod,)),
    "start": (Scene.start, (Scene.run_pod, Scene.create)),
    "exec": (Scene.exec, (Scene.run_pod, Scene.create, Scene.start)),
    "stop": (Scene.stop, (Scene.run_pod, Scene.create, Scene.start)),
    "remove": (Scene.remove, (Scene.run_pod, Scene.create, Scene.start)),
    "stop_pod": (Scene.stop_pod, (Scene.run_pod, Scene.create, Scene.start)),
    "remove_pod": (Scene.remove_pod, (Scene.run_pod, Scene.create, Scene.start)),
}


class Plan:
    """The file that daemon and monitors look into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(faults.SIZE))

    def set(self, side: int, left: int, act: int, only: str = "") -> None:
        """``only``: how the calls begin that are counted."""
        self._write(
            faults.PLACE, bytes(faults.ONLY - faults.PLACE) + only.encode().ljust(faults.SIZE - faults.ONLY, b"\0")
        )
        self._write(side, struct.pack("=qq", left, act))

    def clear(self) -> str:
        """Nothing happens from now on; returns where it has happened, "" if it hasn't."""
        self._write(0, bytes(faults.PLACE))
        return self.place()

    def place(self) -> str:
        """Where it has happened so far."""
        return self.path.read_bytes()[faults.PLACE : faults.ONLY].rstrip(b"\0").decode()

    def _write(self, offset: int, content: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(content)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv(faults.VARIABLE, str(tmp_path / "plan"))
    return Plan(tmp_path / "plan")


@pytest.fixture
def daemon(plan: Plan, make_daemon: Callable[[str], Daemon]) -> Daemon:
    return make_daemon("")


def scene(kubelet: Kubelet, prepare: tuple[Act, ...], *, own_users: bool = False) -> Scene:
    # No cgroup parent: the daemon makes the pod's group, and removes it with its parents.
    made = Scene(kubelet, kubelet.pod_config(), kubelet.container_config("sleep", "1000"))
    if own_users:
        mapping = [pb.IDMapping(host_id=300000, container_id=0, length=65536)]
        users = pb.UserNamespace(mode=pb.POD, uids=mapping, gids=mapping)
        made.pod_config.linux.security_context.namespace_options.userns_options.CopyFrom(users)
        volume = pb.Mount(container_path="/image", readonly=True, image=pb.ImageSpec(image=CUSTOM))
        mapped = pb.Mount(container_path="/logs", host_path=str(kubelet.logs), uidMappings=mapping, gidMappings=mapping)
        made.config.mounts.extend([volume, mapped])
        kubelet.logs.mkdir(exist_ok=True)
    for act in prepare:
        act(made)
    return made


def sweep(daemon: Daemon, plan: Plan, verb: str, side: int, act: int, *, own_users: bool = False) -> list[str]:
    """Returns where it happened, in order. Of kills every fourth step, all of them with CRI_PY_SWEEP=all."""
    body, prepare = VERBS[verb]
    places = []
    for step in range(1, MOST, STRIDE if act == faults.KILL else 1):
        at = scene(daemon.kubelet, prepare, own_users=own_users)
        plan.set(side, step, act)
        with contextlib.suppress(grpc.RpcError):
            body(at)
        place = plan.clear()
        note = f"{verb}, step {step}: {place}"
        if side == faults.DAEMON and act == faults.KILL and place:
            daemon.kill()
            daemon.start()
        _try(lambda at=at: _again(at, body), note)
        daemon.kubelet.sweep()
        left = daemon.left_over() if step % 8 == 1 or not place else []
        assert left == [], note
        if not place:
            return places
        places.append(place)
    raise AssertionError(f"{verb} never ends")


def _again(at: Scene, body: Act) -> None:
    """The same call once more, as the kubelet makes it: what has happened already need not be done again."""
    if body is Scene.start:
        state = at.kubelet.status(at.container).state
        if state == pb.CONTAINER_EXITED:
            return  # StartError: the kubelet makes another
        if state == pb.CONTAINER_RUNNING:
            return
    body(at)


def _try(call: Callable[[], Any], note: str) -> None:
    try:
        call()
    except grpc.RpcError as error:
        raise AssertionError(f"{note}: the retry failed: {error.code()} {error.details()}") from error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS)
def test_the_daemon_is_killed_at_every_step(daemon: Daemon, plan: Plan, verb: str) -> None:
    assert sweep(daemon, plan, verb, faults.DAEMON, faults.KILL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["run", "create", "remove", "stop_pod", "remove_pod"])  # the others make none
def test_a_call_of_the_daemon_fails_at_every_step(daemon: Daemon, plan: Plan, verb: str) -> None:
    assert sweep(daemon, plan, verb, faults.DAEMON, faults.FAIL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["run", "create", "exec"])
def test_a_call_of_the_monitor_or_its_children_fails_at_every_step(daemon: Daemon, plan: Plan, verb: str) -> None:
    assert sweep(daemon, plan, verb, faults.MONITORS, faults.FAIL)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("verb", "side"), [("run", faults.DAEMON), ("run", faults.MONITORS), ("create", faults.MONITORS)]
)
def test_a_call_fails_at_every_step_of_a_pod_with_a_user_namespace(
    daemon: Daemon, plan: Plan, verb: str, side: int
) -> None:
    assert sweep(daemon, plan, verb, side, faults.FAIL, own_users=True)


@pytest.mark.parametrize("parent", ["the pod's own", "none"])
def test_a_death_before_the_groups_of_a_pod_are_noted_leaves_none(daemon: Daemon, plan: Plan, parent: str) -> None:
    """Its note has the group's name by then, and not yet which directories of it were made."""
    at = scene(daemon.kubelet, ())
    if parent == "none":
        at.pod_config.linux.cgroup_parent = ""
    plan.set(faults.DAEMON, 1, faults.KILL, "trace run: group made")
    with contextlib.suppress(grpc.RpcError):
        at.run_pod()
    assert plan.clear() == "trace run: group made"
    daemon.kill()
    daemon.start()
    assert daemon.left_over() == []
    _try(at.run_pod, "after a death before the note")
    daemon.kubelet.sweep()
    assert daemon.left_over() == []
