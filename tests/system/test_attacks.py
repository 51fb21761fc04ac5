"""What a hostile container tries, each with what a naive runtime would let happen; docs/SECURITY.md lists them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri_py.kernel import steps
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, namespaces, refused, wait_for
from tests.system.daemon import Daemon
from tests.system.test_isolation import on_v2

UNCONFINED = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)


def secure(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


# --------------------------------------------------- the runtime's processes

# Looks at every process that it sees, again and again, as fast as a shell can; what it finds is one line each.
WATCH = """
mkdir -p /seen
while :; do
  cd /proc
  ls -l [0-9]*/exe [0-9]*/cwd [0-9]*/root [0-9]*/fd/ 2>/dev/null | grep -o -- '-> .*' >>/seen/links
  cat /proc/[0-9]*/environ >>/seen/environ 2>/dev/null
done
"""


@pytest.mark.parametrize("capabilities", [[], ["SYS_PTRACE", "DAC_READ_SEARCH"]])
def test_an_exec_shows_nothing_of_the_node_to_who_watches_it_come(
    kubelet: Kubelet, pod: Pod, daemon: Daemon, capabilities: list[str]
) -> None:
    """The runtime's own program behind /proc/PID/exe can be written to (CVE-2019-5736); its directory and descriptors
    lead out (CVE-2016-9962, CVE-2024-21626)."""
    asked = pb.Capability(add_capabilities=capabilities)
    container = kubelet.run(pod, "sh", "-c", WATCH, linux=secure(capabilities=asked, seccomp=UNCONFINED))
    for _ in range(60):
        kubelet.exec(container, "true")
    seen = kubelet.shell(container, "sort -u /seen/links; tr '\\0' '\\n' </seen/environ | sort -u")
    assert "/bin/busybox" in seen  # it has seen execs
    for secret in ("python", "/usr/", os.getcwd(), str(daemon.directory)):
        assert secret not in seen, seen


def test_nobody_who_shares_pids_finds_the_node_behind_a_container_that_is_being_made(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(pid=pb.POD))
    pod = kubelet.run_pod(config)

    def asking(*command: str, name: str, **fields: Any) -> str:
        asked = kubelet.container_config(*command, name=name, linux=secure(seccomp=UNCONFINED, **fields))
        asked.linux.security_context.namespace_options.CopyFrom(namespaces(pid=pb.POD))
        return kubelet.create(pod, config=asked)

    watching = asking("sh", "-c", WATCH, name="watching")
    kubelet.start(watching)
    for number in range(10):
        kubelet.start(asking("sleep", "1000", name=f"c{number}"))
    seen = kubelet.shell(watching, "sort -u /seen/links")
    assert "/bin/busybox" in seen
    assert "python" not in seen


# ----------------------------------------------------------------- mounts

ATTEMPTS = (
    *("mount -t tmpfs x /tmp", "mount -t proc x /tmp", "mount -o bind /proc /tmp", "mount -o remount,rw /sys"),
    *("mount -o remount,rw,bind /proc/sys", "umount /proc/keys", "umount /proc/sys", "umount /etc/hosts"),
    *("mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk", "chroot /proc/1/root umount /proc/keys"),
)


@pytest.mark.parametrize("prefix", ["", "unshare -Ur ", "unshare -Urm "])
def test_nothing_is_mounted_remounted_or_unmasked_without_sys_admin(kubelet: Kubelet, pod: Pod, prefix: str) -> None:
    """Also with no filter, and in a user namespace of its own, where it is root with all capabilities."""
    container = kubelet.run(pod, "sleep", "1000", linux=secure(seccomp=UNCONFINED))
    allowed = {"mount -t tmpfs x /tmp", "mount -o bind /proc /tmp"} if prefix == "unshare -Urm " else set()
    for attempt in ATTEMPTS:
        status = kubelet.exec(container, "sh", "-c", f"{prefix}sh -c '{attempt}'").exit_code
        assert status != 0 or attempt in allowed, attempt
    assert kubelet.shell(container, "cat /proc/keys; mount | grep -c ' /tmp '; true").strip() == "0"


@pytest.mark.parametrize("kind", ["file", "fifo", "device"])
def test_a_ptmx_that_is_none_is_not_taken_for_a_terminal(kubelet: Kubelet, pod: Pod, tmp_path: Path, kind: str) -> None:
    """A volume at /dev/pts may hold anything, and change between two looks (CVE-2025-52565)."""
    ptmx = tmp_path / "ptmx"
    if kind == "device":
        os.mknod(ptmx, 0o20666, os.makedev(1, 5))
    elif kind == "fifo":
        os.mkfifo(ptmx)
    else:
        ptmx.touch()
    mounts = [pb.Mount(container_path="/dev/pts", host_path=str(tmp_path))]
    with refused("FAILED_PRECONDITION", "/dev/pts/ptmx"):
        kubelet.create(pod, "true", tty=True, mounts=mounts)
    assert not kubelet.ListContainers().containers


# --------------------------------------------------------------- other pods


ADD_KEY, KEYCTL = (248, 250) if platform.machine() == "x86_64" else (217, 219)
SEARCH, UNLINK = 10, 9
SESSION, USER_SESSION = -3, -5


@pytest.fixture
def key() -> Iterator[bytes]:
    """The description of a key where the daemon finds it: its session is ours, or its user's where it has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    name, rings = b"cri-py-test\0", [ctypes.c_int(ring) for ring in (SESSION, USER_SESSION)]
    numbers = [libc.syscall(ADD_KEY, b"user", name, b"x", ctypes.c_size_t(1), ring) for ring in rings]
    assert min(numbers) > 0, os.strerror(ctypes.get_errno())
    yield name
    for number, ring in zip(numbers, rings, strict=True):
        libc.syscall(KEYCTL, UNLINK, ctypes.c_int(number), ring)


