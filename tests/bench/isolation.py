"""Five pods under ours and under containerd + runc: every difference in what isolates their processes, explained.

    .venv/bin/python -m tests.bench.isolation [--pod NAME]

Needs root and Debian's containerd and runc, as ``compare`` does; takes some twenty seconds. In each pod there are two
containers. Of the first one's program is read from outside: /proc/PID/status, namespaces, mountinfo, limits, cgroups;
and from inside what is in /dev, some sysctls, and the status of an exec. Exit status 1 if a difference has no
explanation in ``isolation_reasons``. No row means no difference.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import grpc

from cri_py.cgroups import limits
from cri_py.kernel import capabilities, isolation, procfs
from cri_py.rpc.gen import api_pb2 as pb
from tests.bench.isolation_reasons import reason_for
from tests.bench.peers import missing
from tests.simulators.busybox import BUSYBOX, push_images
from tests.simulators.kubelet import Kubelet, namespaces
from tests.simulators.registry import RegistrySimulator
from tests.system.daemon import Daemon
from tests.system.peer import serving

Properties = dict[str, str]
Shape = Callable[[pb.PodSandboxConfig, pb.ContainerConfig], None]

# Of /proc/PID/status: what says something about isolation and not about the moment.
_STATUS: Final = (
    *("Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt"),
    *("ShdPnd", "CoreDumping", "THP_enabled", "untag_mask", "Speculation_Store_Bypass", "SpeculationIndirectBranch"),
    *("Cpus_allowed_list", "Mems_allowed_list", "Threads"),
)
_PEER: Final = "runc"  # the reasons are about it
_REFUSED: Final = "refused"
_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_DEVICES: Final = 'find /dev -exec stat -c "%n|%F|%t:%T|%a|%u:%g" {} +'
_SYSCTLS: Final = (
    *("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range", "net.ipv4.ip_forward", "kernel.shmmax"),
    *("kernel.msgmax", "kernel.sem", "fs.mqueue.msg_max", "kernel.hostname"),
)
_VARYING: Final = ("lowerdir=", "lowerdir+", "upperdir=", "workdir=", "redirect_dir=", "uuid=")


# -------------------------------------------------------------------- pods


def default(_pod: pb.PodSandboxConfig, _container: pb.ContainerConfig) -> None:
    """As a kubelet without wishes asks for it."""


def privileged(pod: pb.PodSandboxConfig, container: pb.ContainerConfig) -> None:
    pod.linux.security_context.privileged = True
    context = container.linux.security_context
    context.privileged = True
    del context.masked_paths[:], context.readonly_paths[:]  # as the kubelet does


def user_namespace(pod: pb.PodSandboxConfig, container: pb.ContainerConfig) -> None:
    mapping = pb.IDMapping(host_id=200_000, container_id=0, length=65536)
    options = pb.UserNamespace(mode=pb.POD, uids=[mapping], gids=[mapping])
    for context in (pod.linux.security_context, container.linux.security_context):
        context.namespace_options.userns_options.CopyFrom(options)


def on_the_node(pod: pb.PodSandboxConfig, container: pb.ContainerConfig) -> None:
    pod.hostname = ""
    for context in (pod.linux.security_context, container.linux.security_context):
        context.namespace_options.CopyFrom(namespaces(network=pb.NODE, pid=pb.NODE))


def hardened(_pod: pb.PodSandboxConfig, container: pb.ContainerConfig) -> None:
    context = container.linux.security_context
    context.run_as_user.value, context.run_as_group.value = 1000, 1000
    context.supplemental_groups.append(2000)
    context.no_new_privs = True
    context.readonly_rootfs = True
    context.capabilities.drop_capabilities.append("ALL")
    resources = container.linux.resources
    resources.memory_limit_in_bytes, resources.cpu_quota, resources.oom_score_adj = 64 << 20, 50_000, 500


PODS: Final[Mapping[str, Shape]] = {
    "default": default,
    "privileged": privileged,
    "user namespace": user_namespace,
    "hostNetwork+hostPID": on_the_node,
    "hardened": hardened,
}


def run_pod(kubelet: Kubelet, shape: Shape) -> Properties:
    """The properties of the first of two containers in a pod of that shape."""
    pod_config, configs = kubelet.pod_config(), []
    for name in ("first", "second"):
        container = kubelet.container_config("sleep", "1000", name=name)
        # containerd 1.6 takes a profile that isn't named for none, ours for this one
        container.linux.security_context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
        configs.append(container)
    for config in configs:
        shape(pod_config, config)
    pod = kubelet.run_pod(pod_config)
    try:
        first, second = (kubelet.create(pod, config=config) for config in configs)
        for container in (first, second):
            kubelet.start(container)
        return properties(kubelet, first, _pid(kubelet, first), _pid(kubelet, second))
    finally:
        kubelet.remove_pod(pod)


def _pid(kubelet: Kubelet, container: str) -> int:
    """Both runtimes have it in the same place."""
    return int(json.loads(kubelet.ContainerStatus(container_id=container, verbose=True).info["info"])["pid"])


# -------------------------------------------------------------- properties


def properties(kubelet: Kubelet, container: str, pid: int, neighbour: int) -> Properties:
    """By name all that is compared; equal values mean equal isolation."""
    return dict(
        [
            *_status(pid),
            *_namespaces(pid, neighbour),
            *_mounts(pid),
            *_devices(kubelet, container),
            *_limits(pid),
            *_cgroups(pid),
            *_surroundings(pid),
            *_exec(kubelet, container),
            *_sysctls(kubelet, container),
        ]
    )


def _status(pid: int) -> Iterator[tuple[str, str]]:
    status = procfs.status(pid) or {}
    yield from _told_of("", status)
    yield "status NSpid depth", str(len(status["NSpid"].split()))


def _exec(kubelet: Kubelet, container: str) -> Iterator[tuple[str, str]]:
    """The same of a process that joins."""
    status = procfs.parse_status(kubelet.exec(container, "cat", "/proc/self/status").stdout)
    yield from _told_of("exec ", status)
    yield "exec open files", " ".join(kubelet.shell(container, "exec ls /proc/self/fd").split())
    yield "exec oom_score_adj", kubelet.shell(container, "cat /proc/self/oom_score_adj").strip()


def _told_of(prefix: str, status: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for field in _STATUS:
        if field in status:
            yield f"{prefix}status {field}", " ".join(status[field].split())
    for field in _SETS:
        names = capabilities.names(int(status[field], 16))
        yield f"{prefix}capabilities {field}", " ".join(name.removeprefix("CAP_") for name in names) or "none"


def _sysctls(kubelet: Kubelet, container: str) -> Iterator[tuple[str, str]]:
    for name in _SYSCTLS:
        yield f"sysctl {name}", " ".join(kubelet.shell(container, f"cat /proc/sys/{name.replace('.', '/')}").split())


def _namespaces(pid: int, neighbour: int) -> Iterator[tuple[str, str]]:
    own, other = isolation.namespaces(pid) or {}, isolation.namespaces(neighbour) or {}
    node = isolation.namespaces(os.getpid()) or {}
    for name, number in own.items():
        kind = "the node's" if number == node[name] else "the pod's" if number == other[name] else "its own"
        yield f"namespace {name}", kind
    for name in ("uid_map", "gid_map"):
        yield f"namespace {name}", str([tuple(each) for each in isolation.id_map(pid, name) or ()])


def _mounts(pid: int) -> Iterator[tuple[str, str]]:
    """The topmost of each place, and how many lie there. Where on the node it came from is each runtime's own."""
    found = procfs.mountinfo(pid)
    count: dict[str, int] = {}
    for mount in found:
        count[mount.path] = count.get(mount.path, 0) + 1
    for mount in found:
        super_options = [o for o in mount.super_options if not o.startswith(_VARYING)]
        bound = "" if mount.root == "/" else " part"
        words = [f"{mount.fstype}{bound}", *sorted(mount.options), "|", *sorted(super_options)]
        words += sorted({tag.partition(":")[0] for tag in mount.propagation})
        words += [f"({count[mount.path]} here)"] if count[mount.path] > 1 else []
        yield f"mount {mount.path}", " ".join(words)


