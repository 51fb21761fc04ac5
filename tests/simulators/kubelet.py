"""Drives a CRI socket as the kubelet does: the configs that it would send, the calls in its order, bounded waits.

    kubelet = Kubelet(socket, logs, cgroup_parent)
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "echo hello; exit 3")
    assert kubelet.wait(container).exit_code == 3
    assert kubelet.log(container) == [Line("stdout", "F", b"hello")]

Every method named as an RPC is that RPC: ``kubelet.StopContainer(container_id=…, timeout=1)``.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc
import pytest

from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.gen import api_pb2_grpc as services
from tests.simulators.busybox import BUSYBOX

# What must happen is waited for much longer than it takes anywhere: only a machine that is busy with others comes near.
PATIENCE_S: Final = 60.0
CALL_S: Final = PATIENCE_S
_POLL_S: Final = 0.005
# What the kubelet masks by default (pkg/securitycontext in Kubernetes).
MASKED: Final = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
)
READONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_CHANNEL: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a daemon that was restarted is met afresh
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a container's log; ``tag`` is F, or P for a part of a longer line."""

    stream: str
    tag: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox that was run, with what it was made from."""

    id: str
    config: pb.PodSandboxConfig


@dataclass
class Events:
    """What GetContainerEvents has sent since it was subscribed."""

    seen: list[pb.ContainerEventResponse] = field(default_factory=list)
    _incoming: queue.Queue[pb.ContainerEventResponse] = field(default_factory=queue.Queue)

    def until(self, wanted: Callable[[pb.ContainerEventResponse], bool], timeout_s: float = PATIENCE_S) -> None:
        """Take events until one is as wanted. Raises queue.Empty when none comes."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.seen.append(self._incoming.get(timeout=max(0.0, deadline - time.monotonic())))
            if wanted(self.seen[-1]):
                return

    def of(self, object_id: str) -> list[str]:
        """The kinds of the events about an object, in order: CREATED, STARTED …"""
        words = [(event.container_id, pb.ContainerEventType.Name(event.container_event_type)) for event in self.seen]
        return [word.removeprefix("CONTAINER_").removesuffix("_EVENT") for name, word in words if name == object_id]


