"""The life of pods and containers, seen through the socket: verbs, retries, idempotence, lists."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Line, Pod, refused

UNKNOWN = "0" * 64


def test_a_container_runs_logs_and_exits_with_its_code(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sh", "-c", "echo hello; echo oh >&2; exit 3")
    status = kubelet.wait(container)
    assert (status.exit_code, status.reason, status.state) == (3, "Error", pb.CONTAINER_EXITED)
    assert status.created_at <= status.started_at < status.finished_at
    assert sorted(kubelet.log(container), key=lambda line: line.stream) == [
        Line("stderr", "F", b"oh"),
        Line("stdout", "F", b"hello"),
    ]


def test_each_verb_moves_the_container_to_its_next_state(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.create(pod, "sleep", "1000")
    created = kubelet.status(container)
    assert (created.state, created.started_at, created.finished_at) == (pb.CONTAINER_CREATED, 0, 0)
    kubelet.start(container)
    running = kubelet.status(container)
    assert (running.state, running.finished_at) == (pb.CONTAINER_RUNNING, 0)
    assert running.started_at >= created.created_at
    kubelet.stop(container)
    exited = kubelet.status(container)
    assert (exited.state, exited.exit_code) == (pb.CONTAINER_EXITED, 137)
    assert exited.started_at == running.started_at
    kubelet.remove(container)
    with refused("NOT_FOUND", container):
        kubelet.status(container)


def test_the_status_of_a_container_repeats_what_it_was_made_of(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.create(
        pod,
        "sleep",
        "1",
        labels={"app": "web"},
        annotations={"note": "ü"},
        mounts=[pb.Mount(container_path="/etc/node", host_path="/etc/hostname", readonly=True)],
    )
    status = kubelet.status(container)
    assert status.metadata == pb.ContainerMetadata(name="main", attempt=0)
    assert dict(status.labels) == {"app": "web"}
    assert dict(status.annotations) == {"note": "ü"}
    assert [mount.container_path for mount in status.mounts] == ["/etc/node"]
    assert status.log_path == f"{pod.config.log_directory}/main/0.log"
    assert status.image.user_specified_image.endswith("/busybox:1")
    assert status.image_id.startswith("sha256:")


def test_a_pod_that_is_stopped_keeps_its_record_until_it_is_removed(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(labels={"app": "web"})
    ready = kubelet.pod_status(pod)
    assert ready.state == pb.SANDBOX_READY
    assert ready.network.ip
    kubelet.stop_pod(pod)
    stopped = kubelet.pod_status(pod)
    assert stopped.state == pb.SANDBOX_NOTREADY
    assert (stopped.metadata, stopped.created_at, dict(stopped.labels)) == (
        pod.config.metadata,
        ready.created_at,
        {"app": "web"},
    )
    kubelet.remove_pod(pod)
    with refused("NOT_FOUND", pod.id):
        kubelet.pod_status(pod)


def test_stopping_a_pod_ends_its_containers(kubelet: Kubelet, pod: Pod) -> None:
    running = kubelet.run(pod, "sleep", "1000")
    created = kubelet.create(pod, "sleep", "1000", name="second")
    kubelet.stop_pod(pod)
    assert kubelet.status(running).exit_code == 137
    assert kubelet.status(created).state == pb.CONTAINER_EXITED


def test_removing_a_pod_that_runs_removes_everything_in_it(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    kubelet.RemovePodSandbox(pod_sandbox_id=pod.id)
    assert not kubelet.ListContainers().containers
    with refused("NOT_FOUND"):
        kubelet.status(container)


def test_removing_a_container_that_runs_ends_it(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    kubelet.remove(container)
    assert not kubelet.ListContainers().containers


def test_a_name_is_free_again_once_its_container_is_removed(kubelet: Kubelet, pod: Pod) -> None:
    first = kubelet.run(pod, "true")
    kubelet.wait(first)
    kubelet.remove(first)
    assert kubelet.create(pod, "true") != first


def test_the_next_attempt_of_a_container_stands_beside_the_last(kubelet: Kubelet, pod: Pod) -> None:
    first = kubelet.run(pod, "true")
    kubelet.wait(first)
    again = kubelet.run(pod, "true", metadata=pb.ContainerMetadata(name="main", attempt=1))
    assert {first, again} == {item.id for item in kubelet.ListContainers().containers}


# ----------------------------------------------------------------- retries


def test_a_retried_run_of_a_pod_is_answered_with_the_same_id(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    assert kubelet.run_pod(config).id == kubelet.run_pod(config).id


def test_the_same_pod_with_another_config_exists_already(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    first = kubelet.run_pod(config)
    config.hostname = "another"
    with refused("ALREADY_EXISTS", config.metadata.name, first.id):
        kubelet.run_pod(config)


def test_a_retried_create_of_a_container_is_answered_with_the_same_id(kubelet: Kubelet, pod: Pod) -> None:
    assert kubelet.create(pod, "true") == kubelet.create(pod, "true")


def test_the_same_container_with_another_config_exists_already(kubelet: Kubelet, pod: Pod) -> None:
    first = kubelet.create(pod, "true")
    with refused("ALREADY_EXISTS", "main", first):
        kubelet.create(pod, "false")


def test_duplicate_calls_at_the_same_time_make_one(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    with ThreadPoolExecutor(8) as pool:
        pods = list(pool.map(lambda _: kubelet.run_pod(config), range(8)))
        containers = list(pool.map(lambda _: kubelet.create(pods[0], "true"), range(8)))
    assert len({pod.id for pod in pods}) == 1
    assert len(set(containers)) == 1
    assert len(kubelet.ListPodSandbox().items) == len(kubelet.ListContainers().containers) == 1


def test_a_sandbox_that_was_stopped_is_not_an_answer_to_a_run(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    kubelet.stop_pod(kubelet.run_pod(config))
    with refused("ALREADY_EXISTS", "remove it"):
        kubelet.run_pod(config)


@pytest.mark.parametrize(
    "call",
    [
        lambda kubelet: kubelet.StopContainer(container_id=UNKNOWN, timeout=1),
        lambda kubelet: kubelet.RemoveContainer(container_id=UNKNOWN),
        lambda kubelet: kubelet.StopPodSandbox(pod_sandbox_id=UNKNOWN),
        lambda kubelet: kubelet.RemovePodSandbox(pod_sandbox_id=UNKNOWN),
    ],
    ids=["StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox"],
)
def test_what_is_not_there_is_stopped_and_removed_already(kubelet: Kubelet, call: Callable[[Kubelet], Any]) -> None:
    call(kubelet)


def test_stop_and_remove_may_be_repeated(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    for act in (kubelet.stop, kubelet.remove):
        act(container)
        act(container)
    for _ in range(2):
        kubelet.StopPodSandbox(pod_sandbox_id=pod.id)
    for _ in range(2):
        kubelet.RemovePodSandbox(pod_sandbox_id=pod.id)


def test_stop_of_a_created_container_succeeds(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.stop(kubelet.create(pod, "sleep", "1000"))


def test_stops_and_removes_at_the_same_time_all_succeed(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    acts = [
        lambda: kubelet.stop(container),
        lambda: kubelet.remove(container),
        lambda: kubelet.StopPodSandbox(pod_sandbox_id=pod.id),
        lambda: kubelet.RemovePodSandbox(pod_sandbox_id=pod.id),
    ]
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(act) for act in acts * 2]:
            future.result()
    assert not kubelet.ListPodSandbox().items


# ------------------------------------------------------------------- lists


def ids(answer: Any) -> set[str]:
    return {item.id for item in (*getattr(answer, "items", ()), *getattr(answer, "containers", ()))}


def test_pods_are_listed_by_id_prefix_state_and_labels(kubelet: Kubelet) -> None:
    one = kubelet.run_pod(labels={"app": "web", "tier": "front"})
    two = kubelet.run_pod(labels={"app": "web"})
    kubelet.stop_pod(two)
    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    for wanted, found in [
        (pb.PodSandboxFilter(), {one.id, two.id}),
        (pb.PodSandboxFilter(id=one.id), {one.id}),
        (pb.PodSandboxFilter(id=one.id[:12]), {one.id}),
        (pb.PodSandboxFilter(id=UNKNOWN), set()),
        (pb.PodSandboxFilter(state=ready), {one.id}),
        (pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)), {two.id}),
        (pb.PodSandboxFilter(label_selector={"app": "web"}), {one.id, two.id}),
        (pb.PodSandboxFilter(label_selector={"app": "web", "tier": "front"}), {one.id}),
        (pb.PodSandboxFilter(label_selector={"app": ""}), set()),
        (pb.PodSandboxFilter(id=two.id, state=ready), set()),
    ]:
        assert ids(kubelet.ListPodSandbox(filter=wanted)) == found, wanted
        parts = list(kubelet.StreamPodSandboxes(filter=wanted))
        assert {item.id for part in parts for item in getattr(part, part.DESCRIPTOR.fields[0].name)} == found, wanted


def test_containers_are_listed_by_id_prefix_state_sandbox_and_labels(kubelet: Kubelet) -> None:
    pod, other = kubelet.run_pod(), kubelet.run_pod()
    created = kubelet.create(pod, "sleep", "1000", labels={"app": "web"})
    running = kubelet.run(pod, "sleep", "1000", name="second", labels={"app": "web", "tier": "back"})
    exited = kubelet.run(other, "true")
    kubelet.wait(exited)

    def state(value: int) -> pb.ContainerStateValue:
        return pb.ContainerStateValue(state=value)

    for wanted, found in [
        (pb.ContainerFilter(), {created, running, exited}),
        (pb.ContainerFilter(id=created[:13]), {created}),
        (pb.ContainerFilter(state=state(pb.CONTAINER_CREATED)), {created}),
        (pb.ContainerFilter(state=state(pb.CONTAINER_RUNNING)), {running}),
        (pb.ContainerFilter(state=state(pb.CONTAINER_EXITED)), {exited}),
        (pb.ContainerFilter(state=state(pb.CONTAINER_UNKNOWN)), set()),
        (pb.ContainerFilter(pod_sandbox_id=pod.id), {created, running}),
        (pb.ContainerFilter(pod_sandbox_id=other.id[:12]), {exited}),
        (pb.ContainerFilter(pod_sandbox_id=other.id, id=created), set()),
        (pb.ContainerFilter(label_selector={"app": "web"}), {created, running}),
        (pb.ContainerFilter(label_selector={"tier": "back"}), {running}),
    ]:
        assert ids(kubelet.ListContainers(filter=wanted)) == found, wanted
        parts = list(kubelet.StreamContainers(filter=wanted))
        assert {item.id for part in parts for item in part.containers} == found, wanted


def test_a_list_entry_tells_what_the_status_tells(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", labels={"a": "b"})
    (entry,) = kubelet.ListContainers().containers
    status = kubelet.status(container)
    for field in ("id", "metadata", "state", "created_at", "image_id", "labels"):
        assert getattr(entry, field) == getattr(status, field), field
    assert entry.pod_sandbox_id == pod.id


def test_a_prefix_of_an_id_names_the_object(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.create(pod, "true")
    assert kubelet.status(container[:12]).id == container
    assert kubelet.PodSandboxStatus(pod_sandbox_id=pod.id[:12]).status.id == pod.id
