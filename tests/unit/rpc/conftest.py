"""Simulators of what stands below the gRPC edge, behind a real server on a unix socket."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from cri_py import model
from cri_py.config import Config, ServerConfig
from cri_py.errors import NotFound
from cri_py.images.progress import LayerProgress
from cri_py.pods.metrics import SandboxMetrics
from cri_py.pods.stats import ContainerUsage, SandboxUsage
from cri_py.rpc.gen import api_pb2_grpc
from cri_py.rpc.image_service import ImageService
from cri_py.rpc.runtime_service import RuntimeService
from cri_py.rpc.server import IMAGE, RUNTIME, Server

IMAGE_ID = model.ImageId("sha256:" + "a" * 64)


def make_sandbox(number: int, **changes: object) -> model.Sandbox:
    sandbox = model.Sandbox(
        id=model.SandboxId(f"{number:064x}"),
        config=model.SandboxConfig(
            metadata=model.SandboxMetadata(f"pod-{number}", f"uid-{number}", "default", 1),
            labels={"app": f"app-{number}"},
            annotations={"note": "kept"},
        ),
        runtime_handler="",
        created_at=model.Nanos(1_700_000_000_000_000_000 + number),
        state=model.Ready(10, 11),
        attachment=model.Attachment("/run/netns/x", ("10.85.0.2", "fd00::2")),
    )
    return dataclasses.replace(sandbox, **changes)  # type: ignore[arg-type]


def make_container(number: int, sandbox_id: str = "f" * 64, **changes: object) -> model.Container:
    container = model.Container(
        id=model.ContainerId(f"{number:064x}"),
        sandbox_id=model.SandboxId(sandbox_id),
        config=model.ContainerConfig(
            metadata=model.ContainerMetadata(f"container-{number}", 2),
            image=model.ImageSpec(IMAGE_ID, user_specified_image="busybox"),
            labels={"app": "web"},
        ),
        image_id=IMAGE_ID,
        image_ref="docker.io/library/busybox:latest",
        created_at=model.Nanos(5),
        state=model.Created(),
        log_path="/var/log/pods/x/0.log",
        cgroup="/cri_py/x",
        user=model.User(1000, 1001, (1002,)),
        resources=model.LinuxResources(cpu_shares=512, memory_limit_in_bytes=1 << 30),
    )
    return dataclasses.replace(container, **changes)  # type: ignore[arg-type]


def make_image(user: str = "", **changes: object) -> model.Image:
    image = model.Image(
        id=IMAGE_ID,
        repo_tags=("docker.io/library/busybox:latest",),
        repo_digests=("docker.io/library/busybox@sha256:" + "b" * 64,),
        size=4711,
        config=model.ImageConfig(user=user),
        chain_ids=(),
    )
    return dataclasses.replace(image, **changes)  # type: ignore[arg-type]


class SimulatedSandboxes:
    """Keeps sandboxes in a dict; ``during_run`` stands for the work of a run."""

    def __init__(self) -> None:
        self.here: dict[str, model.Sandbox] = {}
        self.configs: list[model.SandboxConfig] = []
        self.during_run: Callable[[], object] = lambda: None

    async def run(self, config: model.SandboxConfig, handler: str) -> model.SandboxId:
        work = self.during_run()
        if asyncio.iscoroutine(work):
            await work
        self.configs.append(config)
        sandbox = make_sandbox(len(self.configs), config=config, runtime_handler=handler)
        self.here[sandbox.id] = sandbox
        return sandbox.id

    async def stop(self, wanted: str) -> None:
        if wanted in self.here:
            stopped = model.NotReady(model.Nanos(7), "stopped")
            self.here[wanted] = dataclasses.replace(self.here[wanted], state=stopped)

    async def remove(self, wanted: str) -> None:
        self.here.pop(wanted, None)

    def find(self, wanted: str) -> model.Sandbox:
        if wanted not in self.here:
            raise NotFound(f"sandbox {wanted} does not exist")
        return self.here[wanted]

    def list(self, wanted: model.SandboxFilter) -> list[model.Sandbox]:
        return [s for s in self.here.values() if wanted.ready in {None, isinstance(s.state, model.Ready)}]

    def verbose(self, sandbox: model.Sandbox) -> dict[str, str]:
        return {"info": sandbox.id}


class SimulatedContainers:
    """Keeps containers in a dict."""

    def __init__(self) -> None:
        self.here: dict[str, model.Container] = {}
        self.configs: list[model.ContainerConfig] = []
        self.stop_timeouts: list[int] = []
        self.result = model.ExecResult(b"out\xff", b"err\xfe", 3)

    async def create(
        self, sandbox_id: str, config: model.ContainerConfig, sandbox_config: model.SandboxConfig | None
    ) -> model.ContainerId:
        self.configs.append(config)
        container = make_container(len(self.configs), sandbox_id, config=config)
        self.here[container.id] = container
        return container.id

    async def start(self, wanted: str) -> None:
        state = model.Running(42, 1, model.Nanos(6))
        self.here[wanted] = dataclasses.replace(self.find(wanted), state=state)

    async def stop(self, wanted: str, timeout_s: int) -> None:
        self.stop_timeouts.append(timeout_s)

    async def remove(self, wanted: str) -> None:
        self.here.pop(wanted, None)

    def find(self, wanted: str) -> model.Container:
        if wanted not in self.here:
            raise NotFound(f"container {wanted} does not exist")
        return self.here[wanted]

    def list(self, wanted: model.ContainerFilter) -> list[model.Container]:
        return [
            c
            for c in self.here.values()
            if c.sandbox_id.startswith(wanted.sandbox_id)
            and (wanted.state is None or isinstance(c.state, wanted.state))
        ]

    def verbose(self, container: model.Container) -> dict[str, str]:
        return {"info": container.id}

    async def reopen_log(self, wanted: str) -> None:
        self.find(wanted)

    async def exec_sync(self, wanted: str, command: Sequence[str], timeout_s: int) -> model.ExecResult:
        self.find(wanted)
        return self.result


class SimulatedStatistics:
    """Keeps what was measured by id, and what the lists were asked for."""

    def __init__(self) -> None:
        self.of_containers: dict[str, ContainerUsage] = {}
        self.of_sandboxes: dict[str, SandboxUsage] = {}
        self.asked: list[model.ContainerFilter | model.SandboxFilter] = []

    async def container(self, wanted: str) -> ContainerUsage:
        if wanted not in self.of_containers:
            raise NotFound(f"container {wanted} does not exist")
        return self.of_containers[wanted]

    async def containers(self, wanted: model.ContainerFilter) -> list[ContainerUsage]:
        self.asked.append(wanted)
        return list(self.of_containers.values())

    async def sandbox(self, wanted: str) -> SandboxUsage:
        if wanted not in self.of_sandboxes:
            raise NotFound(f"sandbox {wanted} does not exist")
        return self.of_sandboxes[wanted]

    async def sandboxes(self, wanted: model.SandboxFilter) -> list[SandboxUsage]:
        self.asked.append(wanted)
        return list(self.of_sandboxes.values())


class SimulatedUpdates:
    """Keeps what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def container(self, *asked: object) -> None:
        self.asked.append(asked)

    async def sandbox(self, *asked: object) -> None:
        self.asked.append(asked)


