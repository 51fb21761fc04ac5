"""What a container sees and may: namespaces, files, identity, rights, limits. All of it asked from inside."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import CUSTOM
from tests.simulators.kubelet import MASKED, READONLY, Kubelet, Pod, namespaces, refused, wait_for
from tests.system.daemon import Daemon
from tests.system.test_userns import own as own_users


def pod_with(kubelet: Kubelet, **modes: Any) -> Pod:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(**modes))
    if modes.get("network") == pb.NODE:
        config.hostname = ""
    return kubelet.run_pod(config)


def container_in(kubelet: Kubelet, pod: Pod, name: str = "main", **modes: Any) -> str:
    config = kubelet.container_config("sleep", "1000", name=name)
    config.linux.security_context.namespace_options.CopyFrom(namespaces(**modes))
    container = kubelet.create(pod, config=config)
    kubelet.start(container)
    return container


def secure(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


def namespace(kubelet: Kubelet, container: str, kind: str) -> str:
    return kubelet.shell(container, f"readlink /proc/self/ns/{kind}").strip()


# -------------------------------------------------------------- namespaces


def test_a_container_has_its_own_pids_and_shares_the_pods_network_and_ipc(kubelet: Kubelet, pod: Pod) -> None:
    one, two = container_in(kubelet, pod), container_in(kubelet, pod, "second")
    for kind, shared in [("net", True), ("ipc", True), ("uts", True), ("pid", False), ("mnt", False)]:
        names = {namespace(kubelet, one, kind), namespace(kubelet, two, kind)}
        assert (len(names) == 1) is shared, kind
        assert os.readlink(f"/proc/self/ns/{kind}") not in names, kind
    assert kubelet.shell(one, "ps -o pid,args | sed -n 2p").split() == ["1", "sleep", "1000"]


def test_containers_of_a_pod_may_share_pids_with_the_holder_as_the_first(kubelet: Kubelet) -> None:
    pod = pod_with(kubelet, pid=pb.POD)
    one, two = container_in(kubelet, pod, pid=pb.POD), container_in(kubelet, pod, "second", pid=pb.POD)
    assert namespace(kubelet, one, "pid") == namespace(kubelet, two, "pid")
    seen = kubelet.shell(one, "ps -o pid,args")
    assert seen.count("sleep 1000") == 2
    assert "sleep" not in next(line for line in seen.splitlines() if line.split()[0] == "1")


def test_the_holder_of_a_shared_pid_namespace_reaps_orphans(kubelet: Kubelet) -> None:
    pod = pod_with(kubelet, pid=pb.POD)
    container = container_in(kubelet, pod, pid=pb.POD)
    kubelet.shell(container, "(sleep 0.01 &) ; (sleep 0.02 &)")
    wait_for(lambda: kubelet.shell(container, "ps -o stat,args"), lambda seen: " 0.0" not in seen and "Z" not in seen)


def test_pids_and_ipc_may_be_the_nodes(kubelet: Kubelet) -> None:
    pod = pod_with(kubelet, pid=pb.NODE, ipc=pb.NODE)
    container = container_in(kubelet, pod, pid=pb.NODE, ipc=pb.NODE)
    for kind in ("pid", "ipc"):
        assert namespace(kubelet, container, kind) == os.readlink(f"/proc/self/ns/{kind}")
    assert f"\n{os.getpid()} " in "\n" + kubelet.shell(container, "ps -o pid,comm | sed 's/^ *//'")


def test_a_container_may_look_at_anothers_processes(kubelet: Kubelet, pod: Pod) -> None:
    target = container_in(kubelet, pod)
    looking = container_in(kubelet, pod, "debug", pid=pb.TARGET, target_id=target)
    assert namespace(kubelet, looking, "pid") == namespace(kubelet, target, "pid")


def test_a_pod_on_the_nodes_network_has_its_name_and_no_address(kubelet: Kubelet) -> None:
    pod = pod_with(kubelet, network=pb.NODE)
    assert kubelet.pod_status(pod).network.ip == ""
    container = container_in(kubelet, pod, network=pb.NODE)
    assert namespace(kubelet, container, "net") == os.readlink("/proc/self/ns/net")
    assert kubelet.shell(container, "hostname").strip() == socket.gethostname()
    assert kubelet.shell(container, "cat /etc/hosts") == Path("/etc/hosts").read_text()


# ----------------------------------------------------------------- network


def test_a_pod_has_its_address_on_eth0_and_its_loopback(kubelet: Kubelet, pod: Pod) -> None:
    address = kubelet.pod_status(pod).network.ip
    container = container_in(kubelet, pod)
    assert f"inet {address}/" in kubelet.shell(container, "ip -4 addr show eth0")
    assert "inet 127.0.0.1/8" in kubelet.shell(container, "ip -4 addr show lo")
    assert kubelet.shell(container, "ip route").startswith("default via ")


def test_pods_reach_one_another(kubelet: Kubelet) -> None:
    one, two = kubelet.run_pod(), kubelet.run_pod()
    assert kubelet.pod_status(one).network.ip != kubelet.pod_status(two).network.ip
    server = kubelet.run(one, "sh", "-c", "echo answer | nc -l -p 8080")
    client = container_in(kubelet, two)
    ask = f"nc -w 1 {kubelet.pod_status(one).network.ip} 8080 </dev/null"
    assert kubelet.shell(client, f"for i in $(seq 100); do {ask} && exit; sleep 0.02; done") == "answer\n"
    kubelet.wait(server)


def test_hostname_hosts_and_resolver_are_the_pods(kubelet: Kubelet) -> None:
    config = kubelet.pod_config(
        dns_config=pb.DNSConfig(servers=["10.96.0.10", "8.8.8.8"], searches=["a.test", "b.test"], options=["ndots:5"])
    )
    pod = kubelet.run_pod(config)
    container = container_in(kubelet, pod)
    assert kubelet.shell(container, "hostname; cat /etc/hostname; echo $HOSTNAME").split() == ["test-pod"] * 3
    resolver = kubelet.shell(container, "cat /etc/resolv.conf").splitlines()
    assert resolver == ["search a.test b.test", "nameserver 10.96.0.10", "nameserver 8.8.8.8", "options ndots:5"]
    hosts = [line.split() for line in kubelet.shell(container, "cat /etc/hosts").splitlines() if line[:1].isdigit()]
    assert [kubelet.pod_status(pod).network.ip, "test-pod"] in hosts
    assert ["127.0.0.1", "localhost"] in [line[:2] for line in hosts]


def test_without_dns_config_the_nodes_resolver_is_used(kubelet: Kubelet, pod: Pod) -> None:
    container = container_in(kubelet, pod)
    assert kubelet.shell(container, "cat /etc/resolv.conf") == Path("/etc/resolv.conf").read_text()


def test_shared_memory_is_the_pods(kubelet: Kubelet, pod: Pod) -> None:
    one, two = container_in(kubelet, pod), container_in(kubelet, pod, "second")
    kubelet.shell(one, "echo shared > /dev/shm/note")
    assert kubelet.shell(two, "cat /dev/shm/note; df -k /dev/shm | tail -1 | awk '{print $2}'").split() == [
        "shared",
        "65536",
    ]


def test_a_pod_may_ask_for_more_shared_memory(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod(kubelet.pod_config(annotations={"shm-size.crio.io": "128Mi"}))
    container = container_in(kubelet, pod)
    assert kubelet.shell(container, "df -k /dev/shm | tail -1 | awk '{print $2}'").strip() == "131072"
    with refused("INVALID_ARGUMENT", "shm-size.crio.io"):
        kubelet.run_pod(kubelet.pod_config(annotations={"shm-size.crio.io": "much"}))


# ---------------------------------------------------------------- security


def field_of(status: str, name: str) -> str:
    return next(line.split("\t", 1)[1] for line in status.splitlines() if line.startswith(f"{name}:"))


def bits(*numbers: int) -> str:
    return f"{sum(1 << number for number in numbers):016x}"


DEFAULT = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)  # capability.h


def test_capabilities_are_the_usual_few_and_the_bounding_set_is_no_wider(kubelet: Kubelet, pod: Pod) -> None:
    status = kubelet.outcome(pod, "cat", "/proc/self/status")[1]
    for name, wanted in [("Prm", DEFAULT), ("Eff", DEFAULT), ("Bnd", DEFAULT), ("Inh", ()), ("Amb", ())]:
        assert field_of(status, f"Cap{name}") == bits(*wanted), name


@pytest.mark.parametrize(
    ("capabilities", "bounding"),
    [
        ({"add_capabilities": ["NET_ADMIN"]}, (*DEFAULT, 12)),
        ({"add_capabilities": ["cap_net_admin"], "drop_capabilities": ["CHOWN"]}, (*DEFAULT[1:], 12)),
        ({"drop_capabilities": ["ALL"]}, ()),
        ({"drop_capabilities": ["ALL"], "add_capabilities": ["KILL"]}, (5,)),
    ],
)
def test_capabilities_are_added_and_dropped(
    kubelet: Kubelet, pod: Pod, capabilities: dict[str, Any], bounding: tuple[int, ...]
) -> None:
    context = secure(capabilities=pb.Capability(**capabilities))
    status = kubelet.outcome(pod, "cat", "/proc/self/status", linux=context)[1]
    assert field_of(status, "CapBnd") == field_of(status, "CapEff") == bits(*bounding)


def test_a_user_without_rights_keeps_none_of_roots(kubelet: Kubelet, pod: Pod) -> None:
    context = secure(run_as_user=pb.Int64Value(value=1000))
    status = kubelet.outcome(pod, "cat", "/proc/self/status", linux=context)[1]
    assert field_of(status, "CapEff") == field_of(status, "CapPrm") == bits()
    assert field_of(status, "CapBnd") == bits(*DEFAULT)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(None, "0"), (pb.SecurityProfile.RuntimeDefault, "2"), (pb.SecurityProfile.Unconfined, "0")],
    ids=["none named", "RuntimeDefault", "Unconfined"],
)
def test_a_seccomp_filter_is_there_as_asked(kubelet: Kubelet, pod: Pod, kind: int | None, mode: str) -> None:
    context = secure() if kind is None else secure(seccomp=pb.SecurityProfile(profile_type=kind))
    assert field_of(kubelet.outcome(pod, "cat", "/proc/self/status", linux=context)[1], "Seccomp") == mode


def test_the_default_filter_refuses_what_containers_have_no_business_with(kubelet: Kubelet, pod: Pod) -> None:
    default = secure(seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault))
    status, said = kubelet.outcome(
        pod, "sh", "-c", "unshare -U true && echo made; mount -t tmpfs x /tmp && echo mounted", linux=default
    )
    assert (said, status.exit_code) == ("", 1)


@pytest.mark.parametrize("asked", [True, False])
def test_no_new_privileges_as_asked(kubelet: Kubelet, pod: Pod, asked: bool) -> None:
    status = kubelet.outcome(pod, "cat", "/proc/self/status", linux=secure(no_new_privs=asked))[1]
    assert field_of(status, "NoNewPrivs") == str(int(asked))


def test_masked_paths_are_empty_and_readonly_paths_read_only(kubelet: Kubelet, pod: Pod) -> None:
    container = container_in(kubelet, pod)
    for path in MASKED:
        assert kubelet.shell(container, f"cat {path} 2>/dev/null || ls {path} 2>/dev/null; true") == "", path
    for path in READONLY:
        mount = kubelet.shell(container, f"awk '$5 == \"{path}\" {{ print $6 }}' /proc/self/mountinfo")
        assert not Path(path).exists() or mount.startswith("ro,"), path
    assert "Read-only file system" in kubelet.shell(container, "(echo x > /proc/sys/kernel/domainname) 2>&1; true")
    assert "Read-only" in kubelet.shell(container, "touch /sys/x 2>&1; true")


def test_a_privileged_container_has_what_the_runtime_has(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    pod = kubelet.run_pod(config)
    asked = kubelet.container_config("sleep", "1000")
    asked.linux.security_context.ClearField("masked_paths")
    asked.linux.security_context.ClearField("readonly_paths")
    asked.linux.security_context.privileged = True
    container = kubelet.create(pod, config=asked)
    kubelet.start(container)
    status = kubelet.shell(container, "cat /proc/self/status")
    own = field_of(Path("/proc/self/status").read_text(), "CapEff")
    assert field_of(status, "CapEff") == own
    assert field_of(status, "Seccomp") == "0"
    assert (
        kubelet.shell(container, "touch /proc/sys/kernel/domainname 2>&1; mount -t tmpfs x /tmp && echo mounted")
        == "mounted\n"
    )


def test_a_privileged_container_may_write_to_sys_though_others_of_its_pod_may_not(kubelet: Kubelet) -> None:
    """All of a network namespace share one superblock of sysfs."""
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    pod = kubelet.run_pod(config)
    container_in(kubelet, pod)
    asked = kubelet.container_config("sleep", "1000", name="second")
    asked.linux.security_context.ClearField("masked_paths")
    asked.linux.security_context.ClearField("readonly_paths")
    asked.linux.security_context.privileged = True
    container = kubelet.create(pod, config=asked)
    kubelet.start(container)
    file = "/sys/class/net/lo/tx_queue_len"
    kubelet.shell(container, f"cat {file} > /tmp/x && cat /tmp/x > {file}")


def test_only_the_standard_devices_are_there_and_open(kubelet: Kubelet, pod: Pod) -> None:
    container = container_in(kubelet, pod)
    names = set(kubelet.shell(container, "ls /dev").split())
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "mqueue"} <= names
    assert not names & {"sda", "vda", "mem", "kmsg", "kvm"}
    assert kubelet.shell(container, "head -c 3 /dev/zero | od -An -tx1").split() == ["00"] * 3
    for number in ("1 1", "5 1"):  # the node's memory, its console
        said = kubelet.shell(container, f"mknod /tmp/node c {number}; head -c 1 /tmp/node 2>&1; rm /tmp/node")
        assert "Operation not permitted" in said, number
    assert "not permitted" not in kubelet.shell(container, "mknod /tmp/tun c 10 200; (: < /tmp/tun) 2>&1; true")


# ------------------------------------------------------------------- users


@pytest.mark.parametrize(
    ("fields", "identity"),
    [
        ({}, "0 0 0"),
        ({"run_as_user": pb.Int64Value(value=4711)}, "4711 0 0"),
        ({"run_as_user": pb.Int64Value(value=1000)}, "1000 1000 1000 29 44"),
        ({"run_as_username": "www-data"}, "33 33 33"),
        ({"run_as_username": "alice", "supplemental_groups": [7, 44]}, "1000 1000 1000 29 44 7"),
        ({"run_as_user": pb.Int64Value(value=5), "run_as_group": pb.Int64Value(value=6)}, "5 6 6"),
        (
            {"run_as_username": "alice", "supplemental_groups": [7], "supplemental_groups_policy": pb.Strict},
            "1000 1000 1000 7",
        ),
    ],
)
def test_a_container_runs_as_the_user_that_is_asked_for(
    kubelet: Kubelet, pod: Pod, fields: dict[str, Any], identity: str
) -> None:
    status, said = kubelet.outcome(pod, "sh", "-c", "echo $(id -u) $(id -g) $(id -G)", linux=secure(**fields))
    uid, gid, *groups = map(int, identity.split())
    assert sorted(map(int, said.split())) == sorted([uid, gid, *groups])
    assert said.startswith(f"{uid} {gid} ")
    assert status.user.linux == pb.LinuxContainerUser(uid=uid, gid=gid, supplemental_groups=groups)


def test_an_images_wishes_are_granted(kubelet: Kubelet, pod: Pod) -> None:
    assert kubelet.outcome(pod, image=CUSTOM)[1] == "entrypoint cmd\n"
    said = kubelet.outcome(
        pod, "sh", "-c", "id -un; pwd; cat notes; echo $GREETING; echo $HOME", image=CUSTOM, name="2"
    )[1]
    assert said.splitlines() == ["alice", "/srv/work", "from the image", "from the image", "/home/alice"]


def test_the_kubelets_words_go_before_the_images(kubelet: Kubelet, pod: Pod) -> None:
    def said(*command: str, **fields: Any) -> str:
        name = f"c{len(kubelet.ListContainers().containers)}"
        return kubelet.outcome(pod, *command, image=CUSTOM, name=name, **fields)[1].strip()

    assert said(args=["own"]) == "entrypoint own"
    assert said("echo", args=["own"]) == "own"
    assert said("echo") == ""
    assert said("sh", "-c", "pwd", working_dir="/tmp") == "/tmp"
    assert said("sh", "-c", "echo $NAME", envs=[pb.KeyValue(key="NAME", value=b"kubelet")]) == "kubelet"
    assert said("id", "-un", linux=secure(run_as_username="www-data")) == "www-data"


def test_a_working_directory_that_is_missing_is_made(kubelet: Kubelet, pod: Pod) -> None:
    assert kubelet.outcome(pod, "pwd", working_dir="/not/there/yet")[1] == "/not/there/yet\n"


def test_environment_values_are_bytes(kubelet: Kubelet, pod: Pod) -> None:
    values = {"A": b"", "B": b"a=b c", "C": b"\xff\xfe\n", "D": "ü".encode()}
    envs = [pb.KeyValue(key=name, value=value) for name, value in values.items()]
    container = kubelet.run(pod, "sleep", "1000", envs=envs)
    got = kubelet.exec(container, "cat", "/proc/1/environ").stdout.split(b"\0")
    for name, value in values.items():
        assert name.encode() + b"=" + value in got


# -------------------------------------------------------------------- files


def test_volumes_are_written_or_only_read_as_asked(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the node\n")
    container = kubelet.run(
        pod,
        "sleep",
        "1000",
        mounts=[
            pb.Mount(container_path="/rw", host_path=str(tmp_path)),
            pb.Mount(container_path="/ro", host_path=str(tmp_path), readonly=True),
            pb.Mount(container_path="/etc/one-file", host_path=str(tmp_path / "note"), readonly=True),
        ],
    )
    assert kubelet.shell(container, "cat /rw/note /etc/one-file") == "from the node\n" * 2
    kubelet.shell(container, "echo from the container > /rw/answer")
    assert (tmp_path / "answer").read_text() == "from the container\n"
    for path in ("/ro/x", "/etc/one-file"):
        assert "Read-only file system" in kubelet.shell(container, f"sh -c 'echo x > {path}' 2>&1; true")


def test_a_volume_over_a_file_of_ours_wins(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("1.2.3.4 elsewhere\n")
    mounts = [pb.Mount(container_path="/etc/hosts", host_path=str(tmp_path / "hosts"))]
    assert kubelet.outcome(pod, "cat", "/etc/hosts", mounts=mounts)[1] == "1.2.3.4 elsewhere\n"


def test_a_link_in_a_volume_leads_no_other_volume_out_of_the_container(
    kubelet: Kubelet, pod: Pod, tmp_path: Path
) -> None:
    (tmp_path / "out").symlink_to("/home")
    mounts = [
        pb.Mount(container_path="/links", host_path=str(tmp_path)),
        pb.Mount(container_path="/links/out/volume", host_path=str(tmp_path)),
    ]
    assert kubelet.outcome(pod, "ls", "/home/volume", mounts=mounts)[1] == "out\n"
    assert not Path("/home/volume").exists()


def test_the_root_may_be_read_only(kubelet: Kubelet, pod: Pod) -> None:
    script = "touch /x 2>&1; touch /dev/shm/x && echo shm; echo x > /dev/null && echo null"
    said = kubelet.outcome(pod, "sh", "-c", script, linux=secure(readonly_rootfs=True))[1]
    assert said.splitlines() == ["touch: /x: Read-only file system", "shm", "null"]


def test_no_mount_of_the_node_is_seen_and_none_of_the_containers_reaches_it(
    kubelet: Kubelet, pod: Pod, daemon: Daemon
) -> None:
    container = container_in(kubelet, pod)
    assert str(daemon.directory) not in kubelet.shell(container, "awk '{print $5}' /proc/self/mountinfo")
    assert str(daemon.directory / "root") not in Path("/proc/self/mountinfo").read_text()


def test_only_the_standard_descriptors_are_open(kubelet: Kubelet, pod: Pod) -> None:
    container = container_in(kubelet, pod)
    assert kubelet.shell(container, "ls /proc/1/fd").split() == ["0", "1", "2"]
    assert kubelet.exec(container, "ls", "/proc/self/fd").stdout.split() == [b"0", b"1", b"2", b"3"]


def test_stdin_is_dev_null_unless_it_is_asked_for(kubelet: Kubelet, pod: Pod) -> None:
    null = kubelet.outcome(pod, "stat", "-L", "-c", "%t:%T", "/proc/self/fd/0")[1]
    assert null == "1:3\n"  # by its number: it is opened through a mount of its own
    waiting = kubelet.run(pod, "cat", name="second", stdin=True)
    assert kubelet.shell(waiting, "readlink /proc/1/fd/0").startswith("pipe:")
    assert kubelet.status(waiting).state == pb.CONTAINER_RUNNING


def test_a_tty_is_the_controlling_terminal(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", tty=True)
    assert kubelet.shell(container, "for n in 0 1 2; do readlink /proc/1/fd/$n; done").split() == ["/dev/pts/0"] * 3
    assert kubelet.shell(container, "awk '{print $7}' /proc/1/stat").strip() == str(os.makedev(136, 0))
    assert b"TERM=xterm" in kubelet.exec(container, "cat", "/proc/1/environ").stdout.split(b"\0")


def test_signals_and_the_mask_are_the_defaults(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000", name="second")
    for said in (
        kubelet.outcome(pod, "cat", "/proc/self/status")[1],
        kubelet.exec(container, "cat", "/proc/self/status").stdout.decode(),
    ):
        assert field_of(said, "Umask") == "0022"
        assert int(field_of(said, "SigBlk"), 16) == 0
        assert int(field_of(said, "SigIgn"), 16) == 0


def test_open_files_are_limited_as_configured(kubelet: Kubelet, pod: Pod) -> None:
    hard = int(kubelet.outcome(pod, "sh", "-c", "ulimit -Hn")[1])
    own = int(Path("/proc/self/limits").read_text().split("Max open files")[1].split()[1])
    may_raise = int(field_of(Path("/proc/self/status").read_text(), "CapEff"), 16) >> 24 & 1  # CAP_SYS_RESOURCE
    assert hard == (1048576 if may_raise else min(1048576, own))


# ------------------------------------------------------------------ cgroups


def group(pod: Pod, container: str, controller: str) -> Path:
    """A container's group on either version of cgroups."""
    below = f"{pod.config.linux.cgroup_parent}/{container}"
    return Path(f"/sys/fs/cgroup{below}" if on_v2() else f"/sys/fs/cgroup/{controller}{below}")


