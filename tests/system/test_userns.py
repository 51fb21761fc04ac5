"""Pods with a user namespace: who is who inside and on the node, and what belongs to whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import CUSTOM
from tests.simulators.kubelet import MASKED, READONLY, Kubelet, Pod, namespaces, refused, wait_for
from tests.system.daemon import Daemon

FIRST, LENGTH = 200000, 65536


def mapped(first: int = FIRST, length: int = LENGTH, inside: int = 0) -> list[pb.IDMapping]:
    return [pb.IDMapping(host_id=first, container_id=inside, length=length)]


def own(mode: int = pb.POD, **changes: Any) -> pb.UserNamespace:
    return pb.UserNamespace(**{"mode": mode, "uids": mapped(), "gids": mapped(), **changes})


def run_pod(kubelet: Kubelet, userns: pb.UserNamespace | None = None, **modes: Any) -> Pod:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(userns_options=userns or own(), **modes))
    if modes.get("network") == pb.NODE:
        config.hostname = ""
    return kubelet.run_pod(config)


def run(kubelet: Kubelet, pod: Pod, *command: str, security: dict[str, Any] | None = None, **fields: Any) -> str:
    config = kubelet.container_config(*(command or ("sleep", "1000")), **fields)
    context = config.linux.security_context
    context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
    context.MergeFrom(pb.LinuxContainerSecurityContext(**(security or {})))
    container = kubelet.create(pod, config=config)
    kubelet.start(container)
    return container


@pytest.fixture
def pod(kubelet: Kubelet) -> Pod:
    return run_pod(kubelet)


def pid_of(kubelet: Kubelet, container: str) -> int:
    info = kubelet.ContainerStatus(container_id=container, verbose=True).info["info"]
    return int(info.split('"pid": ')[1].split(",")[0])


def test_root_inside_is_nobody_on_the_node(kubelet: Kubelet, pod: Pod) -> None:
    container = run(kubelet, pod)
    assert (
        kubelet.shell(container, "cat /proc/self/uid_map /proc/self/gid_map").split()
        == ["0", str(FIRST), str(LENGTH)] * 2
    )
    assert kubelet.shell(container, "id -u; id -g").split() == ["0", "0"]
    status = Path(f"/proc/{pid_of(kubelet, container)}/status").read_text()
    assert f"Uid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}" in status


def test_what_the_image_has_belongs_to_roots_own_and_what_is_written_to_the_mapped_user(
    kubelet: Kubelet, pod: Pod, daemon: Daemon
) -> None:
    container = run(kubelet, pod)
    assert kubelet.shell(container, "stat -c %u:%g / /bin/busybox /etc/passwd /home/alice").split() == [
        *["0:0"] * 3,
        "1000:1000",
    ]
    kubelet.shell(container, "touch /new /etc/passwd; chown 1000:1000 /new; chmod 600 /etc/group")
    upper = daemon.root / "containers" / container / "upper"
    assert (upper / "new").stat().st_uid == FIRST + 1000
    assert (upper / "etc/group").stat().st_uid == FIRST


def test_the_layers_are_mapped_once_however_many_there_are(kubelet: Kubelet, pod: Pod) -> None:
    """One mount for the root, and none of the layers' to be seen."""
    status = run(kubelet, pod, image=CUSTOM, name="two-layers")
    lines = kubelet.shell(status, "cat /proc/self/mountinfo").splitlines()
    assert len([line for line in lines if " - overlay " in line]) == 1
    assert not [line for line in lines if "idmapped" in line]


