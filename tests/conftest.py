"""For all tests: what touches the kernel leaves nothing behind, and root on Linux skips nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests import leaks

# Tests fork, and a fork of a process that has grpc in it runs grpc's own hooks, which start threads in the child.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

GUARDED = ("kernel", "system")
_skipped: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--alone",
        action="store_true",
        help="nobody else uses this machine: look for leaked mounts, cgroups, interfaces and processes everywhere",
    )
    parser.addoption("--peer", choices=("runc", "crun"), help="ask tests/system of Debian's containerd instead of ours")
    parser.addoption("--guest", action="store_true", help="run tests/guest too: minutes, in a machine of its own")


@pytest.fixture(autouse=True)
def _leak_free(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test of tests/kernel or tests/system that leaves a descriptor, child, mount, cgroup, netns or process."""
    parts = request.path.relative_to(request.config.rootpath).parts
    peer = request.config.getoption("--peer")  # a client of it keeps connections; what it leaves is its own affair
    if not sys.platform.startswith("linux") or parts[1] not in GUARDED or peer:
        yield
        return
    alone, temporary = bool(request.config.getoption("--alone")), tmp_path_factory.getbasetemp()
    before = leaks.take(alone, temporary)
    yield
    lines = leaks.left_over(before, lambda: leaks.take(alone, temporary))
    if lines:
        pytest.fail("left behind:\n  " + "\n  ".join(lines), pytrace=False)


# ------------------------------------------------------------------- skips


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--guest"):
        _leave_out_the_guest(config, items)
    if _is_root_on_linux():
        return
    for item in items:
        if item.get_closest_marker("root") or item.get_closest_marker("system"):
            item.add_marker(pytest.mark.skip(reason="needs root on Linux"))


def _leave_out_the_guest(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Unless it is asked for: what runs inside runs outside as well, and takes a tenth of the time."""
    left_out = [item for item in items if item.get_closest_marker("guest")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("guest")]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip is for other systems and other users; here it would hide that nothing was tested."""
    if _is_root_on_linux() and _skipped and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _is_root_on_linux() and _skipped:
        terminalreporter.section("skipped, though root on Linux must skip nothing", red=True)
        for name in _skipped:
            terminalreporter.line(name)


def _is_root_on_linux() -> bool:
    return sys.platform.startswith("linux") and os.geteuid() == 0
