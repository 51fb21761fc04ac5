"""What GetContainerEvents tells, and the lists that stream."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from cri_py.cgroups import detect
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Events, Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon


def stopped(object_id: str) -> Any:
    return lambda event: (event.container_id, event.container_event_type) == (object_id, pb.CONTAINER_STOPPED_EVENT)


def deleted(object_id: str) -> Any:
    return lambda event: (event.container_id, event.container_event_type) == (object_id, pb.CONTAINER_DELETED_EVENT)


def whole_life(kubelet: Kubelet, events: Events) -> tuple[Pod, str]:
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "exit 6")
    events.until(stopped(container))
    kubelet.remove(container)
    kubelet.remove_pod(pod)
    events.until(deleted(pod.id))
    return pod, container


def test_a_life_is_told_in_its_order(kubelet: Kubelet) -> None:
    with kubelet.events() as events:
        pod, container = whole_life(kubelet, events)
    assert events.of(container) == events.of(pod.id) == ["CREATED", "STARTED", "STOPPED", "DELETED"]
    times = [event.created_at for event in events.seen]
    assert times == sorted(times)


def test_an_event_carries_the_statuses_of_its_moment(kubelet: Kubelet) -> None:
    with kubelet.events() as events:
        pod, container = whole_life(kubelet, events)
    told = {event.container_event_type: event for event in events.seen if event.container_id == container}
    running = told[pb.CONTAINER_STARTED_EVENT]
    assert running.pod_sandbox_status.id == pod.id
    assert running.pod_sandbox_status.metadata == pod.config.metadata
    assert [status.state for status in running.containers_statuses] == [pb.CONTAINER_RUNNING]
    (ended,) = told[pb.CONTAINER_STOPPED_EVENT].containers_statuses
    assert (ended.id, ended.exit_code, ended.reason) == (container, 6, "Error")
    assert not told[pb.CONTAINER_DELETED_EVENT].containers_statuses


def test_every_subscriber_is_told(kubelet: Kubelet) -> None:
    with kubelet.events() as one, kubelet.events() as two:
        pod, _ = whole_life(kubelet, one)
        two.until(deleted(pod.id))
    assert [event.container_id for event in one.seen] == [event.container_id for event in two.seen]


def test_a_program_that_cannot_start_is_told_as_stopped(kubelet: Kubelet, pod: Pod) -> None:
    with kubelet.events() as events:
        container = kubelet.create(pod, "no-such-program")
        with refused("UNKNOWN"):
            kubelet.start(container)
        events.until(stopped(container))
    assert events.of(container) == ["CREATED", "STOPPED"]
    (status,) = events.seen[-1].containers_statuses
    assert (status.exit_code, status.reason) == (128, "StartError")


def test_stopping_a_pod_tells_of_its_containers_first(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    with kubelet.events() as events:
        kubelet.stop_pod(pod)
        events.until(stopped(pod.id))
    assert [event.container_id for event in events.seen] == [container, pod.id]


def test_what_ends_while_no_daemon_runs_is_listed_by_the_next_and_later_events_are_later(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    waits = "while [ ! -e /go ]; do sleep 0.05; done"
    with kubelet.events() as events:
        one = kubelet.run(pod, "sh", "-c", f"{waits}; exit 7", name="one")
        other = kubelet.run(pod, "sh", "-c", f"{waits}; exit 8", name="other")
        events.until(lambda event: event.container_id == other and len(events.of(other)) == 2)
        fresh_daemon.kill()
    before = max(event.created_at for event in events.seen)
    (init,) = detect().processes(f"{pod.config.linux.cgroup_parent}/{one}")[:1]
    Path(f"/proc/{init}/root/go").touch()
    wait_for(lambda: detect().processes(f"{pod.config.linux.cgroup_parent}/{one}"), lambda left: not left)
    fresh_daemon.start()
    with kubelet.events() as events:
        status = kubelet.status(one)  # what a kubelet's relist sees after a stream that broke
        assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 7)
        assert status.started_at < before < status.finished_at
        kubelet.shell(other, "touch /go")
        events.until(stopped(other))
    assert events.seen[-1].created_at > status.finished_at
    assert {each.id: each.exit_code for each in events.seen[-1].containers_statuses} == {one: 7, other: 8}


def test_streams_list_what_there_is_and_end(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.create(pod, "true")
    (part,) = kubelet.StreamContainers()
    assert [item.id for item in part.containers] == [container]
    assert part.containers[0] == kubelet.ListContainers().containers[0]
    assert len(list(kubelet.StreamPodSandboxes())) == 1
    assert [image for part in kubelet.StreamImages() for image in part.images] == list(kubelet.ListImages().images)


def test_a_stream_of_nothing_has_no_part(kubelet: Kubelet) -> None:
    assert list(kubelet.StreamContainers()) == list(kubelet.StreamPodSandboxes()) == []


def test_no_thread_of_the_simulator_outlives_its_subscription(kubelet: Kubelet) -> None:
    with kubelet.events():
        pass
    assert "events" not in {thread.name for thread in threading.enumerate()}
