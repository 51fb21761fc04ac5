"""The composition root: builds every object from Config, starts in order, stops in reverse."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import platform
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import uvloop

from cri_py import __version__, telemetry
from cri_py.cgroups import Cgroups, detect
from cri_py.config import Config
from cri_py.errors import CriError, FailedPrecondition
from cri_py.images.exchange import Exchange
from cri_py.images.service import Images
from cri_py.kernel import capabilities, faults, procfs, syscalls
from cri_py.kernel.holder import write_program
from cri_py.kernel.notify import notify
from cri_py.model import Container, Created, Exited, Features, ImageId, Lost, Nanos, Ready, Running
from cri_py.monitor.client import SpawnerClient
from cri_py.network.bridge import Bridge
from cri_py.network.cni.wires import Cni
from cri_py.network.hostports import HostPorts
from cri_py.network.pod_network import PodNetwork
from cri_py.network.wires import Wires
from cri_py.pods import apparmor, cgroup_drivers, selinux
from cri_py.pods.bundles import Bundles
from cri_py.pods.containers import Containers
from cri_py.pods.events import Events
from cri_py.pods.ledger import DATABASE, Ledger
from cri_py.pods.metrics import PodMetrics
from cri_py.pods.monitors import Monitors
from cri_py.pods.node import Node
from cri_py.pods.places import Places
from cri_py.pods.recovery import Recovery
from cri_py.pods.sandboxes import Sandboxes
from cri_py.pods.spec import SpecDefaults
from cri_py.pods.stats import Statistics
from cri_py.pods.stats_layers import Layers
from cri_py.pods.streams import Streams
from cri_py.pods.trash import Trash
from cri_py.pods.updates import Updates
from cri_py.rpc import cadvisor, tracing
from cri_py.rpc.convert import decode_container_config, decode_sandbox_config
from cri_py.rpc.image_service import ImageService
from cri_py.rpc.metrics import MetricsServer
from cri_py.rpc.own_exchange import Changed, OwnExchange
from cri_py.rpc.own_images import OwnImages
from cri_py.rpc.runtime_service import RuntimeService
from cri_py.rpc.server import IMAGE, OWN_EXCHANGE, OWN_IMAGES, RUNTIME, Server
from cri_py.state.claim import claimed
from cri_py.state.store import Store
from cri_py.streaming.front import Front
from cri_py.streaming.sessions import Sessions

log = structlog.get_logger()
_SETTLE_S = 10.0  # for what is half made when the daemon is told to end


def serve(config: Config, spawner: SpawnerClient, features: Features) -> int:
    """Run the daemon until SIGTERM or SIGINT; returns the exit status.

    ``spawner`` was started and ``features`` were tried by the caller, before this module and with it grpc was imported.
    """
    telemetry.configure_logging(config.log.level, config.log.format)
    telemetry.set_version(__version__)
    telemetry.SPAWNER_STARTS.inc()
    spawner.on_start = telemetry.SPAWNER_STARTS.inc
    faults.arm(faults.DAEMON)
    _raise_file_limit()
    try:
        uvloop.run(_serve(config, spawner, features))
    except BaseExceptionGroup as group:
        # The task group wraps what stopped the start; a person wants the one error that says what to do.
        known, _ = group.split(CriError)
        if known is None:
            raise
        raise next(_leaves(known)) from group
    return 0


def _leaves(group: BaseExceptionGroup[CriError]) -> Iterator[CriError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _serve(config: Config, spawner: SpawnerClient, features: Features) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.set_default_executor(ThreadPoolExecutor(4, thread_name_prefix="blocking"))
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        stack.callback(spawner.close)
        if (spans := tracing.start(os.environ)) is not None:
            stack.push_async_callback(spans.stop)
        _claim_directories(config, stack)
        await App(config, spawner, features, tasks).start(stack)
        gc.collect()
        gc.freeze()  # what a daemon holds from its start is never garbage: no collection has to walk it
        notify("READY=1")
        log.info("ready", listen=config.listen, root=config.server.root, state=config.server.state)
        await stopped.wait()
        notify("STOPPING=1")
        log.info("stopping; pods live on")
        await stack.aclose()


class App:
    """All parts of one daemon."""

    def __init__(self, config: Config, spawner: SpawnerClient, features: Features, tasks: asyncio.TaskGroup) -> None:
        self._config = config
        self._features = features
        self._spawner = spawner
        self._tasks = tasks
        self._memory = 0.0
        _make_directories(config)
        self._build()

    def _build(self) -> None:
        """From the bottom up: what a part is given exists before it."""
        cgroups = detect()
        defaults = spec_defaults(self._config, type(cgroups).__name__, self._features)
        self._build_floor(cgroups, defaults)
        self._build_pods(defaults)
        self.streams = Streams(
            self.ledger,
            self.monitors,
            self.containers.execs,
            self._config.streaming.idle_timeout_s,
        )
        self.front = Front(self._config.streaming, Sessions(time.monotonic), self.streams.hand_over)
        self.streams.open = self.front.open
        self.statistics = Statistics(
            cgroups=cgroups,
            ledger=self.ledger,
            events=self.events,
            layers=Layers(self.places, clock, self._config.runtime.stats_period_s),
            clock=clock,
            period_s=self._config.runtime.stats_period_s,
        )
        self.metrics = PodMetrics(
            ledger=self.ledger, statistics=self.statistics, layers_directory=self.places.containers, clock=clock
        )
        self.node = Node(self._config, cgroups, self.network, self._features, self.groups.driver)
        self.monitors.on_exit = self.containers.on_exit
        self.monitors.on_lost = self.sandboxes.lost
        self.monitors.on_holder_exit = self.sandboxes.holder_died

    def _build_floor(self, cgroups: Cgroups, defaults: SpecDefaults) -> None:
        """What pods stand on."""
        config = self._config
        root, state = config.server.root, config.server.state
        self.places = Places(root, state)
        self.pod_store = Store(f"{root}/{DATABASE}", durable=False)
        self.image_store = Store(f"{root}/images.db", durable=True)
        self.ledger = Ledger(self.pod_store, decode_sandbox_config, decode_container_config)
        self.network = PodNetwork(self._wires(), HostPorts(config.network.bridge))
        self.groups = cgroup_drivers.groups(config.cgroups, cgroups, self.places)
        self.bundles = Bundles(self.places, defaults, config.runtime)
        self.trash = Trash(self.places.trash, self.places.pods_trash)
        self.events = Events()
        self.monitors = Monitors(self._tasks)
        self.images = Images(f"{root}/images", config.images, self.image_store, self._in_use, clock)

    def _wires(self) -> Wires:
        """What the config chooses to attach pods by."""
        config, state = self._config, self._config.server.state
        if config.network.plugin == "cni":
            return Cni(config.network, config.netns_dir, state, config.cni_cache_dir, self._tasks)
        return Bridge(config.network, config.netns_dir, state, f"{config.server.root}/pod-cidrs.json")

    def _build_pods(self, defaults: SpecDefaults) -> None:
        self.containers = Containers(
            config=self._config.runtime,
            places=self.places,
            ledger=self.ledger,
            images=self.images,
            monitors=self.monitors,
            groups=self.groups,
            bundles=self.bundles,
            trash=self.trash,
            events=self.events,
            clock=clock,
        )
        self.sandboxes = Sandboxes(
            config=self._config.runtime,
            defaults=defaults,
            places=self.places,
            ledger=self.ledger,
            containers=self.containers,
            monitors=self.monitors,
            spawner=self._spawner,
            network=self.network,
            groups=self.groups,
            trash=self.trash,
            events=self.events,
            clock=clock,
        )

    def _recovery(self) -> Recovery:
        return Recovery(
            places=self.places,
            ledger=self.ledger,
            monitors=self.monitors,
            network=self.network,
            groups=self.groups,
            bundles=self.bundles,
            trash=self.trash,
            timeout_s=self._config.runtime.monitor_timeout_s,
            clock=clock,
        )

    def _in_use(self) -> set[ImageId]:
        return self.containers.image_ids_in_use()

    def _changes_of(self, container_id: str) -> Changed:
        container = self.containers.find(container_id)
        return Changed(container.id, container.image_id, f"{self.places.writable(container.id)}/upper")

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything in order; each part's end goes onto ``stack``."""
        stack.callback(self.pod_store.close)
        stack.callback(self.image_store.close)
        stack.callback(self.groups.close)
        stack.callback(self.bundles.close)
        stack.callback(self.trash.close)
        self._tasks.create_task(self.bundles.warm())
        await self.images.start()
        stack.push_async_callback(self.images.close)
        await self.network.start()
        stack.push_async_callback(self.network.stop)
        stack.callback(self.monitors.close)
        begun = time.monotonic()
        await self._recovery().run()
        self.groups.sweep_soon()
        telemetry.RECOVERY_SECONDS.set(time.monotonic() - begun)
        self._expose()
        metrics = MetricsServer(self._config, self._container_series)
        await metrics.start()
        stack.callback(metrics.stop)
        for part in (self.sandboxes, self.containers):
            stack.push_async_callback(part.settle, _SETTLE_S)
        await self.front.start()
        stack.push_async_callback(self.front.stop)
        self.statistics.start(self._tasks)
        stack.push_async_callback(self.statistics.stop)
        exchange = Exchange(self.images, f"{self._config.server.root}/images")
        stack.callback(exchange.close)
        services = {
            RUNTIME: self._runtime_service(),
            IMAGE: ImageService(self.images),
            OWN_IMAGES: OwnImages(self.images),
            OWN_EXCHANGE: OwnExchange(exchange, self._changes_of),
        }
        server = Server(self._config, services)
        await server.start()
        stack.push_async_callback(server.stop)
        await server.set_serving(True)

    def _runtime_service(self) -> RuntimeService:
        return RuntimeService(
            sandboxes=self.sandboxes,
            containers=self.containers,
            streams=self.streams,
            updates=Updates(self.ledger, self.groups, self.containers.execs.forget),
            statistics=self.statistics,
            metrics=self.metrics,
            events=self.events,
            node=self.node,
        )

    async def _container_series(self, accept: str) -> tuple[str, bytes]:
        """/metrics/cadvisor. Its text is megabytes on a full node, so it is written on a thread."""
        found = await self.metrics.sandboxes()
        return await asyncio.get_running_loop().run_in_executor(None, cadvisor.exposition, found, accept)

    def _expose(self) -> None:
        """Gauges are read when somebody looks."""
        telemetry.PODS.read_by(self._count_pods)
        telemetry.CONTAINERS.read_by(self._count_containers)
        telemetry.IMAGES.read_by(lambda: {"": float(len(self.images.list()))})
        telemetry.PULLS.read_by(lambda: {"": float(len(self.images.progress.under_way()))})
        telemetry.PULL_PROGRESS.read_by(self.images.progress.totals)
        telemetry.EVENT_QUEUE_DEPTH.read_by(lambda: {"": float(self.events.depth())})
        telemetry.MONITORS.read_by(lambda: {"": float(len(self.monitors.pids()))})
        telemetry.STORE_BYTES.read_by(lambda: {each.name: each.size() for each in (self.pod_store, self.image_store)})
        telemetry.MONITOR_MEMORY.read_by(self._monitor_memory)

    def _monitor_memory(self) -> dict[str, float]:
        """The last reading; a scrape asks for the next one, on a thread, since it is a file per pod."""
        pids = [*self.monitors.pids(), self._spawner.pid]
        reading = asyncio.get_running_loop().run_in_executor(None, _pss_bytes, pids)
        reading.add_done_callback(self._keep_memory)
        return {"": self._memory}

    def _keep_memory(self, reading: asyncio.Future[float]) -> None:
        if not reading.cancelled():
            self._memory = reading.result()

    def _count_pods(self) -> dict[str, float]:
        ready = sum(isinstance(sandbox.state, Ready) for sandbox in self.ledger.sandboxes())
        return {"ready": float(ready), "notready": float(len(self.ledger.sandboxes()) - ready)}

    def _count_containers(self) -> dict[str, float]:
        counts = {state.__name__.lower(): 0.0 for state in (Created, Running, Exited, Lost)}
        for container in self.ledger.containers():
            counts[_state_of(container)] += 1
        return counts


