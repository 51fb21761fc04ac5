"""The walls: import-linter's contracts in pyproject.toml, and here what they can't say."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from tests.house.source import ROOT, Module, imports, modules, within

# What runs in spawner, monitor and container: all of these rooms but the daemon's end of the monitor.
CONTAINER_ROOMS = ("cri_py.monitor", "cri_py.runtime", "cri_py.wire", "cri_py.cgroups", "cri_py.kernel")
DAEMON_END = "cri_py.monitor.client"
# What both ends of a monitor's socket use; all else of monitor is out of the daemon's reach.
BOTH_ENDS = ("cri_py.monitor.client", "cri_py.monitor.protocol", "cri_py.monitor.transport")

# Bytes and values in, bytes and values out.
CORES = (
    *("cri_py.errors", "cri_py.model", "cri_py.lifecycle", "cri_py.wire", "cri_py.monitor.protocol"),
    *("cri_py.monitor.crilog", "cri_py.images.reference", "cri_py.images.manifest", "cri_py.images.auth"),
    *("cri_py.images.endpoints", "cri_py.images.proxies", "cri_py.cdi.documents", "cri_py.cdi.edits"),
)
# Pure as they are, but on values that the kernel and cgroups read.
PURE_ON_READINGS = tuple(
    f"cri_py.explain.{name}"
    for name in ("account", "facts", "files", "limits", "origins", "record", "sections", "text", "words")
)
PURE_OF_PODS = ("cri_py.pods.spec", "cri_py.pods.files", "cri_py.pods.seccomp_default")
IMPURE = {
    *("asyncio", "concurrent", "ctypes", "fcntl", "http", "io", "multiprocessing", "os", "pathlib", "random"),
    *("secrets", "select", "selectors", "shutil", "socket", "sqlite3", "ssl", "subprocess", "tempfile"),
    *("threading", "aiohttp", "pyroute2", "grpc"),
}
CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "now", "utcnow"}

# Heavy, or with threads, or nothing that a forked process may have in it.
NEVER_IN_A_MONITOR = (
    *("asyncio", "concurrent", "dataclasses", "inspect", "ssl", "threading", "logging", "hashlib", "subprocess"),
    *("grpc", "google", "pyroute2", "msgspec", "aiohttp", "structlog", "prometheus_client", "cri_py.model"),
)


def is_container_side(module: Module) -> bool:
    return within(module.name, *CONTAINER_ROOMS) and not within(module.name, DAEMON_END)


def is_core(module: Module) -> bool:
    return within(module.name, *CORES) or module.name.startswith(PURE_OF_PODS)


def places(found: list[tuple[Module, int, str]]) -> list[str]:
    return [f"{module.path}:{line}: {what}" for module, line, what in found]


def test_the_contracts_of_import_linter_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [program, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_container_side_imports_only_itself_and_the_standard_library() -> None:
    allowed = {name for name in sys.stdlib_module_names if name not in {"asyncio", "concurrent", "multiprocessing"}}
    found = []
    for module in filter(is_container_side, modules()):
        for name, line in imports(module):
            ours = within(name, "cri_py.errors", *CONTAINER_ROOMS) and not within(name, DAEMON_END)
            if not (ours or name.partition(".")[0] in allowed):
                found.append((module, line, name))
    assert places(found) == []


def test_the_daemon_imports_nothing_of_the_container_side_but_the_monitors_client() -> None:
    found = [
        (module, line, name)
        for module in modules()
        if not is_container_side(module)
        for name, line in imports(module)
        if within(name, "cri_py.runtime") or (within(name, "cri_py.monitor") and not within(name, *BOTH_ENDS))
    ]
    assert places(found) == []


def test_the_cores_know_no_sockets_clocks_files_or_event_loops() -> None:
    found = []
    for module in modules():
        if not (is_core(module) or within(module.name, *PURE_ON_READINGS)):
            continue
        found += [(module, line, name) for name, line in imports(module) if name.partition(".")[0] in IMPURE]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _called(node) in {"open", "input", "print"}:
                found.append((module, node.lineno, f"{_called(node)}()"))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
                found.append((module, node.lineno, f"{ast.unparse(node.func)}()"))
    assert places(found) == []


def test_the_cores_build_on_cores_and_values_only() -> None:
    values = ("cri_py.config", "cri_py.kernel.constants", "cri_py.kernel.capabilities")
    cores = {module.name for module in modules() if is_core(module)}
    found = [
        (module, line, name)
        for module in filter(is_core, modules())
        for name, line in imports(module)
        if within(name, "cri_py") and name not in cores and not within(name, *values)
    ]
    assert places(found) == []


def test_the_daemon_never_forks() -> None:
    """docs/adr/0003-posix-spawn.md: programs are run by posix_spawn or by what does vfork and exec."""
    forbidden = {"os.fork", "os.forkpty", "pty.fork", "pty.spawn", "os.system", "os.popen"}
    found = []
    for module in modules():
        if is_container_side(module):
            continue
        found += [(module, line, name) for name, line in imports(module) if within(name, "multiprocessing", "pty")]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in forbidden:
                found.append((module, node.lineno, ast.unparse(node)))
            if isinstance(node, ast.Attribute) and node.attr == "clone3" and module.name != "cri_py.cli_check":
                found.append((module, node.lineno, "clone3"))
            if isinstance(node, ast.keyword) and node.arg == "preexec_fn":  # makes subprocess fork instead of vfork
                found.append((module, node.value.lineno, "preexec_fn"))
    assert places(found) == []


def test_what_the_spawner_loads_is_light() -> None:
    """Each monitor shares these pages, and an import that starts a thread would make every fork a gamble."""
    code = "import sys, cri_py.monitor.spawner; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280, check=True
    )
    loaded = set(done.stdout.split())
    assert "cri_py.monitor.spawner" in loaded
    assert sorted(loaded.intersection(NEVER_IN_A_MONITOR)) == []


def test_what_a_worker_loads_is_light() -> None:
    """A pull waits for it to start."""
    code = "import sys, cri_py.images.worker; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280, check=True
    )
    heavy = {*NEVER_IN_A_MONITOR, "shutil", "json", "cri_py.config", "cri_py.telemetry"} - {"hashlib"}
    assert sorted(heavy.intersection(done.stdout.split())) == []


def test_the_commands_load_no_grpc_until_they_serve() -> None:
    code = "import sys; from cri_py.cli import run; run(['config', 'default']); sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, timeout=280, check=True)


def test_the_daemon_loads_no_d_bus_until_systemd_makes_its_cgroups() -> None:
    code = "import sys, cri_py.app; sys.exit('jeepney' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True)


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""
