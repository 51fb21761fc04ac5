"""The commands: what they print, and their exit status."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from cri_py import __version__, cli, cli_check
from cri_py.cli_check import Finding, Verdict
from cri_py.config import Config, NetworkConfig, RuntimeConfig, ServerConfig
from cri_py.errors import Unavailable
from cri_py.kernel import steps, syscalls
from cri_py.kernel.notify import notify
from cri_py.model import Features


def run(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    return cli.run(arguments, out), out.getvalue()


class Spawner:
    """Stands for the spawner's client: nothing is executed."""

    started = False

    def start(self) -> None:
        self.started = True


TRIED = Features("no", "no")


class App:
    """Stands for cri_py.app: remembers the config that it was to serve."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served: list[Config] = []
        self.error: Exception | None = None
        module = types.ModuleType("cri_py.app")
        module.serve = self.serve  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "cri_py.app", module)
        monkeypatch.setattr("cri_py.app", module, raising=False)
        monkeypatch.setattr("cri_py.monitor.client.SpawnerClient", Spawner)
        monkeypatch.setattr("cri_py.kernel.features.probe", lambda _root: ("no", "no"))

    def serve(self, config: Config, spawner: Spawner, features: Features) -> int:
        if self.error:
            raise self.error
        assert spawner.started
        assert features == TRIED
        self.served.append(config)
        return 0


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    return App(monkeypatch)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text('[server]\nroot = "/from-file"\nstate = "/state-from-file"\n')
    return file


# ------------------------------------------------------------------- serve


def test_serve_runs_the_daemon_with_files_and_flags(app: App, config_file: Path) -> None:
    flags = ["--root", "/r", "--listen", "unix:///l.sock", "--cgroup-parent", "/p", "--bridge", "b0"]
    more = ["--subnet", "10.9.0.0/24", "--log-level", "debug", "--metrics", "off"]
    assert run("serve", "--config", str(config_file), *flags, *more)[0] == 0
    (config,) = app.served
    assert config.server.root == "/r"
    assert config.server.state == "/state-from-file"
    assert config.listen == "unix:///l.sock"
    assert config.cgroups.parent == "/p"
    assert (config.network.bridge, config.network.subnet) == ("b0", "10.9.0.0/24")
    assert (config.log.level, config.metrics.listen) == ("debug", "off")


def test_directories_may_be_typed_relative(
    app: App, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("serve", "--config", str(config_file), "--root", "./r")
    assert app.served[0].server.root == str(tmp_path / "r")


@pytest.mark.parametrize("flag", ["--root", "--state"])
def test_an_empty_directory_is_not_the_one_where_the_user_stands(
    app: App, config_file: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unset variable in a script, for one."""
    assert run("serve", "--config", str(config_file), flag, "")[0] == cli.USAGE_ERROR
    assert flag in capsys.readouterr().err
    assert not app.served


