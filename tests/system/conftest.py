"""A registry, a daemon for all tests and, for those that kill it, daemons of their own; each test leaves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence

import pytest

from tests.simulators.busybox import BUSYBOX, CUSTOM, push_images
from tests.simulators.kubelet import Kubelet, Pod
from tests.simulators.registry import RegistrySimulator
from tests.system import peer
from tests.system.daemon import Daemon

_OFFSET = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/system/" in item.path.as_posix():
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.system)
    if config.getoption("--peer"):
        peer.leave_out(config, items)


@pytest.fixture(scope="session")
def registry() -> Iterator[RegistrySimulator]:
    """Serves registry.test/busybox:1 and registry.test/custom:1."""
    with RegistrySimulator() as simulator:
        push_images(simulator)
        yield simulator


def _serve(daemon: Daemon) -> None:
    daemon.start()
    daemon.kubelet.pull(BUSYBOX)
    daemon.kubelet.pull(CUSTOM)
    daemon.kubelet.remove_pod(daemon.kubelet.run_pod())  # what is made once is made
    daemon.remember()


@pytest.fixture(scope="session")
def daemon(request: pytest.FixtureRequest, registry: RegistrySimulator) -> Iterator[Daemon]:
    """One for all tests; it must not be killed. Tests ask for ``kubelet``, which cleans up after each."""
    serving = Daemon(registry.url)
    try:
        if request.config.getoption("--alone"):
            serving.make_cgroup_parent()
        _serve(serving)
        yield serving
    finally:
        serving.destroy()


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest, registry: RegistrySimulator) -> Iterator[Daemon | Kubelet]:
    """The session's daemon, or the other runtime that --peer names."""
    runtime = request.config.getoption("--peer")
    if not runtime:
        yield request.getfixturevalue("daemon")
        return
    with peer.serving(runtime, registry) as driving:
        driving.pull(BUSYBOX)
        driving.pull(CUSTOM)
        yield driving


@pytest.fixture
def kubelet(request: pytest.FixtureRequest, served: Daemon | Kubelet) -> Iterator[Kubelet]:
    """Drives the session's daemon. Afterwards every pod is removed, and nothing of them is left."""
    if isinstance(served, Kubelet):
        yield served
        served.sweep()
        return
    request.node.stash[_OFFSET] = served.log_file.stat().st_size
    yield served.kubelet
    served.kubelet.sweep()
    lines = served.left_over()
    if lines:
        pytest.fail("the daemon left behind:\n  " + "\n  ".join(lines), pytrace=False)


@pytest.fixture
def pod(kubelet: Kubelet) -> Pod:
    """A sandbox without wishes."""
    return kubelet.run_pod()


@pytest.fixture
def fresh_daemon(registry: RegistrySimulator) -> Iterator[Daemon]:
    """A daemon of the test's own, to be killed and restarted at will, with both images pulled. Leaks are looked for."""
    serving = Daemon(registry.url)
    try:
        _serve(serving)
        yield serving
        if serving.running:
            serving.kubelet.sweep()
            lines = serving.left_over()
            if lines:
                pytest.fail("the daemon left behind:\n  " + "\n  ".join(lines), pytrace=False)
    finally:
        serving.destroy()


@pytest.fixture
def make_daemon(registry: RegistrySimulator) -> Iterator[Callable[..., Daemon]]:
    """Daemons with settings of their own, given as TOML, or with the plugins ``cni`` to attach pods."""
    with _making(registry, keep_parents=False) as make:
        yield make


@pytest.fixture(scope="module")
def make_shared_daemon(request: pytest.FixtureRequest, registry: RegistrySimulator) -> Iterator[Callable[..., Daemon]]:
    """As ``make_daemon``, for all tests of a file: they must not kill it, and leave nothing in it."""
    with _making(registry, keep_parents=bool(request.config.getoption("--alone"))) as make:
        yield make


@contextlib.contextmanager
def _making(registry: RegistrySimulator, *, keep_parents: bool) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(settings: str = "", *, cni: Sequence[str] = ()) -> Daemon:
        made.append(Daemon(registry.url, settings, cni=cni))
        if keep_parents:
            made[-1].make_cgroup_parent()
        _serve(made[-1])
        return made[-1]

    try:
        yield make
    finally:
        for serving in made:
            serving.destroy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what its daemon logged meanwhile."""
    report = yield
    if report.failed:
        arguments = getattr(item, "funcargs", {})
        for name in ("kubelet", "fresh_daemon"):
            daemon = arguments.get(name)
            if isinstance(daemon, Daemon) and daemon.log_file.exists():
                report.sections.append((f"log of {name}", daemon.log_since(item.stash.get(_OFFSET, 0))[-6000:]))
    return report