class SimulatedMetrics:
    def __init__(self) -> None:
        self.found: list[SandboxMetrics] = []

    async def sandboxes(self) -> list[SandboxMetrics]:
        return self.found


class SimulatedEvents:
    def __init__(self) -> None:
        self.queue: asyncio.Queue[model.Event] = asyncio.Queue()
        self.subscribers = 0
        self.nobody_listens = asyncio.Event()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[model.Event]]:
        self.subscribers += 1
        try:
            yield self._events()
        finally:
            self.subscribers -= 1
            self.nobody_listens.set()

    async def _events(self) -> AsyncIterator[model.Event]:
        while True:
            yield await self.queue.get()


class SimulatedNode:
    def __init__(self) -> None:
        self.pod_cidr = ""
        self.able = model.Features()

    def conditions(self) -> list[model.Condition]:
        return [
            model.Condition("RuntimeReady", True),
            model.Condition("NetworkReady", False, "NoBridge", "crip0 is missing"),
        ]

    def verbose(self) -> dict[str, str]:
        return {"config": "{}"}

    def cgroup_driver(self) -> str:
        return "cgroupfs"

    async def update_pod_cidr(self, cidr: str) -> None:
        self.pod_cidr = cidr

    def handlers(self) -> tuple[str, ...]:
        return ("", "cri_py")

    def features(self) -> model.Features:
        return self.able