def test_a_daemon_that_cannot_start_is_told_in_one_line(
    app: App, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.error = Unavailable("x can't be bound", hint="is it in use?")
    assert run("serve", "--config", str(config_file))[0] == 1
    assert capsys.readouterr().err == "cri-py: x can't be bound (is it in use?)\n"


def test_a_wrong_config_ends_with_status_2_before_anything_starts(
    app: App, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text("[server]\nrooot = 1\n")
    assert run("serve", "--config", str(config_file))[0] == cli.USAGE_ERROR
    assert f"{config_file}:2: server.rooot is no key" in capsys.readouterr().err
    assert app.served == []


# ------------------------------------------------------------------ config


def test_config_default_prints_toml() -> None:
    status, text = run("config", "default")
    assert status == 0
    assert "[server]" in text


def test_config_check_names_the_files_that_it_read(config_file: Path) -> None:
    drop_in = config_file.with_name("config.d") / "1.toml"
    drop_in.parent.mkdir()
    drop_in.write_text("network.mtu = 1400\n")
    assert run("config", "check", "--config", str(config_file)) == (0, f"{config_file}, {drop_in}: valid\n")


def test_config_check_and_check_tell_why_systemd_can_not_make_cgroups(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cri_py.pods.cgroup_drivers.lack", lambda cgroups: "systemd is not this node's init")
    config_file.write_text('[cgroups]\ndriver = "systemd"\n')
    assert run("config", "check", "--config", str(config_file))[0] == cli.USAGE_ERROR
    error = capsys.readouterr().err
    assert f"{config_file}:2: the cgroup driver systemd can't be had: systemd is not this node's init" in error
    assert 'set cgroups.driver to "auto"' in error
    status, text = run("check", "--config", str(config_file))
    assert status == 1
    assert "cgroup driver systemd can't be had: systemd is not this node's init" in text
    config_file.write_text('[cgroups]\ndriver = "auto"\n')
    assert "cgroup driver: cgroupfs" in run("check", "--config", str(config_file))[1]


def test_config_show_prints_each_value_with_its_source(config_file: Path) -> None:
    _, text = run("config", "show", "--config", str(config_file), "--bridge", "b0")
    assert f'root = "/from-file"  # {config_file}:2' in text
    assert 'bridge = "b0"  # --bridge' in text


# -------------------------------------------------------------------- help


@pytest.mark.parametrize("command", [["serve"], ["check"], ["config"]])
def test_help_teaches_by_examples(command: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run([*command, "--help"])
    assert ended.value.code == 0
    assert "examples:\n  cri-py" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["serve", "--roo", "/x"], ["config"]])
def test_a_wrong_command_line_ends_with_status_2(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.run(arguments)
    assert ended.value.code == cli.USAGE_ERROR
    assert "usage: cri-py" in capsys.readouterr().err


def test_every_flag_names_a_key_and_tells_its_default() -> None:
    for flag, (path, _, meaning) in cli._FLAGS.items():
        default = getattr(getattr(Config(), path[0]), path[1])
        assert not default or f"(default: {default})" in meaning, flag


def test_version_tells_the_version_and_the_python() -> None:
    assert run("version")[1].startswith(f"cri_py {__version__} (CRI v1, Python 3.")


# ------------------------------------------------------------------- check


def found(config: Config, subject: str) -> Finding:
    (finding,) = [finding for finding in cli_check.findings(config) if finding.subject == subject]
    return finding


def test_a_kernel_that_executes_nothing_in_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vm.memfd_noexec=2 refuses to make what could be executed (proc_sys_vm(5))."""
    create = os.memfd_create

    def refuse(name: str, flags: int) -> int:
        if flags & steps._MFD_EXEC:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return create(name, flags)

    config = Config(server=ServerConfig(root=str(tmp_path), state=str(tmp_path)))
    assert found(config, "programs in memory").verdict is Verdict.OK
    monkeypatch.setattr("os.memfd_create", refuse)
    told = found(config, "programs in memory")
    assert (told.verdict, told.found.split(";")[0]) == (Verdict.MISSING, "refused: Permission denied")
    assert "vm.memfd_noexec=1" in told.remedy


def test_check_fails_if_something_needed_is_missing(monkeypatch: pytest.MonkeyPatch, config_file: Path) -> None:
    lacking = [Finding("a", Verdict.OK, "there"), Finding("b", Verdict.MISSING, "not there", "get it")]
    monkeypatch.setattr(cli_check, "findings", lambda _config: lacking)
    status, text = run("check", "--config", str(config_file))
    assert status == 1
    assert "missing  b: not there" in text
    assert "→ get it" in text
    assert text.endswith("2 checked, 1 missing, 0 worse without\n")


def test_check_succeeds_if_something_is_merely_worse(monkeypatch: pytest.MonkeyPatch, config_file: Path) -> None:
    monkeypatch.setattr(cli_check, "findings", lambda _config: [Finding("a", Verdict.WORSE, "not there")])
    assert run("check", "--config", str(config_file))[0] == 0


def test_check_answers_programs_in_json(monkeypatch: pytest.MonkeyPatch, config_file: Path) -> None:
    monkeypatch.setattr(cli_check, "findings", lambda _config: [Finding("a", Verdict.MISSING, "gone", "get it")])
    _, text = run("check", "--json", "--config", str(config_file))
    assert json.loads(text) == [{"subject": "a", "verdict": "missing", "found": "gone", "remedy": "get it"}]


def test_a_system_call_that_the_kernel_lacks_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(syscall: str, _subject: str) -> None:
        if syscall == "openat2":
            raise syscalls.KernelError(errno.ENOSYS, "Function not implemented", syscall)

    monkeypatch.setattr(syscalls, "failpoint", lack)
    finding = found(Config(), "system calls")
    assert finding.verdict is Verdict.MISSING
    assert "lacks openat2" in finding.found


def test_a_system_call_that_fails_otherwise_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(syscall: str, _subject: str) -> None:
        raise syscalls.KernelError(errno.EPERM, "Operation not permitted", syscall)

    monkeypatch.setattr(syscalls, "failpoint", refuse)
    assert found(Config(), "system calls").verdict is Verdict.OK


def test_a_filesystem_that_the_kernel_lacks_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(_syscall: str, subject: str) -> None:
        if subject == "overlay":
            raise syscalls.KernelError(errno.ENODEV, "No such device", "fsopen")

    monkeypatch.setattr(syscalls, "failpoint", lack)
    finding = found(Config(), "filesystems")
    assert (finding.verdict, finding.found) == (Verdict.MISSING, "without overlay")
    assert "modprobe overlay" in finding.remedy


def test_nft_is_needed_only_for_masquerade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_args, **_kwargs: None)
    assert found(Config(), "nftables").verdict is Verdict.MISSING
    assert found(Config(network=NetworkConfig(masquerade=False)), "nftables").verdict is Verdict.WORSE


def test_a_directory_below_a_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = Config(server=ServerConfig(root=str(tmp_path / "file" / "root"), state=str(tmp_path / "state")))
    assert found(config, "server.root").verdict is Verdict.MISSING
    assert found(config, "server.state") == Finding(
        "server.state", Verdict.OK, f"{tmp_path}/state, to be made in {tmp_path}"
    )


def test_a_socket_path_that_is_too_long_is_told(tmp_path: Path) -> None:
    config = Config(server=ServerConfig(root=str(tmp_path), state=f"/{'x' * 120}"))
    assert found(config, "CRI socket").verdict is Verdict.MISSING


def test_a_lack_of_libseccomp_is_told_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cri_py.kernel.seccomp._LIBRARY", "libnosuch.so")
    finding = found(Config(runtime=RuntimeConfig(seccomp=True)), "seccomp")
    assert finding.verdict is Verdict.MISSING
    assert "apt install libseccomp2" in finding.remedy
    assert found(Config(runtime=RuntimeConfig(seccomp=False)), "seccomp").verdict is Verdict.WORSE


# --------------------------------------------------------------- sd_notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"cri_py-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        assert notify("READY=1\nSTATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


def test_without_a_service_manager_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("lacking", "known", "version1", "partial_view", "remedy"),
    [
        (["cpuset"], {}, False, False, "use a kernel with CONFIG_CPUSETS"),
        (["cpuset"], {"cpuset": (0, False)}, False, False, "boot with cgroup_enable=cpuset"),
        (["memory"], {"memory": (0, False)}, True, False, "boot with cgroup_enable=memory"),
        (["cpuset"], {"cpuset": (3, True)}, False, False, "unmount the version 1 hierarchy that holds cpuset"),
        (["pids"], {"pids": (0, True)}, True, False, "mount -t cgroup -o pids cgroup /sys/fs/cgroup/pids"),
        (["devices"], {}, True, False, "use a kernel with CONFIG_CGROUP_DEVICE"),
        (
            ["cpu"],
            {"cpu": (0, True)},
            False,
            True,
            "echo +cpu > cgroup.subtree_control in the group above, as systemd does for Delegate=yes",
        ),
        (
            ["memory", "cpuset", "pids"],
            {"memory": (0, False)},
            False,
            False,
            "boot with cgroup_enable=memory; use a kernel with CONFIG_CPUSETS; use a kernel with CONFIG_CGROUP_PIDS",
        ),
    ],
)
def test_the_remedy_for_a_controller_fits_why_it_is_not_there(
    lacking: list[str], known: dict[str, tuple[int, bool]], version1: bool, partial_view: bool, remedy: str
) -> None:
    found = cli_check.controllers_remedy(lacking, known, version1=version1, partial_view=partial_view)
    assert found == remedy