def test_all_namespaces_belong_to_the_pods_user_namespace(kubelet: Kubelet, pod: Pod) -> None:
    one, two = run(kubelet, pod), run(kubelet, pod, name="second")
    assert kubelet.shell(one, "readlink /proc/self/ns/user") == kubelet.shell(two, "readlink /proc/self/ns/user")
    assert kubelet.shell(one, "readlink /proc/self/ns/user").strip() != os.readlink("/proc/self/ns/user")
    for kind in ("net", "ipc", "uts", "pid", "mnt"):
        assert kubelet.shell(one, f"readlink /proc/self/ns/{kind}").strip() != os.readlink(f"/proc/self/ns/{kind}"), (
            kind
        )
    security = {"capabilities": pb.Capability(add_capabilities=["NET_ADMIN", "SYS_ADMIN"])}
    nothing = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
    unconfined = {"seccomp": nothing, "apparmor": nothing}
    admin = run(kubelet, pod, name="admin", security={**security, **unconfined})
    kubelet.shell(
        admin, "ip link add dummy0 type dummy && ip addr add 1.2.3.4/32 dev dummy0 || ip addr add 1.2.3.4/32 dev lo"
    )
    kubelet.shell(admin, "hostname renamed && mount -t tmpfs tmpfs /tmp && mkdir /p && mount -t proc proc /p")
    assert kubelet.shell(one, "hostname").strip() == "renamed"


def test_the_network_of_such_a_pod_works(kubelet: Kubelet, pod: Pod) -> None:
    server = run(kubelet, pod, "sh", "-c", "echo answer | nc -l -p 80", name="server")
    client = run(kubelet, kubelet.run_pod())
    ask = f"nc -w 1 {kubelet.pod_status(pod).network.ip} 80 </dev/null"
    assert kubelet.shell(client, f"for i in $(seq 100); do {ask} && exit; sleep 0.02; done") == "answer\n"
    kubelet.wait(server)
    container = run(kubelet, pod)
    assert kubelet.shell(container, "ls /sys/class/net").split() == ["eth0", "lo"]
    assert kubelet.shell(container, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start").strip() == "0"
    assert kubelet.shell(container, f"ping -c 1 -W 2 {kubelet.pod_status(pod).network.ip} > /dev/null && echo there")


def test_devices_are_right_inside(kubelet: Kubelet, pod: Pod) -> None:
    container = run(kubelet, pod)
    names = set(kubelet.shell(container, "ls /dev").split())
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "mqueue"} <= names
    owned = "/dev /dev/null /dev/shm /dev/pts /dev/tty /dev/fd /dev/stdin /dev/ptmx"
    assert kubelet.shell(container, f"stat -c %u:%g {owned}").split() == ["0:0"] * 8
    assert kubelet.shell(container, "echo x > /dev/null; head -c 3 /dev/zero | od -An -tx1").split() == ["00"] * 3
    assert "not permitted" in kubelet.shell(container, "mknod /dev/mem c 1 1 2>&1; mknod /tmp/m c 1 1 2>&1; true")
    kubelet.shell(container, "echo x > /dev/shm/x; echo said > /dev/stdout; echo said > /dev/stderr")


def test_a_terminal_works_in_a_user_namespace(kubelet: Kubelet, pod: Pod) -> None:
    container = run(kubelet, pod, "sh", "-c", "tty; echo x > /dev/tty; sleep 1000", tty=True)
    wait_for(lambda: [line.text.strip() for line in kubelet.log(container)], lambda said: said == [b"/dev/pts/0", b"x"])


def test_the_pods_files_belong_to_its_root(kubelet: Kubelet, pod: Pod) -> None:
    container = run(kubelet, pod)
    assert kubelet.shell(container, "stat -c %u:%g /etc/hosts /etc/hostname /etc/resolv.conf").split() == ["0:0"] * 3
    kubelet.shell(container, "echo 1.2.3.4 elsewhere >> /etc/hosts")


def test_proc_and_sys_are_the_pods_and_hidden_as_ever(kubelet: Kubelet, pod: Pod) -> None:
    container = run(kubelet, pod)
    assert kubelet.shell(container, "ps -o pid,args | sed -n 2p").split() == ["1", "sleep", "1000"]
    for path in MASKED:
        assert kubelet.shell(container, f"cat {path} 2>/dev/null || ls {path} 2>/dev/null; true") == "", path
    for path in READONLY:
        mount = kubelet.shell(container, f"awk '$5 == \"{path}\" {{ print $6 }}' /proc/self/mountinfo")
        assert not Path(path).exists() or mount.startswith("ro,"), path
    assert "Read-only" in kubelet.shell(container, "touch /sys/x 2>&1; true")
    assert kubelet.shell(container, "ls /sys/fs/cgroup")