def _state_of(container: Container) -> str:
    return type(container.state).__name__.lower()


def _pss_bytes(pids: list[int]) -> float:
    """The proportional memory of processes, together; those that have ended count nothing."""
    return float(sum(procfs.pss(pid) or 0 for pid in pids))


def clock() -> Nanos:
    """Unix time in nanoseconds."""
    return Nanos(time.time_ns())


def spec_defaults(config: Config, cgroups: str, features: Features) -> SpecDefaults:
    """What the node's config and kernel decide for every container."""
    return SpecDefaults(
        seccomp=config.runtime.seccomp,
        nofile=config.runtime.nofile,
        arch=platform.machine(),
        kernel=_kernel_version(platform.release()),
        capabilities=capabilities.names(syscalls.capget()[1]),
        cgroup_version=2 if cgroups == "V2" else 1,
        apparmor=apparmor.enabled(),
        apparmor_profile=apparmor.load_default(config.runtime.apparmor_profile, config.server.state),
        selinux=selinux.read_policy() if config.runtime.selinux else None,
        node_hostname=platform.node(),
        features=features,
    )


def _kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of what uname(2) says: 6.1.0-13-amd64."""
    major, minor = release.split(".")[:2]
    return int(major), int("".join(itertools.takewhile(str.isdigit, minor)))


def _claim_directories(config: Config, stack: AsyncExitStack) -> None:
    """Make root and state and keep other daemons out of them, before anything in them is looked at.

    The root is private; the state may be walked through, as sockets and volumes lie below.
    """
    places = {config.server.root: 0o700, config.server.state: 0o711}
    for directory, mode in places.items():
        try:
            Path(directory).mkdir(parents=True, exist_ok=True, mode=mode)
        except OSError as error:
            raise FailedPrecondition(
                f"{directory} can't be made: {error.strerror}", hint="choose another place by --root or --state"
            ) from error
    for directory in sorted({os.path.realpath(directory) for directory in places}):
        stack.enter_context(claimed(directory))


def _make_directories(config: Config) -> None:
    root, state = Path(config.server.root), Path(config.server.state)
    for name in ("containers", "trash"):
        (root / name).mkdir(exist_ok=True, mode=0o700)
    for name in ("pods", "trash", "seccomp"):
        (state / name).mkdir(exist_ok=True, mode=0o711)
    write_program(Places(config.server.root, config.server.state).holder_program)


def _raise_file_limit() -> None:
    """Every pod costs a few descriptors here; containers get a limit of their own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