def test_keys_that_the_daemon_can_find_are_none_of_a_container(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, key: bytes
) -> None:
    """A program that says by its exit whether it finds the key: only then it executes another."""
    look = steps.Step("keyctl", (SEARCH, SESSION, b"user\0", key, 0))
    found = steps.Step("execve", (b"/bin/true\0", steps.vector([b"true\0"]), steps.vector([])), steps.Then.TRY)
    program = tmp_path / "look"
    program.write_bytes(steps.program([look, found, steps.Step("", (), steps.Then.GIVE_UP)]))
    program.chmod(0o755)
    assert subprocess.run([program], check=False).returncode == 0
    volume = pb.Mount(container_path="/look", host_path=str(program))
    context = secure(seccomp=UNCONFINED)
    assert kubelet.outcome(pod, "/look", name="init", mounts=[volume], linux=context)[0].exit_code == 128
    running = kubelet.run(pod, "sleep", "1000", mounts=[volume], linux=context)
    assert kubelet.exec(running, "/look").exit_code == 128


def test_a_pod_reaches_no_other_pods_memory_queues_or_loopback(kubelet: Kubelet) -> None:
    ones, others = (kubelet.run(kubelet.run_pod(), "sleep", "1000") for _ in range(2))
    kubelet.shell(ones, "echo secret >/dev/shm/secret; touch /dev/mqueue/secret")
    kubelet.shell(ones, "nc -l -p 4321 -e echo secret >/dev/null 2>&1 &")
    listening = ":10E1 "
    wait_for(lambda: kubelet.shell(ones, "cat /proc/net/tcp /proc/net/tcp6"), lambda seen: listening in seen)
    assert kubelet.shell(others, "ls /dev/shm /dev/mqueue | grep secret; true") == ""
    assert kubelet.exec(others, "nc", "-w", "1", "127.0.0.1", "4321").stdout == b""
    assert "@" not in kubelet.shell(others, "cat /proc/net/unix"), "abstract sockets of the node (CVE-2020-15257)"
    for kind in ("net", "ipc", "uts", "pid", "mnt"):
        links = {kubelet.shell(container, f"readlink /proc/self/ns/{kind}") for container in (ones, others)}
        assert len(links) == 2, kind


# ---------------------------------------------------------------- /etc/passwd


def as_fifo(path: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # endless zeroes


def as_gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


def as_link(path: Path) -> None:
    path.symlink_to("/proc/1/root/etc/passwd")


def as_socket(path: Path) -> None:
    os.mknod(path, 0o140666)


def as_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [as_fifo, as_device, as_gigabyte, as_link, as_socket, as_directory])
def test_a_passwd_that_is_no_list_of_users_holds_nobody_up(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    for name in ("passwd", "group"):
        make(tmp_path / name)
    mounts = [pb.Mount(container_path="/etc", host_path=str(tmp_path))]
    context = secure(run_as_user=pb.Int64Value(value=1000))
    status, said = kubelet.outcome(pod, "id", "-u", linux=context, mounts=mounts)
    assert (status.exit_code, said) == (0, "1000\n")
    named = kubelet.create(pod, "true", name="named", linux=secure(run_as_username="daemon"), mounts=mounts)
    with refused("UNKNOWN", "daemon"):  # the node has a user of that name
        kubelet.start(named)


# ----------------------------------------------------------------- sysctls


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/tmp/x"),  # CVE-2022-0811
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/tmp/x"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/tmp/x"),
        ("net.ipv4.../.../kernel/core_pattern", "|/tmp/x"),
        ("net/../kernel/core_pattern", "|/tmp/x"),
        ("net.ipv4.ip_forward\n", "1"),
        ("kernel.core_pattern", "|/tmp/x"),
    ],
)
def test_a_sysctl_carries_no_other_along(kubelet: Kubelet, name: str, value: str) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    config = kubelet.pod_config()
    config.linux.sysctls[name] = value
    with refused("INVALID_ARGUMENT", "sysctl"):
        kubelet.run_pod(config)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert not kubelet.ListPodSandbox().items


# --------------------------------------------------------------- fork bombs


def group_of_pids(config: pb.PodSandboxConfig) -> Path:
    place = Path("/sys/fs/cgroup") if on_v2() else Path("/sys/fs/cgroup/pids")
    return place / config.linux.cgroup_parent.lstrip("/")


@contextlib.contextmanager
def limited_pod(kubelet: Kubelet, pids: int) -> Iterator[Pod]:
    """A pod whose group takes so many processes, as a kubelet makes it."""
    config = kubelet.pod_config()
    group = group_of_pids(config)
    group.mkdir(parents=True)
    if on_v2():
        for level in reversed(group.parents):
            if (level / "cgroup.subtree_control").exists():
                (level / "cgroup.subtree_control").write_text("+pids")
    (group / "pids.max").write_text(str(pids))
    try:
        yield kubelet.run_pod(config)
    finally:
        kubelet.sweep()
        with contextlib.suppress(FileNotFoundError):
            group.rmdir()


# A shell that can't fork ends, and others take its place. The first process forks once, when there is room.
BOMB = "trap '' TERM; bomb() { while :; do bomb & done; }; bomb & exec sleep 1000"


def test_a_fork_bomb_that_fills_its_pod_is_stopped(kubelet: Kubelet, daemon: Daemon) -> None:
    with limited_pod(kubelet, 100) as pod:
        container = kubelet.run(pod, "sh", "-c", BOMB)
        wait_for((group_of_pids(pod.config) / "pids.current").read_text, lambda count: int(count) >= 90)
        kubelet.stop_pod(pod)
        assert kubelet.status(container).state == pb.CONTAINER_EXITED