class Kubelet:
    """One node agent on one socket. ``logs``: where it has containers log; ``cgroup_parent``: for its pods, the path of
    a slice for the driver systemd."""

    def __init__(self, socket: str, logs: Path, cgroup_parent: str) -> None:
        self.socket, self.logs, self.cgroup_parent = socket, logs, cgroup_parent
        self._pods: dict[str, Pod] = {}
        self._channel: grpc.Channel | None = None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """An RPC of either service; ``deadline_s`` is the caller's patience, all else fields of the request."""
        service = "ImageService" if "Image" in method else "RuntimeService"
        stub = getattr(getattr(services, f"{service}Stub")(self.channel), method)
        request = getattr(pb, "GetEventsRequest" if method == "GetContainerEvents" else f"{method}Request")

        def call(deadline_s: float = CALL_S, **fields: Any) -> Any:
            return stub(request(**fields), timeout=deadline_s, wait_for_ready=True)

        return call

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.socket}", options=_CHANNEL)
        return self._channel

    def disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Kubelet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()

    # --------------------------------------------------------------- configs

    def group_of(self, uid: str) -> str:
        """A pod's cgroup_parent in the form that the driver wants (kubelet, pkg/kubelet/cm, ToSystemd)."""
        if not self.cgroup_parent.endswith(".slice"):
            return f"{self.cgroup_parent}/pod{uid}"
        above = self.cgroup_parent.rsplit("/", 1)[-1].removesuffix(".slice")
        return f"{above}-pod{uid.replace('-', '_')}.slice"

    def pod_config(self, name: str = "", **fields: Any) -> pb.PodSandboxConfig:
        """A pod on the pod network with a cgroup of its own. Fields of LinuxPodSandboxConfig go into ``linux``."""
        uid = str(uuid.uuid4())
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name or f"pod-{uid[:8]}", namespace="default", uid=uid),
            hostname="test-pod",
            log_directory=str(self.logs / uid),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=self.group_of(uid),
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=namespaces(),
                    seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
                ),
            ),
        )
        config.MergeFrom(pb.PodSandboxConfig(**fields))
        return config

    def container_config(
        self, *command: str, name: str = "main", image: str = BUSYBOX, **fields: Any
    ) -> pb.ContainerConfig:
        """A container as a kubelet without wishes asks for it; given fields are merged over it."""
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=image, user_specified_image=image),
            command=command,
            log_path=f"{name}/0.log",
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(cpu_shares=102, cpu_period=100_000),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=namespaces(), masked_paths=MASKED, readonly_paths=READONLY
                ),
            ),
        )
        config.MergeFrom(pb.ContainerConfig(**fields))
        return config

    # ----------------------------------------------------------------- verbs

    def run_pod(self, config: pb.PodSandboxConfig | None = None, handler: str = "", **fields: Any) -> Pod:
        config = config or self.pod_config(**fields)
        pod = Pod(self.RunPodSandbox(config=config, runtime_handler=handler).pod_sandbox_id, config)
        self._pods[pod.id] = pod
        return pod

    def create(self, pod: Pod, *command: str, config: pb.ContainerConfig | None = None, **fields: Any) -> str:
        config = config or self.container_config(*command, **fields)
        self.make_log_directory(pod, config)
        made = self.CreateContainer(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        return str(made.container_id)

    @staticmethod
    def make_log_directory(pod: Pod, config: pb.ContainerConfig) -> None:
        if pod.config.log_directory and config.log_path:
            (Path(pod.config.log_directory) / config.log_path).parent.mkdir(parents=True, exist_ok=True)

    def start(self, container_id: str) -> None:
        self.StartContainer(container_id=container_id)

    def run(self, pod: Pod, *command: str, **fields: Any) -> str:
        """Create and start; ``fields`` as for ``create``."""
        container_id = self.create(pod, *command, **fields)
        self.start(container_id)
        return container_id

    def stop(self, container_id: str, timeout_s: int = 0) -> None:
        self.StopContainer(container_id=container_id, timeout=timeout_s)

    def remove(self, container_id: str) -> None:
        self.RemoveContainer(container_id=container_id)

    def stop_pod(self, pod: Pod) -> None:
        self.StopPodSandbox(pod_sandbox_id=pod.id)

    def remove_pod(self, pod: Pod) -> None:
        self.StopPodSandbox(pod_sandbox_id=pod.id)
        self.RemovePodSandbox(pod_sandbox_id=pod.id)
        self._pods.pop(pod.id, None)

    def exec(self, container_id: str, *command: str, timeout_s: int = 50) -> pb.ExecSyncResponse:
        return self.ExecSync(container_id=container_id, cmd=command, timeout=timeout_s)

    def shell(self, container_id: str, script: str) -> str:
        """The output of a script that must succeed in a running container."""
        answer = self.exec(container_id, "sh", "-c", script)
        assert answer.exit_code == 0, (script, answer)
        return answer.stdout.decode()

    def outcome(self, pod: Pod, *command: str, **fields: Any) -> tuple[pb.ContainerStatus, str]:
        """Run a container to its end: its status and what it wrote to stdout."""
        container_id = self.run(pod, *command, **fields)
        status = self.wait(container_id)
        lines = [
            line.text + (b"\n" if line.tag == "F" else b"")
            for line in self.log(container_id)
            if line.stream == "stdout"
        ]
        return status, b"".join(lines).decode()

    def pull(self, image: str, **fields: Any) -> str:
        return str(self.PullImage(image=pb.ImageSpec(image=image), **fields).image_ref)

    # --------------------------------------------------------------- looking

    def status(self, container_id: str) -> pb.ContainerStatus:
        return self.ContainerStatus(container_id=container_id).status

    def pod_status(self, pod: Pod) -> pb.PodSandboxStatus:
        return self.PodSandboxStatus(pod_sandbox_id=pod.id).status

    def wait(self, container_id: str, state: int = pb.CONTAINER_EXITED) -> pb.ContainerStatus:
        """The status once the container is in ``state``."""
        return wait_for(lambda: self.status(container_id), lambda status: status.state == state)

    def log_file(self, container_id: str) -> Path:
        return Path(self.status(container_id).log_path)

    def log(self, container_id: str) -> list[Line]:
        return parse_log(self.log_file(container_id).read_bytes())

    @contextlib.contextmanager
    def events(self) -> Iterator[Events]:
        """Subscribed once the body runs: everything that happens from then on is seen."""
        stream = self.GetContainerEvents(deadline_s=120.0)
        taken = Events()

        def pump() -> None:
            with contextlib.suppress(grpc.RpcError):
                for event in stream:
                    taken._incoming.put(event)

        thread = threading.Thread(target=pump, name="events")
        thread.start()
        try:
            self._await_subscription(stream)
            yield taken
        finally:
            stream.cancel()
            thread.join()

    def _await_subscription(self, stream: Any) -> None:
        """The server sends its headers when the call has begun; calls on one connection begin in their order."""
        self.Version()

    # --------------------------------------------------------------- the end

    def sweep(self) -> None:
        """Stop and remove every sandbox that there is."""
        for item in self.ListPodSandbox().items:
            self.StopPodSandbox(pod_sandbox_id=item.id)
            self.RemovePodSandbox(pod_sandbox_id=item.id)
        self._pods.clear()


def namespaces(**modes: Any) -> pb.NamespaceOption:
    """The kubelet's defaults: network and ipc of the pod, a pid namespace for each container."""
    return pb.NamespaceOption(**{"network": pb.POD, "pid": pb.CONTAINER, "ipc": pb.POD, **modes})


def parse_log(content: bytes) -> list[Line]:
    """CRI's log format: TIME STREAM TAG TEXT."""
    lines = []
    for line in content.split(b"\n"):
        if line:
            _, stream, tag, text = line.split(b" ", 3)
            lines.append(Line(stream.decode(), tag.decode(), text))
    return lines


def wait_for(look: Callable[[], Any], wanted: Callable[[Any], bool], timeout_s: float = PATIENCE_S) -> Any:
    """Look until what is seen is as wanted; returns it. Fails with what was seen last."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        if wanted(seen):
            return seen
        assert time.monotonic() < deadline, f"not within {timeout_s} s; last seen: {seen}"
        time.sleep(_POLL_S)


@contextlib.contextmanager
def refused(code: str, *parts: str) -> Iterator[None]:
    """The body's call is answered with a status of this code, whose text contains all ``parts``."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    error: Any = caught.value
    told = f"{error.code().name}: {error.details()}"
    assert error.code().name == code, told
    for part in parts:
        assert part in error.details(), f"{part!r} is not in: {told}"
