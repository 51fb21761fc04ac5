"""The ledger: what is put is there after a restart too, the kubelet's bytes included."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cri_py import model
from cri_py.errors import Internal, InvalidArgument, NotFound
from cri_py.pods.ledger import Ledger
from cri_py.rpc.convert import decode_container_config, decode_sandbox_config
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.state.store import Store

POD = model.SandboxId("aa" + "0" * 62)
CONTAINER = model.ContainerId("ca" + "0" * 62)
UNKNOWN_FIELD = b"\xc2\xf7\x01\x03new"  # field 3960, of a later CRI: tag, length, text

# Valid JSON that a list call would fail on.
WRONG_VALUES = [
    ("created_at", "'soon'"),
    ("created_at", "1.5"),
    ("created_at", "json('1180591620717411303424')"),
    ("state", "'Running'"),
    ("state", """json('{"is": "Exited", "code": 0}')"""),
    ("state.is", "iif(kind = 'sandbox', 'Running', 'Ready')"),
    ("state.started_at", "'today'"),
    ("state.monitor_pid", "null"),
    ("cgroup", "7"),
    ("resources", 'json(\'{"cpu_shares": "many"}\')'),
    ("resources", 'json(\'{"unified": {"a": 1}}\')'),
    ("attachment.ips", "json('[1]')"),
    ("handler", "null"),
    ("image_ref", "null"),
    ("log_path", "json('[]')"),
    ("user", 'json(\'{"uid": "root", "gid": 0}\')'),
    ("volume_images", "json('{\"/v\": 3}')"),
]

CONTAINER_STATES = [
    model.Created(),
    model.Running(pid=7, start_ticks=8, started_at=model.Nanos(9)),
    model.Exited(
        code=137,
        started_at=model.Nanos(1),
        finished_at=model.Nanos(2**62),
        reason="OOMKilled",
        message="ünicode",
    ),
    model.Lost(started_at=model.Nanos(1), finished_at=model.Nanos(2), reason="MonitorLost", message="gone"),
]


@pytest.fixture
def reopened(tmp_path: Path) -> Iterator[Callable[[], Ledger]]:
    """Each call is a new start of the daemon."""
    stores: list[Store] = []

    def reopen() -> Ledger:
        for store in stores:
            store.close()
        stores[:] = [Store(str(tmp_path / "pods.db"), durable=False)]
        return Ledger(stores[0], decode_sandbox_config, decode_container_config)

    yield reopen
    stores[0].close()


def sandbox(sandbox_id: str = POD, **changes: object) -> model.Sandbox:
    message = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="shop", attempt=2),
        hostname="web",
        labels={"app": "web", "tier": "front"},
    )
    made = model.Sandbox(
        id=model.SandboxId(sandbox_id),
        config=decode_sandbox_config(message.SerializeToString() + UNKNOWN_FIELD),
        runtime_handler="h",
        created_at=model.Nanos(5),
        state=model.Ready(1, 2),
        attachment=model.Attachment("/run/netns/x", ("10.0.0.2", "fd00::2"), "eth0", "veth1"),
        cgroup="/pods/web",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def container(container_id: str = CONTAINER, **changes: object) -> model.Container:
    message = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name="main"),
        image=pb.ImageSpec(image="busybox"),
        labels={"app": "web"},
        envs=[pb.KeyValue(key="A", value=b"b")],
        linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(cpu_shares=7)),
    )
    config = decode_container_config(message.SerializeToString() + UNKNOWN_FIELD)
    made = model.Container(
        id=model.ContainerId(container_id),
        sandbox_id=POD,
        config=config,
        image_id=model.ImageId("sha256:1"),
        image_ref="busybox:1",
        created_at=model.Nanos(6),
        state=model.Created(),
        log_path="/var/log/0.log",
        cgroup="/pods/web/c",
        user=model.User(1, 2, (3, 4)),
        stop_signal="SIGQUIT",
        resources=config.resources,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", CONTAINER_STATES, ids=lambda state: type(state).__name__)
async def test_a_container_in_any_state_survives_a_restart(
    reopened: Callable[[], Ledger], state: model.ContainerState
) -> None:
    await reopened().put_container(container(state=state))
    assert reopened().container(CONTAINER) == container(state=state)


@pytest.mark.parametrize("state", [model.Ready(1, 2), model.NotReady(model.Nanos(3), "stopped")])
@pytest.mark.parametrize("attachment", [None, model.Attachment("/run/netns/x", ("10.0.0.2",))])
async def test_a_sandbox_in_any_state_survives_a_restart(
    reopened: Callable[[], Ledger], state: model.SandboxState, attachment: model.Attachment | None
) -> None:
    await reopened().put_sandbox(sandbox(state=state, attachment=attachment))
    assert reopened().sandbox(POD) == sandbox(state=state, attachment=attachment)


async def test_a_container_without_a_user_survives_a_restart(reopened: Callable[[], Ledger]) -> None:
    await reopened().put_container(container(user=None))
    assert reopened().container(CONTAINER).user is None


async def test_fields_that_this_version_does_not_know_survive(reopened: Callable[[], Ledger]) -> None:
    ledger = reopened()
    await ledger.put_all([sandbox()], [container()])
    ledger = reopened()
    await ledger.put_container(replace(ledger.container(CONTAINER), state=CONTAINER_STATES[1]))
    ledger = reopened()
    assert ledger.container(CONTAINER).config.raw.endswith(UNKNOWN_FIELD)
    assert ledger.sandbox(POD).config.raw.endswith(UNKNOWN_FIELD)


async def test_what_is_dropped_stays_away(reopened: Callable[[], Ledger]) -> None:
    ledger = reopened()
    await ledger.put_all([sandbox()], [container()])
    await ledger.drop_container(container())
    assert ledger.members(POD) == []
    await ledger.drop_sandbox(POD)
    for seen in (ledger, reopened()):
        assert seen.sandboxes() == []
        assert seen.containers() == []
        with pytest.raises(NotFound, match=CONTAINER):
            seen.container(CONTAINER)


async def test_an_id_is_found_by_an_unambiguous_prefix(reopened: Callable[[], Ledger]) -> None:
    ledger = reopened()
    other = "cb" + "0" * 62
    await ledger.put_all([sandbox()], [container(), container(other)])
    assert ledger.container("ca").id == CONTAINER
    assert ledger.container(other).id == other
    with pytest.raises(InvalidArgument, match="2 containers begin with 'c'"):
        ledger.container("c")
    for wrong in ("", "cc", CONTAINER + "0"):
        with pytest.raises(NotFound):
            ledger.container(wrong)


async def test_a_whole_id_that_begins_another_is_itself(reopened: Callable[[], Ledger]) -> None:
    ledger = reopened()
    await ledger.put_all([], [container("ca"), container("ca11")])
    assert ledger.container("ca").id == "ca"


async def test_members_come_oldest_first(reopened: Callable[[], Ledger]) -> None:
    ledger = reopened()
    made = [container(f"{number}" * 64, created_at=model.Nanos(number)) for number in (3, 1, 2)]
    await ledger.put_all([sandbox()], made)
    assert [member.created_at for member in ledger.members(POD)] == [1, 2, 3]
    assert [member.created_at for member in reopened().members(POD)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (model.ContainerFilter(), 2),
        (model.ContainerFilter(id="ca"), 1),
        (model.ContainerFilter(id=""), 2),
        (model.ContainerFilter(sandbox_id="aa"), 2),
        (model.ContainerFilter(sandbox_id="ab"), 0),
        (model.ContainerFilter(state=model.Running), 1),
        (model.ContainerFilter(labels={"app": "web"}), 2),
        (model.ContainerFilter(labels={"app": "db"}), 0),
        (model.ContainerFilter(id="cb", state=model.Created), 0),
    ],
)
async def test_containers_are_selected_by_all_that_is_given(
    reopened: Callable[[], Ledger], wanted: model.ContainerFilter, found: int
) -> None:
    ledger = reopened()
    await ledger.put_all([sandbox()], [container(), container("cb" + "0" * 62, state=CONTAINER_STATES[1])])
    assert len(ledger.select_containers(wanted)) == found


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (model.SandboxFilter(), 2),
        (model.SandboxFilter(ready=True), 1),
        (model.SandboxFilter(ready=False, id="ab"), 1),
        (model.SandboxFilter(labels={"app": "web", "tier": "back"}), 0),
        (model.SandboxFilter(labels={"app": "web", "tier": "front"}), 2),
    ],
)
async def test_sandboxes_are_selected_by_all_that_is_given(
    reopened: Callable[[], Ledger], wanted: model.SandboxFilter, found: int
) -> None:
    ledger = reopened()
    await ledger.put_all([sandbox(), sandbox("ab" + "0" * 62, state=model.NotReady(model.Nanos(1), "stopped"))], [])
    assert len(ledger.select_sandboxes(wanted)) == found


def test_the_order_of_maps_on_the_wire_makes_no_other_config() -> None:
    """Go writes maps in random order, so the bytes of a retried call differ while it asks for the same."""
    pod, program = sandbox().config, container().config
    assert replace(pod, raw=b"in another order") == pod
    assert replace(program, raw=b"in another order") == program


@pytest.mark.parametrize(
    "damage",
    [
        "body = '{}'",
        "body = x'00ff'",
        "body = '[1]'",
        "body = replace(body, 'Running', 'Walking')",
        "body = replace(body, 'Ready', 'Reedy')",
        "verbatim = x'ffffffff'",
        "verbatim = ''",
        *(f"body = json_set(CAST(body AS TEXT), '$.{place}', {value})" for place, value in WRONG_VALUES),
    ],
)
async def test_a_damaged_record_is_set_aside_and_the_others_are_read(
    reopened: Callable[[], Ledger], tmp_path: Path, damage: str
) -> None:
    ledger = reopened()
    others = model.SandboxId("bb" + "0" * 62), model.ContainerId("cb" + "0" * 62)
    running = model.Running(pid=7, start_ticks=8, started_at=model.Nanos(9))
    await ledger.put_all(
        [sandbox(), sandbox(others[0])], [container(state=running), container(others[1], sandbox_id=others[0])]
    )
    with contextlib.closing(sqlite3.connect(tmp_path / "pods.db", isolation_level=None)) as database:
        database.execute(f"UPDATE records SET {damage} WHERE key IN (?, ?)", (POD, CONTAINER))
        damaged = database.execute("SELECT key, body, verbatim FROM records WHERE key IN (?, ?)", (POD, CONTAINER))
        kept = {key: (body, verbatim) for key, body, verbatim in damaged}
        ledger = reopened()
        ids = {*(found.id for found in ledger.sandboxes()), *(found.id for found in ledger.containers())}
        assert ids >= set(others)
        lost = {POD, CONTAINER} - ids
        assert lost
        await ledger.set_aside()
        rows = database.execute("SELECT kind, key, body, verbatim FROM records WHERE kind LIKE 'damaged-%'").fetchall()
    assert {key: (body, verbatim) for _, key, body, verbatim in rows} == {key: kept[key] for key in lost}
    again = reopened()
    assert {*(found.id for found in again.sandboxes()), *(found.id for found in again.containers())} == ids


async def test_an_end_counts_on_a_full_disk_and_is_recorded_with_the_next_change(
    reopened: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a container whose end could not be written would never end, and nothing could be removed."""
    ledger = reopened()
    running = model.Running(pid=7, start_ticks=8, started_at=model.Nanos(9))
    other = model.ContainerId("cb" + "0" * 62)
    await ledger.put_all([sandbox()], [container(state=running), container(other, state=running)])
    exited, stopped = CONTAINER_STATES[2], model.NotReady(model.Nanos(3), "stopped")

    async def refuse(*_: object) -> None:
        raise Internal("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(Store, "commit", refuse)
        await ledger.put_container(container(state=exited))
        await ledger.put_container(container(other, state=exited))
        await ledger.put_sandbox(sandbox(state=stopped))
        assert ledger.container(CONTAINER).state == exited
        assert ledger.sandbox(POD).state == stopped
        for refused in (
            ledger.put_container(container(state=model.Created())),
            ledger.drop_container(container(other)),
        ):
            with pytest.raises(Internal):
                await refused
        assert ledger.container(CONTAINER).state == exited
    await ledger.drop_container(container(other))
    again = reopened()
    assert [found.id for found in again.containers()] == [CONTAINER]
    assert again.container(CONTAINER).state == exited
    assert again.sandbox(POD).state == stopped


async def test_what_a_start_finds_changed_counts_on_a_full_disk_too(
    reopened: Callable[[], Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the daemon could not start that images and pods have to be removed by."""
    ledger = reopened()
    await ledger.put_all([sandbox()], [container()])
    exited, stopped = CONTAINER_STATES[2], model.NotReady(model.Nanos(3), "stopped")

    async def refuse(*_: object) -> None:
        raise Internal("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(Store, "commit", refuse)
        await ledger.put_all([sandbox(state=stopped)], [container(state=exited)])
    assert (ledger.container(CONTAINER).state, ledger.sandbox(POD).state) == (exited, stopped)
    other = model.ContainerId("cb" + "0" * 62)
    await ledger.put_container(container(other))
    again = reopened()
    assert (again.container(CONTAINER).state, again.sandbox(POD).state) == (exited, stopped)