def on_v2() -> bool:
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def controllers() -> set[str]:
    """Those of v2, or of v1 where the kernel has them mounted; a kernel may be built without some."""
    if on_v2():
        return set(Path("/sys/fs/cgroup/cgroup.controllers").read_text().split())
    return set(os.listdir("/sys/fs/cgroup"))


def test_limits_are_the_kernels(kubelet: Kubelet, pod: Pod) -> None:
    cpuset = "0" if "cpuset" in controllers() else ""
    resources = pb.LinuxContainerResources(
        cpu_shares=512,
        cpu_quota=50_000,
        cpu_period=100_000,
        memory_limit_in_bytes=64 << 20,
        cpuset_cpus=cpuset,
        oom_score_adj=500,
    )
    container = kubelet.run(pod, "sleep", "1000", linux=pb.LinuxContainerConfig(resources=resources))
    v1 = [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("memory", "memory.limit_in_bytes", str(64 << 20)),
    ]
    v2 = [("", "cpu.max", "50000 100000"), ("", "memory.max", str(64 << 20))]
    both = [("cpuset", "cpuset.cpus", cpuset)] if cpuset else []
    for controller, name, value in [*(v2 if on_v2() else v1), *both]:
        assert (group(pod, container, controller) / name).read_text().strip() == value, name
    assert kubelet.shell(container, "cat /proc/1/oom_score_adj").strip() == "500"
    told = kubelet.status(container).resources.linux
    assert (told.memory_limit_in_bytes, told.cpu_quota, told.cpuset_cpus) == (64 << 20, 50_000, cpuset)