@pytest.mark.parametrize(("user", "said"), [("1000", "1000 1000 1000 29 44"), ("70", "70 0 0")])
def test_users_and_their_stdio_are_mapped_too(kubelet: Kubelet, pod: Pod, user: str, said: str) -> None:
    security = {"run_as_user": pb.Int64Value(value=int(user))}
    container = run(kubelet, pod, "sh", "-c", "echo hello > /dev/stdout; sleep 1000", security=security)
    got = kubelet.shell(container, "echo $(id -u) $(id -g) $(id -G) > /dev/stderr; echo $(id -u) $(id -g) $(id -G)")
    assert sorted(got.split()) == sorted(said.split())
    assert f"Uid:\t{FIRST + int(user)}\t" in Path(f"/proc/{pid_of(kubelet, container)}/status").read_text()
    wait_for(lambda: [line.text for line in kubelet.log(container)], lambda lines: lines == [b"hello"])


def test_a_user_that_is_not_mapped_is_told_by_name(kubelet: Kubelet) -> None:
    pod = run_pod(kubelet, own(uids=mapped(length=100), gids=mapped(length=100)))
    with refused("UNKNOWN", "user 100 ", "user namespace"):
        run(kubelet, pod, security={"run_as_user": pb.Int64Value(value=100)})


def test_a_namespace_without_the_group_tty_has_terminals_too(kubelet: Kubelet) -> None:
    pod = run_pod(kubelet, own(uids=mapped(length=3), gids=mapped(length=3)))
    assert kubelet.shell(run(kubelet, pod, tty=True), "ls /dev/pts").split() == ["0", "ptmx"]


def test_pids_may_be_the_pods_and_the_holder_is_out_of_reach(kubelet: Kubelet) -> None:
    """The holder is the pod's pid 1, and its root directory is the node's."""
    pod = run_pod(kubelet, pid=pb.POD)
    container = run(kubelet, pod)
    assert "cri-holder" in kubelet.shell(container, "ps -o pid,args | sed -n 2p")
    everything = {"capabilities": pb.Capability(add_capabilities=["ALL"])}
    unconfined = {"seccomp": pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)}
    attacker = run(kubelet, pod, name="attacker", security={**everything, **unconfined})
    for path in ("root/etc/hostname", "root/proc/version", "environ", "cwd/etc/hostname"):
        said = kubelet.shell(attacker, f"cat /proc/1/{path} 2>&1; true")
        assert "Permission denied" in said or "can't open" in said, path


def test_another_containers_pids_may_be_shared(kubelet: Kubelet, pod: Pod) -> None:
    target = run(kubelet, pod)
    config = kubelet.container_config("sleep", "1000", name="debug")
    config.linux.security_context.namespace_options.CopyFrom(
        namespaces(userns_options=own(), pid=pb.TARGET, target_id=target)
    )
    looking = kubelet.create(pod, config=config)
    kubelet.start(looking)
    assert kubelet.shell(looking, "readlink /proc/self/ns/pid") == kubelet.shell(target, "readlink /proc/self/ns/pid")


def test_the_nodes_network_goes_with_a_user_namespace(kubelet: Kubelet) -> None:
    pod = run_pod(kubelet, network=pb.NODE)
    container = run(kubelet, pod)
    assert kubelet.shell(container, "readlink /proc/self/ns/net").strip() == os.readlink("/proc/self/ns/net")
    assert kubelet.shell(container, "cat /proc/self/uid_map").split() == ["0", str(FIRST), str(LENGTH)]
    below_sys = kubelet.shell(container, "awk '$5 ~ \"^/sys\" {print $6}' /proc/self/mountinfo").split()
    assert below_sys
    assert all(options.startswith("ro,") for options in below_sys)
    assert set(kubelet.shell(container, "ls /sys/class/net").split()) >= {"lo"}