class SimulatedStreams:
    """Each URL shows what was asked for."""

    def exec(self, container_id: str, command: Sequence[str], stdio: model.Stdio) -> str:
        return (
            f"http://front/exec/{container_id}/{' '.join(command)}/{stdio.tty}{stdio.stdin}{stdio.stdout}{stdio.stderr}"
        )

    def attach(self, container_id: str, stdio: model.Stdio) -> str:
        return f"http://front/attach/{container_id}/{stdio.tty}{stdio.stdin}{stdio.stdout}{stdio.stderr}"

    def port_forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        return f"http://front/portforward/{sandbox_id}/{','.join(map(str, ports))}"


class SimulatedImages:
    def __init__(self) -> None:
        self.here: dict[str, model.Image] = {}
        self.containers_disk: list[model.FilesystemUsage] = []
        self.auth: model.RegistryAuth | None = None

    async def pull(self, ref: str, auth: model.RegistryAuth | None) -> model.Image:
        self.auth = auth
        self.here[ref] = make_image()
        return self.here[ref]

    def list(self, ref: str = "") -> list[model.Image]:
        return [image for name, image in self.here.items() if ref in {"", name}]

    def find(self, ref_or_id: str) -> model.Image | None:
        return self.here.get(ref_or_id) or next((each for each in self.here.values() if each.id == ref_or_id), None)

    async def remove(self, ref_or_id: str) -> None:
        self.here.pop(ref_or_id, None)

    async def filesystem_usage(self) -> list[model.FilesystemUsage]:
        return [model.FilesystemUsage("/var/lib/cri_py", 10, 20, model.Nanos(30))]

    async def container_filesystem_usage(self) -> list[model.FilesystemUsage]:
        return self.containers_disk

    def progress_of(self, ref: str) -> tuple[LayerProgress, ...]:
        return (LayerProgress(model.Digest("sha256:1"), 10, 5, 2, False),) if ref == "under.way/a:1" else ()

    def verbose(self, image: model.Image) -> dict[str, str]:
        return {"info": image.id}


@dataclasses.dataclass
class World:
    """A server with what stands below it, and a client."""

    server: Server
    socket: Path
    channel: grpc.aio.Channel
    sandboxes: SimulatedSandboxes
    containers: SimulatedContainers
    events: SimulatedEvents
    node: SimulatedNode
    images: SimulatedImages
    statistics: SimulatedStatistics
    metrics: SimulatedMetrics
    updates: SimulatedUpdates

    @property
    def runtime(self) -> api_pb2_grpc.RuntimeServiceStub:
        return api_pb2_grpc.RuntimeServiceStub(self.channel)

    @property
    def image(self) -> api_pb2_grpc.ImageServiceStub:
        return api_pb2_grpc.ImageServiceStub(self.channel)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(server=ServerConfig(listen=f"unix://{tmp_path}/run/cri.sock", shutdown_grace_s=0.2))


@pytest.fixture
async def world(config: Config) -> AsyncIterator[World]:
    sandboxes, containers, events, node, images = (
        SimulatedSandboxes(),
        SimulatedContainers(),
        SimulatedEvents(),
        SimulatedNode(),
        SimulatedImages(),
    )
    statistics, metrics, updates = SimulatedStatistics(), SimulatedMetrics(), SimulatedUpdates()
    services = {
        RUNTIME: RuntimeService(
            sandboxes=sandboxes,
            containers=containers,
            streams=SimulatedStreams(),
            updates=updates,
            statistics=statistics,
            metrics=metrics,
            events=events,
            node=node,
        ),
        IMAGE: ImageService(images),
    }
    server = Server(config, services)
    await server.start()
    await server.set_serving(True)
    size = config.server.max_message_bytes
    options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    async with grpc.aio.insecure_channel(config.listen.replace("unix://", "unix:"), options=options) as channel:
        socket = Path(config.listen.removeprefix("unix://"))
        yield World(server, socket, channel, sandboxes, containers, events, node, images, statistics, metrics, updates)
    await server.stop()


# With --import-mode=importlib a test can't import from here; it takes these makers as fixtures.


@pytest.fixture
def new_sandbox() -> Callable[..., model.Sandbox]:
    return make_sandbox


@pytest.fixture
def new_container() -> Callable[..., model.Container]:
    return make_container


@pytest.fixture
def new_image() -> Callable[..., model.Image]:
    return make_image