def command_line(pid: str) -> bytes:
    """Empty for a process that has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.parametrize("controller", ["memory", "cpu", "pids", "freezer"])
def test_all_that_a_container_starts_is_in_its_group(kubelet: Kubelet, pod: Pod, controller: str) -> None:
    container = kubelet.run(pod, "sh", "-c", "setsid sleep 1001 & exec sleep 1000")
    kubelet.shell(container, "setsid sleep 1002 >/dev/null 2>&1 &")

    def programs() -> list[bytes]:
        files = [Path(place) / "cgroup.procs" for place, _, _ in os.walk(group(pod, container, controller))]
        pids = [pid for file in files for pid in file.read_text().split()]
        return sorted(filter(None, map(command_line, pids)))

    wait_for(programs, lambda seen: seen == [b"sleep\x00%d\0" % number for number in (1000, 1001, 1002)])


def test_the_containers_group_is_read_only_inside(kubelet: Kubelet, pod: Pod) -> None:
    container = container_in(kubelet, pod)
    place = "/sys/fs/cgroup" if on_v2() else "/sys/fs/cgroup/memory"
    assert "cgroup.procs" in kubelet.shell(container, f"ls {place}")
    assert "Read-only" in kubelet.shell(container, f"mkdir {place}/x 2>&1; true")


@pytest.mark.parametrize("users", ["the node's", "the pod's"])
def test_a_privileged_container_finds_its_own_group(kubelet: Kubelet, users: str) -> None:
    """On v2 it has no cgroup namespace, so the group has its whole name; with users of its own no right to it."""
    modes = {"userns_options": own_users()} if users == "the pod's" else {}
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(**modes))
    config.linux.security_context.privileged = True
    pod = kubelet.run_pod(config)
    asked = kubelet.container_config("sleep", "1000", linux=secure(privileged=True))
    asked.linux.security_context.namespace_options.CopyFrom(namespaces(**modes))
    container = kubelet.run(pod, config=asked)
    place = group(pod, container, "memory") if on_v2() else Path("/sys/fs/cgroup/memory")
    assert kubelet.shell(container, f"cat {place}/cgroup.procs").split()
    assert kubelet.exec(container, "mkdir", f"{place}/own").exit_code == (0 if users == "the node's" else 1)


def test_a_volume_of_the_nodes_sys_leaves_the_container_its_own_group(kubelet: Kubelet, pod: Pod) -> None:
    volume = pb.Mount(container_path="/sys", host_path="/sys", readonly=True)
    container = kubelet.run(pod, "sleep", "1000", mounts=[volume])
    place = "/sys/fs/cgroup" if on_v2() else "/sys/fs/cgroup/memory"
    assert "1" in kubelet.shell(container, f"cat {place}/cgroup.procs").split()
    assert "Read-only" in kubelet.shell(container, f"mkdir {place}/x 2>&1; true")


def test_the_default_apparmor_profile_is_granted_and_a_named_one_refused(kubelet: Kubelet, pod: Pod) -> None:
    default = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    status, _ = kubelet.outcome(pod, "true", linux=secure(apparmor=default))
    assert status.exit_code == 0
    own = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="strict")
    with pytest.raises(grpc.RpcError, match="AppArmor profile 'strict'"):
        kubelet.create(pod, "true", name="strict", linux=secure(apparmor=own))


def test_modes_of_what_the_daemon_keeps_let_no_user_in(daemon: Daemon, kubelet: Kubelet) -> None:
    assert stat.S_IMODE(daemon.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(daemon.socket).stat().st_mode) == 0o660