def _devices(kubelet: Kubelet, container: str) -> Iterator[tuple[str, str]]:
    for line in kubelet.shell(container, _DEVICES).splitlines():
        path, _, rest = line.partition("|")
        if not path.startswith("/dev/pts/") or path == "/dev/pts/ptmx":
            yield f"device {path}", rest.replace("|", " ")


def _limits(pid: int) -> Iterator[tuple[str, str]]:
    for limit in isolation.limits(pid) or ():
        yield f"limit {limit.name}", f"{limit.soft} {limit.hard}"
    yield "oom_score_adj", str(isolation.oom_score_adj(pid))


def _cgroups(pid: int) -> Iterator[tuple[str, str]]:
    for reading in limits.readings(procfs.cgroup(pid) or (), procfs.mountinfo()):
        if reading.file == "devices.list":
            yield from ((f"device rule {line}", "allowed") for line in reading.value.splitlines())
        else:
            yield f"cgroup {reading.file}", reading.value


def _surroundings(pid: int) -> Iterator[tuple[str, str]]:
    environment = procfs.read(f"/proc/{pid}/environ").decode().split("\0")
    yield "environment", " ".join(sorted(entry for entry in environment if entry))
    yield "working directory", os.readlink(f"/proc/{pid}/cwd")
    yield "open files", " ".join(sorted(os.listdir(f"/proc/{pid}/fd"), key=int))
    yield "session and group", " ".join("own" if int(n) == pid else "another's" for n in _session(pid))