@pytest.mark.parametrize("privileged", [True, False])
def test_sysctls_are_the_pods(kubelet: Kubelet, privileged: bool) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(userns_options=own()))
    config.linux.security_context.privileged = privileged
    config.linux.sysctls.update({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "10000 20000"})
    pod = kubelet.run_pod(config)
    container = run(kubelet, pod, security={"privileged": privileged})
    assert kubelet.shell(container, "cat /proc/sys/kernel/shm_rmid_forced").strip() == "1"
    assert kubelet.shell(container, "cat /proc/sys/net/ipv4/ip_local_port_range").split() == ["10000", "20000"]


@pytest.mark.parametrize(
    ("userns", "part"),
    [
        (pb.UserNamespace(mode=pb.CONTAINER), "CONTAINER"),
        (pb.UserNamespace(mode=pb.TARGET), "TARGET"),
        (own(uids=mapped() * 2, gids=mapped() * 2), "uids has 2 mappings"),
        (own(uids=[]), "uids has 0 mappings"),
        (own(uids=mapped(inside=1), gids=mapped(inside=1)), "no root"),
        (own(uids=mapped(first=0)), "node's root"),
        (own(gids=mapped(length=0)), "gids maps 0 ids"),
        (own(gids=mapped(length=1 << 31, first=(1 << 32) - 1)), "gids maps"),
        (pb.UserNamespace(mode=pb.NODE, uids=mapped()), "NODE with mappings"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(kubelet: Kubelet, userns: pb.UserNamespace, part: str) -> None:
    with refused("INVALID_ARGUMENT", "userns_options", part):
        run_pod(kubelet, userns)


def test_a_container_can_not_leave_its_pods_user_namespace(kubelet: Kubelet, pod: Pod) -> None:
    config = kubelet.container_config("true")
    config.linux.security_context.namespace_options.CopyFrom(namespaces(userns_options=pb.UserNamespace(mode=pb.NODE)))
    with refused("INVALID_ARGUMENT", "userns_options", "sandbox"):
        kubelet.create(pod, config=config)


def test_a_volume_is_mapped_as_asked_and_else_belongs_to_nobody(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 1000, 1000)
    tmp_path.chmod(0o755)
    mounts = [
        pb.Mount(container_path="/mapped", host_path=str(tmp_path), uidMappings=mapped(), gidMappings=mapped()),
        pb.Mount(container_path="/plain", host_path=str(tmp_path), readonly=True),
    ]
    container = run(kubelet, pod, mounts=mounts)
    said = kubelet.shell(container, "stat -c %u:%g /mapped /mapped/file /plain /plain/file").split()
    assert said == ["0:0", "1000:1000", "65534:65534", "65534:65534"]
    kubelet.shell(container, "touch /mapped/new; chown 5:6 /mapped/new")
    assert ((tmp_path / "new").stat().st_uid, (tmp_path / "new").stat().st_gid) == (5, 6)
    assert "Read-only" in kubelet.shell(container, "touch /plain/x 2>&1; true")


def test_a_pod_survives_the_daemon(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = run_pod(kubelet)
    container = run(kubelet, pod)
    fresh_daemon.restart()
    assert kubelet.shell(container, "cat /proc/self/uid_map").split()[1] == str(FIRST)
    assert kubelet.shell(run(kubelet, pod, name="later"), "cat /proc/self/uid_map").split()[1] == str(FIRST)


def test_an_exec_that_is_killed_for_want_of_memory_leaves_its_container_alone(kubelet: Kubelet, pod: Pod) -> None:
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=24 << 20, memory_swap_limit_in_bytes=24 << 20)
    container = run(
        kubelet,
        pod,
        "sh",
        "-c",
        "while [ ! -e /go ]; do sleep 0.05; done; exit 1",
        linux=pb.LinuxContainerConfig(resources=limits),
    )
    assert kubelet.exec(container, "sh", "-c", "exec tail -c 1000000000 /dev/zero").exit_code == 137
    kubelet.shell(container, "touch /go")
    status = kubelet.wait(container)
    assert (status.exit_code, status.reason) == (1, "Error")
