"""Each RPC over a real socket: what goes down, what comes back."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from cri_py import model
from cri_py.pods.events import Events
from cri_py.rpc import answers, listing, methods
from cri_py.rpc.gen import api_pb2 as pb
from tests.unit.rpc.conftest import IMAGE_ID, make_container

Make = Callable[..., Any]

SANDBOX_CONFIG = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="web", uid="u", namespace="default"))
CONTAINER_CONFIG = pb.ContainerConfig(
    metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="sha256:" + "a" * 64)
)
LATER = [
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
]


async def test_version_names_the_runtime_and_the_api(world: Any) -> None:
    version = await world.runtime.Version(pb.VersionRequest())
    assert (version.version, version.runtime_name, version.runtime_api_version) == ("0.1.0", "cri_py", "v1")
    assert version.runtime_version


async def test_status_has_conditions_and_the_default_handler_first(world: Any) -> None:
    status = await world.runtime.Status(pb.StatusRequest())
    assert [(c.type, c.status, c.reason) for c in status.status.conditions] == [
        ("RuntimeReady", True, ""),
        ("NetworkReady", False, "NoBridge"),
    ]
    assert [handler.name for handler in status.runtime_handlers] == ["", "cri_py"]
    assert not status.info
    assert (await world.runtime.Status(pb.StatusRequest(verbose=True))).info == {"config": "{}"}


@pytest.mark.parametrize(
    ("able", "told"),
    [
        (model.Features(), (True, True, True, True)),
        (model.Features(no_user_namespaces="disabled"), (True, False, False, True)),
        (model.Features(no_recursive_read_only="no such call"), (False, True, False, False)),
    ],
)
async def test_the_kubelet_hears_of_no_feature_that_the_kernel_has_not_proved(
    world: Any, able: model.Features, told: tuple[bool, ...]
) -> None:
    world.node.able = able
    status = await world.runtime.Status(pb.StatusRequest())
    for handler in status.runtime_handlers:
        features = handler.features
        assert (features.recursive_read_only_mounts, features.user_namespaces) == told[:2]
    assert (status.features.user_namespaces_host_network, status.features.mount_options) == told[2:]


async def test_an_image_volume_tells_what_its_image_was(world: Any) -> None:
    mount = model.Mount("/data", readonly=True, image=model.ImageSpec("data:1"))
    config = model.ContainerConfig(model.ContainerMetadata("app"), model.ImageSpec("app:1"), mounts=(mount,))
    made = make_container(1, config=config, volume_images={"/data": IMAGE_ID})
    world.containers.here[made.id] = made
    answer = await world.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=made.id))
    assert (answer.status.mounts[0].image.image, answer.status.mounts[0].image.image_ref) == ("data:1", IMAGE_ID)


async def test_the_kubelet_learns_the_cgroup_driver_and_tells_the_pod_cidr(world: Any) -> None:
    answer = await world.runtime.RuntimeConfig(pb.RuntimeConfigRequest())
    assert answer.linux.cgroup_driver == pb.CGROUPFS
    network = pb.NetworkConfig(pod_cidr="10.1.0.0/24")
    told = pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network))
    await world.runtime.UpdateRuntimeConfig(told)
    assert world.node.pod_cidr == "10.1.0.0/24"


async def test_a_sandbox_lives_from_run_to_removal(world: Any) -> None:
    run = await world.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=SANDBOX_CONFIG, runtime_handler="cri_py"))
    sandbox_id = run.pod_sandbox_id
    status = await world.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id))
    assert status.status.state == pb.SANDBOX_READY
    assert status.status.runtime_handler == "cri_py"
    assert status.status.network.ip == "10.85.0.2"
    assert [ip.ip for ip in status.status.network.additional_ips] == ["fd00::2"]
    await world.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))
    listed = await world.runtime.ListPodSandbox(pb.ListPodSandboxRequest())
    assert [(item.id, item.state) for item in listed.items] == [(sandbox_id, pb.SANDBOX_NOTREADY)]
    await world.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))
    assert not (await world.runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items


async def test_sandbox_status_carries_its_containers_and_the_time(
    world: Any, new_sandbox: Make, new_container: Make
) -> None:
    sandbox = new_sandbox(1)
    world.sandboxes.here[sandbox.id] = sandbox
    mine, other = new_container(2, sandbox.id), new_container(3)
    world.containers.here = {mine.id: mine, other.id: other}
    before = time.time_ns()
    answer = await world.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id, verbose=True))
    assert [status.id for status in answer.containers_statuses] == [mine.id]
    assert before <= answer.timestamp <= time.time_ns()
    assert answer.info == {"info": sandbox.id, "config": "{}"}


async def test_a_container_lives_from_create_to_removal(world: Any) -> None:
    request = pb.CreateContainerRequest(pod_sandbox_id="f" * 64, config=CONTAINER_CONFIG, sandbox_config=SANDBOX_CONFIG)
    container_id = (await world.runtime.CreateContainer(request)).container_id
    await world.runtime.StartContainer(pb.StartContainerRequest(container_id=container_id))
    wanted = pb.ContainerFilter(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING))
    listed = await world.runtime.ListContainers(pb.ListContainersRequest(filter=wanted))
    assert [(item.id, item.pod_sandbox_id) for item in listed.containers] == [(container_id, "f" * 64)]
    await world.runtime.StopContainer(pb.StopContainerRequest(container_id=container_id, timeout=12))
    assert world.containers.stop_timeouts == [12]
    await world.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container_id))
    await world.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container_id))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container_id))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_verbose_statuses_repeat_the_config_as_it_came(world: Any) -> None:
    run = pb.RunPodSandboxRequest(config=SANDBOX_CONFIG)
    sandbox_id = (await world.runtime.RunPodSandbox(run)).pod_sandbox_id
    create = pb.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=CONTAINER_CONFIG)
    container_id = (await world.runtime.CreateContainer(create)).container_id
    of_sandbox = await world.runtime.PodSandboxStatus(
        pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id, verbose=True)
    )
    of_container = await world.runtime.ContainerStatus(
        pb.ContainerStatusRequest(container_id=container_id, verbose=True)
    )
    assert ParseDict(json.loads(of_sandbox.info["config"]), pb.PodSandboxConfig()) == SANDBOX_CONFIG
    assert ParseDict(json.loads(of_container.info["config"]), pb.ContainerConfig()) == CONTAINER_CONFIG


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (model.Created(), pb.ContainerStatus(state=pb.CONTAINER_CREATED)),
        (model.Running(9, 9, model.Nanos(7)), pb.ContainerStatus(state=pb.CONTAINER_RUNNING, started_at=7)),
        (
            model.Exited(137, model.Nanos(7), model.Nanos(8), "OOMKilled"),
            pb.ContainerStatus(
                state=pb.CONTAINER_EXITED, started_at=7, finished_at=8, exit_code=137, reason="OOMKilled"
            ),
        ),
        (
            model.Exited(128, model.Nanos(0), model.Nanos(8), "StartError", "no such program"),
            pb.ContainerStatus(
                state=pb.CONTAINER_EXITED, finished_at=8, exit_code=128, reason="StartError", message="no such program"
            ),
        ),
        (
            model.Lost(model.Nanos(7), model.Nanos(8), "Unknown"),
            pb.ContainerStatus(
                state=pb.CONTAINER_UNKNOWN, started_at=7, finished_at=8, exit_code=255, reason="Unknown"
            ),
        ),
    ],
    ids=["created", "running", "oom", "start error", "lost"],
)
async def test_container_status_tells_its_state(
    world: Any, new_container: Make, state: Any, told: pb.ContainerStatus
) -> None:
    container = new_container(1, state=state)
    world.containers.here[container.id] = container
    answer = await world.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=container.id))
    for field in ("state", "started_at", "finished_at", "exit_code", "reason", "message"):
        assert getattr(answer.status, field) == getattr(told, field), field


def test_container_status_names_the_image_as_pull_does(new_container: Make) -> None:
    status = answers.container_status(new_container(1))
    assert status.image_ref == status.image_id == "sha256:" + "a" * 64
    assert status.image.image == "docker.io/library/busybox:latest"
    assert status.image.user_specified_image == "busybox"


def test_container_status_tells_log_user_resources_and_signal(new_container: Make) -> None:
    status = answers.container_status(new_container(1, stop_signal="SIGUSR1"))
    assert status.log_path == "/var/log/pods/x/0.log"
    assert (status.user.linux.uid, status.user.linux.gid, list(status.user.linux.supplemental_groups)) == (
        1000,
        1001,
        [1002],
    )
    assert status.resources.linux.cpu_shares == 512
    assert status.stop_signal == pb.SIGNAL_SIGUSR1


async def test_exec_sync_returns_bytes_as_they_are(world: Any, new_container: Make) -> None:
    container = new_container(1)
    world.containers.here[container.id] = container
    answer = await world.runtime.ExecSync(pb.ExecSyncRequest(container_id=container.id, cmd=["true"]))
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\xff", b"err\xfe", 3)


async def test_answers_beyond_16_mib_pass(world: Any, new_container: Make) -> None:
    container = new_container(1)
    world.containers.here[container.id] = container
    world.containers.result = model.ExecResult(b"o" * (16 << 20), b"e" * (16 << 20), 0)
    answer = await world.runtime.ExecSync(pb.ExecSyncRequest(container_id=container.id, cmd=["true"]))
    assert (len(answer.stdout), len(answer.stderr)) == (16 << 20, 16 << 20)


async def test_requests_beyond_16_mib_pass_and_binary_environment_survives(world: Any) -> None:
    config = pb.ContainerConfig()
    config.CopyFrom(CONTAINER_CONFIG)
    config.envs.add(key="BIG", value=b"\xff" * (17 << 20))
    await world.runtime.CreateContainer(pb.CreateContainerRequest(pod_sandbox_id="f" * 64, config=config))
    (_, value) = world.containers.configs[0].envs[0]
    assert value == b"\xff" * (17 << 20)


async def test_fields_of_a_newer_kubelet_arrive_below(world: Any) -> None:
    unknown = b"\xfa\x3f\x05hello"
    config = pb.PodSandboxConfig.FromString(SANDBOX_CONFIG.SerializeToString() + unknown)
    await world.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
    assert unknown in world.sandboxes.configs[0].raw


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("StopPodSandbox", pb.StopPodSandboxRequest(), "pod_sandbox_id"),
        ("RemovePodSandbox", pb.RemovePodSandboxRequest(), "pod_sandbox_id"),
        ("PodSandboxStatus", pb.PodSandboxStatusRequest(), "pod_sandbox_id"),
        ("CreateContainer", pb.CreateContainerRequest(config=CONTAINER_CONFIG), "pod_sandbox_id"),
        ("StartContainer", pb.StartContainerRequest(), "container_id"),
        ("StopContainer", pb.StopContainerRequest(), "container_id"),
        ("RemoveContainer", pb.RemoveContainerRequest(), "container_id"),
        ("ContainerStatus", pb.ContainerStatusRequest(), "container_id"),
        ("ReopenContainerLog", pb.ReopenContainerLogRequest(), "container_id"),
        ("ExecSync", pb.ExecSyncRequest(cmd=["true"]), "container_id"),
        ("ExecSync", pb.ExecSyncRequest(container_id="a"), "cmd"),
        ("ExecSync", pb.ExecSyncRequest(container_id="a", cmd=["true"], timeout=-1), "timeout"),
        ("StopContainer", pb.StopContainerRequest(container_id="a", timeout=-1), "timeout"),
        ("RunPodSandbox", pb.RunPodSandboxRequest(), "metadata"),
        ("CreateContainer", pb.CreateContainerRequest(pod_sandbox_id="a"), "metadata"),
    ],
)
async def test_a_request_that_lacks_something_is_invalid_by_field(
    world: Any, method: str, request_: Any, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(world.runtime, method)(request_)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


@pytest.mark.parametrize("method", ["ImageStatus", "PullImage", "RemoveImage"])
async def test_an_image_without_name_is_invalid(world: Any, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(world.image, method)(getattr(pb, f"{method}Request")())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "image.image" in (caught.value.details() or "")


@pytest.mark.parametrize("method", LATER)
async def test_an_rpc_of_a_later_version_is_unimplemented_by_name(world: Any, method: str) -> None:
    call = getattr(world.runtime, method)(getattr(pb, f"{method}Request")())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (caught.value.details() or "").startswith(f"{method} is not implemented")


async def test_an_image_is_pulled_found_listed_and_removed(world: Any) -> None:
    auth = pb.AuthConfig(
        username="u", password="p", identity_token="i", registry_token="r", server_address="s", auth="a"
    )
    pull = await world.image.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox"), auth=auth))
    assert world.images.auth == model.RegistryAuth("u", "p", "a", "s", "i", "r")
    status = await world.image.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="busybox"), verbose=True))
    assert status.image.id == pull.image_ref == "sha256:" + "a" * 64
    assert status.info
    listed = await world.image.ListImages(pb.ListImagesRequest())
    assert list(listed.images) == [status.image]
    absent = pb.ImageFilter(image=pb.ImageSpec(image="absent"))
    assert not (await world.image.ListImages(pb.ListImagesRequest(filter=absent))).images
    await world.image.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image="busybox")))
    gone = await world.image.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="busybox")))
    assert not gone.HasField("image")


async def test_the_status_of_an_image_repeats_what_the_user_wrote(world: Any) -> None:
    await world.image.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    asked = pb.ImageSpec(image="busybox", user_specified_image="bb", annotations={"a": "b"})
    status = await world.image.ImageStatus(pb.ImageStatusRequest(image=asked))
    assert status.image.spec == pb.ImageSpec(user_specified_image="bb", annotations={"a": "b"})


async def test_the_status_of_an_image_is_the_same_whatever_names_it(world: Any) -> None:
    image_id = (await world.image.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))).image_ref
    first, second = [
        await world.image.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name)))
        for name in ("busybox", image_id)
    ]
    assert first == second


async def test_image_file_systems_are_told_for_images_and_containers(world: Any) -> None:
    answer = await world.image.ImageFsInfo(pb.ImageFsInfoRequest())
    (usage,) = answer.image_filesystems
    assert (usage.fs_id.mountpoint, usage.used_bytes.value, usage.inodes_used.value, usage.timestamp) == (
        "/var/lib/cri_py",
        10,
        20,
        30,
    )
    assert list(answer.container_filesystems) == [usage]


async def test_a_disk_of_the_containers_own_is_told_apart(world: Any) -> None:
    world.images.containers_disk = [model.FilesystemUsage("/mnt/containers", 1, 2, model.Nanos(3))]
    answer = await world.image.ImageFsInfo(pb.ImageFsInfoRequest())
    assert [each.fs_id.mountpoint for each in answer.image_filesystems] == ["/var/lib/cri_py"]
    assert [each.fs_id.mountpoint for each in answer.container_filesystems] == ["/mnt/containers"]


async def test_the_status_of_an_image_that_is_being_pulled_tells_how_far_it_is(world: Any) -> None:
    wanted = pb.ImageSpec(image="under.way/a:1")
    answer = await world.image.ImageStatus(pb.ImageStatusRequest(image=wanted, verbose=True))
    assert not answer.HasField("image")
    (layer,) = json.loads(answer.info["pull"])["layers"]
    assert (layer["size"], layer["fetched"], layer["unpacked"]) == (10, 5, 2)
    assert not (await world.image.ImageStatus(pb.ImageStatusRequest(image=wanted))).info
    await world.image.PullImage(pb.PullImageRequest(image=wanted))  # the tag has moved, and is pulled again
    answer = await world.image.ImageStatus(pb.ImageStatusRequest(image=wanted, verbose=True))
    assert set(answer.info) == {"info", "pull"}


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", 0, ""),
        ("0", 0, ""),
        ("1000:1000", 1000, ""),
        ("nobody", None, "nobody"),
        ("www:www", None, "www"),
        (":5", 0, ""),
        ("²", None, "²"),
        ("99999999999999999999", None, "99999999999999999999"),
    ],
)
def test_an_image_tells_its_user_one_way_or_the_other(
    new_image: Make, user: str, uid: int | None, username: str
) -> None:
    message = answers.image(new_image(user))
    assert (message.uid.value if message.HasField("uid") else None, message.username) == (uid, username)


@pytest.mark.parametrize("count", [0, 1, 1000, 1001, 2500])
async def test_a_stream_lists_everything_once_in_messages_of_a_thousand(
    world: Any, new_container: Make, count: int
) -> None:
    world.containers.here = {c.id: c for c in (new_container(n) for n in range(count))}
    parts = [part async for part in world.runtime.StreamContainers(pb.StreamContainersRequest())]
    assert [c.id for part in parts for c in part.containers] == list(world.containers.here)
    assert all(0 < len(part.containers) <= 1000 for part in parts)


async def test_sandboxes_and_images_stream_too(world: Any, new_sandbox: Make, new_image: Make) -> None:
    sandbox = new_sandbox(1)
    world.sandboxes.here[sandbox.id] = sandbox
    world.images.here["busybox"] = new_image()
    pods = [part async for part in world.runtime.StreamPodSandboxes(pb.StreamPodSandboxesRequest())]
    images = [part async for part in world.image.StreamImages(pb.StreamImagesRequest())]
    assert [item.id for part in pods for item in part.pod_sandboxes] == [sandbox.id]
    assert [item.id for part in images for item in part.images] == ["sha256:" + "a" * 64]


async def test_events_arrive_with_sandbox_and_containers(world: Any, new_sandbox: Make, new_container: Make) -> None:
    call = world.runtime.GetContainerEvents(pb.GetEventsRequest())
    container = new_container(1)
    event = model.Event(container.id, model.EventKind.STARTED, model.Nanos(9), new_sandbox(2), (container,))
    world.events.queue.put_nowait(event)
    answer = await call.read()
    assert (answer.container_id, answer.container_event_type) == (container.id, pb.CONTAINER_STARTED_EVENT)
    assert answer.created_at == 9
    assert answer.pod_sandbox_status.metadata.name == "pod-2"
    assert [status.id for status in answer.containers_statuses] == [container.id]
    call.cancel()


async def test_a_subscriber_that_is_too_slow_is_told_what_it_lost(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events(limit=5)
    monkeypatch.setattr(world.events, "subscribe", events.subscribe)
    call = world.runtime.GetContainerEvents(pb.GetEventsRequest())
    first = asyncio.ensure_future(call.read())
    while not first.done():
        events.publish(model.Event("begun", model.EventKind.STARTED, model.Nanos(1)))
        await asyncio.sleep(0.001)
    while events.depth():
        await call.read()
    for number in range(50):
        events.publish(model.Event(f"c{number}", model.EventKind.STARTED, model.Nanos(2)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read_all(call)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert "45 events were lost since 1970-01-01" in caught.value.details()
    assert "list what there is" in caught.value.details()


async def _read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def test_a_list_joined_from_kept_encodings_is_the_list(new_container: Make) -> None:
    containers = [new_container(n) for n in range(100)]
    joined = listing.containers().whole(containers)
    made = pb.ListContainersResponse(containers=[answers.container(c) for c in containers])
    assert pb.ListContainersResponse.FromString(joined) == made


def test_listing_100_containers_needs_less_than_a_millisecond(new_container: Make) -> None:
    containers = [new_container(n) for n in range(100)]
    kept = listing.containers()
    kept.whole(containers)
    best = min(_cpu_seconds(lambda: methods.encode(kept.whole(containers))) for _ in range(20))
    assert best < 0.001


def test_a_new_value_of_a_sandbox_is_listed_at_once(new_sandbox: Make) -> None:
    kept = listing.sandboxes()
    ready, stopped = new_sandbox(1), new_sandbox(1, state=model.NotReady(model.Nanos(1), "stopped"))
    states = [pb.ListPodSandboxResponse.FromString(kept.whole([value])).items[0].state for value in (ready, stopped)]
    assert states == [pb.SANDBOX_READY, pb.SANDBOX_NOTREADY]


def test_encodings_are_kept_no_longer_than_their_values(new_sandbox: Make) -> None:
    kept = listing.sandboxes()
    kept.whole([new_sandbox(n) for n in range(10)])
    gc.collect()
    assert not kept._kept


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


async def test_streaming_calls_answer_the_url_of_their_session(world: Any) -> None:
    answer = await world.runtime.Exec(pb.ExecRequest(container_id="c", cmd=["a", "b"], stdin=True, stdout=True))
    assert answer.url == "http://front/exec/c/a b/FalseTrueTrueFalse"
    answer = await world.runtime.Attach(pb.AttachRequest(container_id="c", tty=True, stdout=True))
    assert answer.url == "http://front/attach/c/TrueFalseTrueFalse"
    answer = await world.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id="p", port=[80, 443]))
    assert answer.url == "http://front/portforward/p/80,443"


@pytest.mark.parametrize("method", ["Exec", "Attach", "PortForward"])
async def test_a_streaming_call_needs_an_id(world: Any, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(world.runtime, method)(getattr(pb, f"{method}Request")())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_new_resources_are_handed_down(world: Any) -> None:
    given = pb.LinuxContainerResources(cpu_shares=7, unified={"memory.high": "9"})
    asked = model.LinuxResources(cpu_shares=7, unified={"memory.high": "9"})
    await world.runtime.UpdateContainerResources(pb.UpdateContainerResourcesRequest(container_id="c", linux=given))
    await world.runtime.UpdatePodSandboxResources(
        pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="p", resources=given)
    )
    assert world.updates.asked == [("c", asked), ("p", None, asked)]