def _session(pid: int) -> tuple[bytes, bytes]:
    """Process group and session (fields 5 and 6 of proc_pid_stat(5))."""
    fields = procfs.stat_fields(procfs.read(f"/proc/{pid}/stat"))
    return fields[2], fields[3]


# ------------------------------------------------------------------- table


def measure(kubelet: Kubelet, pods: Sequence[str]) -> dict[str, Properties]:
    """A pod that is refused has the refusal as its one property."""
    kubelet.pull(BUSYBOX)
    found = {}
    for name in pods:
        try:
            found[name] = run_pod(kubelet, PODS[name])
        except grpc.RpcError as error:
            call: Any = error  # which it is too, and as such has words
            found[name] = {_REFUSED: str(call.details())}
    return found


def rows(ours: Mapping[str, Properties], theirs: Mapping[str, Properties]) -> Iterator[tuple[str, str, str, str, str]]:
    """Pod, property, ours, theirs, why. What every pod has alike is told of ``all``."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for pod, properties_of_ours in ours.items():
        refused = {_REFUSED} & {*properties_of_ours, *theirs[pod]}  # then there is nothing else to compare
        for name in sorted(refused or {*properties_of_ours, *theirs[pod]}):
            pair = (properties_of_ours.get(name, "-"), theirs[pod].get(name, "-"))
            if pair[0] != pair[1]:
                told.setdefault((name, *pair), []).append(pod)
    for (name, mine, other), pods in sorted(told.items()):
        compared = [pod for pod in ours if _REFUSED not in {*ours[pod], *theirs[pod]}]
        whose = "all" if pods == compared and len(compared) > 1 else ", ".join(pods)
        yield whose, name, mine, other, reason_for(pods, name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pod", action="append", choices=tuple(PODS), help="may be given more than once")
    options = parser.parse_args()
    if lacking := missing(_PEER):
        print(f"not installed: {', '.join(lacking)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    pods = options.pod or tuple(PODS)
    with RegistrySimulator() as registry:
        push_images(registry)
        daemon = Daemon(registry.url)
        try:
            daemon.start()
            ours = measure(daemon.kubelet, pods)
        finally:
            daemon.destroy()
        with serving(_PEER, registry) as kubelet:
            theirs = measure(kubelet, pods)
    found = list(rows(ours, theirs))
    if "user namespace" in pods:
        print(
            "containerd 1.6 has no user namespaces and runs that pod without: there the table shows what one changes.\n"
        )
    print(f"| pod | what | cri_py | containerd + {_PEER} | why |\n|---|---|---|---|---|")
    for row in found:
        print("| " + " | ".join(cell.replace("|", "\\|") or "**not explained**" for cell in row) + " |")
    return 1 if any(not row[-1] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
