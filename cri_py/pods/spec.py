"""From what the kubelet asks for to the OCI document (runtime-spec 1.3) that a pod's monitor executes. Pure.

Nothing is looked up here: pids, paths, device numbers and what the host has come in as values. The document is
JSON-able. Environment values may be any bytes; they are text by ``surrogateescape``, which ``json`` carries as escapes
and ``os.fsencode`` turns back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cri_py.errors import InvalidArgument
from cri_py.kernel import capabilities
from cri_py.model import (
    ContainerConfig,
    Features,
    ImageConfig,
    LinuxResources,
    NamespaceMode,
    NamespaceOption,
    Sandbox,
    SandboxConfig,
)
from cri_py.pods import spec_devices, spec_mounts, spec_security, spec_selinux, spec_userns
from cri_py.pods.files import sandbox_hostname
from cri_py.pods.spec_devices import DeviceNode
from cri_py.pods.spec_mounts import SandboxFiles
from cri_py.pods.spec_security import user_request

__all__ = [
    "DeviceNode",
    "SandboxFiles",
    "SpecDefaults",
    "check_sandbox_security",
    "container_document",
    "sandbox_namespaces",
    "user_request",
]

Json = dict[str, Any]
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ANNOTATION: Final = "io.kubernetes.cri."  # runtimes of virtual machines read these (kata, runsc)


@dataclass(frozen=True, slots=True)
class SpecDefaults:
    """What the node's config and kernel decide for every container."""

    seccomp: bool = False  # whether containers that name no profile get the default one
    nofile: int = 1048576  # RLIMIT_NOFILE, soft and hard
    arch: str = "x86_64"  # the machine, as uname(2) has it
    kernel: tuple[int, int] = (5, 10)  # its version, major and minor
    capabilities: tuple[str, ...] = capabilities.NAMES  # those that the daemon has, and can give
    cgroup_version: int = 1  # on 2 a container has a cgroup namespace of its own
    apparmor: bool = False  # whether the kernel has it
    apparmor_profile: str = ""  # what containers get that don't ask for another, "" for none
    selinux: spec_selinux.Contexts | None = None  # what containers are labelled by, None where they are not
    node_hostname: str = ""
    features: Features = field(default_factory=Features)


def container_document(
    *,
    sandbox: Sandbox,
    config: ContainerConfig,
    image: ImageConfig,
    container_id: str,
    root_path: str,
    holder_pid: int,
    files: SandboxFiles,
    defaults: SpecDefaults,
    cgroup: str = "",
    target_pid: int | None = None,
    device_nodes: Sequence[DeviceNode] = (),
    localhost_seccomp: Mapping[str, Any] | None = None,
    image_volumes: spec_mounts.ImageVolumes | None = None,
) -> Json:
    """The whole document of a container.

    ``root_path``: its mounted root file system. ``holder_pid``: the process whose namespaces the pod shares.
    ``cgroup``: below the root of every hierarchy, "" to leave it out. ``target_pid``: a process of the container that
    pid mode TARGET names. ``device_nodes``: those that the container gets beside the standard ones, looked up.
    ``localhost_seccomp``: the profile that the seccomp field names, in OCI's form. ``image_volumes``: the directories
    of the images that mounts name, by container_path.

    Raises InvalidArgument or Unimplemented that names the field which can't be honoured.
    """
    _check_container_security(sandbox, config, defaults)
    own = spec_mounts.OwnFiles(image_volumes or {}, image.volumes, root_path, labelled=defaults.selinux is not None)
    document: Json = {
        "ociVersion": "1.3.0",
        "root": {"path": root_path, "readonly": config.security.readonly_rootfs},
        "process": _process(sandbox, config, image, defaults),
        "mounts": spec_mounts.mounts(sandbox, config, files, own, defaults.features),
        "annotations": _annotations(sandbox, config, container_id),
        "linux": _linux(config, device_nodes)
        | spec_userns.mappings(sandbox.config.namespaces)
        | {"namespaces": _namespaces(sandbox, config, holder_pid, target_pid, defaults)},
    }
    if cgroup:
        document["linux"]["cgroupsPath"] = cgroup
    _label(document, sandbox, config, defaults)
    granted = document["process"]["capabilities"]["bounding"]
    profile = spec_security.seccomp_profile(
        config.security, granted, enabled=defaults.seccomp, arch=defaults.arch, localhost=localhost_seccomp
    )
    if profile is not None:
        document["linux"]["seccomp"] = profile
    return document


def _label(document: Json, sandbox: Sandbox, config: ContainerConfig, defaults: SpecDefaults) -> None:
    if profile := apparmor_profile(config, defaults):
        document["process"]["apparmorProfile"] = profile
    if defaults.selinux is not None:
        labels = spec_selinux.container_labels(defaults.selinux, sandbox, config)
        document["process"]["selinuxLabel"] = labels.process
        document["linux"]["mountLabel"] = labels.file


def apparmor_profile(config: ContainerConfig, defaults: SpecDefaults) -> str:
    """The name of the AppArmor profile that the container runs under, "" for none."""
    return spec_security.apparmor_profile(
        config.security.apparmor,
        privileged=config.security.privileged,
        enabled=defaults.apparmor,
        default=defaults.apparmor_profile,
    )


def sandbox_namespaces(config: SandboxConfig) -> tuple[str, ...]:
    """The namespaces that the holder of the sandbox has of its own, in OCI's words; the others are the host's.

    The UTS namespace goes with the network: a pod on the host's network has the host's name. A pid namespace is the
    pod's only in mode POD; in mode CONTAINER every container makes one.
    """
    asked = config.namespaces
    own = []
    if asked.network is not NamespaceMode.NODE:
        own += ["network", "uts"]
    if asked.ipc is not NamespaceMode.NODE:
        own.append("ipc")
    if asked.pid is NamespaceMode.POD:
        own.append("pid")
    if spec_userns.has_own(asked):
        own.append("user")
    return tuple(own)


def check_sandbox_security(config: SandboxConfig, defaults: SpecDefaults) -> None:
    """Raises for what a sandbox is asked to enforce and this version or this host can't, or nobody could."""
    spec_security.check_sandbox(config)
    spec_userns.check_sandbox(config, why_not=defaults.features.no_user_namespaces)
    spec_security.apparmor_profile(config.apparmor, privileged=False, enabled=defaults.apparmor, default="")
    spec_selinux.check(config.selinux, defaults.selinux)


def _linux(config: ContainerConfig, nodes: Sequence[DeviceNode]) -> Json:
    security = config.security
    rules = spec_devices.device_rules(nodes, privileged=security.privileged)
    return {
        "devices": spec_devices.device_nodes(config, nodes),
        "resources": linux_resources(config.resources) | {"devices": rules},
        "rootfsPropagation": spec_mounts.root_propagation(config),
        "maskedPaths": _paths("masked_paths", security.masked_paths, security.privileged),
        "readonlyPaths": _paths("readonly_paths", security.readonly_paths, security.privileged),
    }


def _check_container_security(sandbox: Sandbox, config: ContainerConfig, defaults: SpecDefaults) -> None:
    _check_privileged(sandbox, config)
    spec_selinux.check(config.security.selinux, defaults.selinux)


def _check_privileged(sandbox: Sandbox, config: ContainerConfig) -> None:
    if config.security.privileged and not sandbox.config.privileged:
        raise InvalidArgument(
            f"container {config.metadata.name} is privileged, its sandbox is not", hint="run the sandbox privileged too"
        )


# ---------------------------------------------------------------- process


def _process(sandbox: Sandbox, config: ContainerConfig, image: ImageConfig, defaults: SpecDefaults) -> Json:
    security = config.security
    cwd = config.working_dir or image.working_dir or "/"
    if not cwd.startswith("/"):
        raise InvalidArgument(f"working_dir {cwd!r} is relative", hint="use an absolute path")
    return {
        "terminal": config.tty,
        "user": spec_security.process_user(user_request(config, image)),
        "args": _arguments(config, image),
        "env": _environment(sandbox, config, image, defaults),
        "cwd": cwd,
        "capabilities": spec_security.process_capabilities(security, defaults.capabilities),
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": defaults.nofile, "hard": defaults.nofile}],
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": config.resources.oom_score_adj if config.resources else 0,
    }


def _arguments(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """The kubelet's command goes before the image's entrypoint, and makes the image's cmd meaningless."""
    command = config.command or image.entrypoint
    arguments = config.args or (() if config.command else image.cmd)
    if not (command or arguments):
        raise InvalidArgument(
            f"no command: neither container {config.metadata.name} nor its image names one",
            hint="set command or args, or give the image an ENTRYPOINT or CMD",
        )
    return [*command, *arguments]


def _environment(sandbox: Sandbox, config: ContainerConfig, image: ImageConfig, defaults: SpecDefaults) -> list[str]:
    """NAME=value, each name once; of ours, the image's and the kubelet's values the last one wins."""
    ours = [_PATH, f"HOSTNAME={sandbox_hostname(sandbox, defaults.node_hostname)}"]
    if config.tty:
        ours.append("TERM=xterm")
    values = dict(entry.split("=", 1) for entry in (*ours, *image.env) if "=" in entry)
    for name, value in config.envs:
        values[name] = value.decode("utf-8", "surrogateescape")
    for name, text in values.items():
        if not name or "\0" in name or "\0" in text:
            raise InvalidArgument(f"the environment variable {name!r} can't be passed by execve(2)")
    return [f"{name}={text}" for name, text in values.items()]


def _annotations(sandbox: Sandbox, config: ContainerConfig, container_id: str) -> dict[str, str]:
    metadata = sandbox.config.metadata
    words = {
        "container-type": "container",
        "container-name": config.metadata.name,
        "container-id": container_id,
        "image-name": config.image.user_specified_image or config.image.image,
        "sandbox-id": sandbox.id,
        "sandbox-name": metadata.name,
        "sandbox-namespace": metadata.namespace,
        "sandbox-uid": metadata.uid,
    }
    return {_ANNOTATION + word: text for word, text in words.items()}


# ------------------------------------------------------------------ linux


def _namespaces(
    sandbox: Sandbox, config: ContainerConfig, holder_pid: int, target_pid: int | None, defaults: SpecDefaults
) -> list[Json]:
    """``linux.namespaces``: without a path a new one, with a path a joined one, not listed the host's."""
    asked, pod = config.security.namespaces, sandbox.config.namespaces
    for name, wanted, given in (
        ("network", asked.network, pod.network),
        ("ipc", asked.ipc, pod.ipc),
        ("pid", asked.pid, pod.pid),
    ):
        if wanted is NamespaceMode.NODE and given is not NamespaceMode.NODE:
            raise InvalidArgument(
                f"namespace_options.{name} of container {config.metadata.name} is NODE, its sandbox's is {given.name}",
                hint="a container shares the namespaces of its sandbox: run the sandbox with NODE",
            )
        if name != "pid" and wanted in {NamespaceMode.CONTAINER, NamespaceMode.TARGET}:
            raise InvalidArgument(f"namespace_options.{name} is {wanted.name}", hint="use POD or NODE")
    spec_userns.check_container(config, pod)
    own = sandbox_namespaces(sandbox.config)
    listed: list[Json] = [{"type": "mount"}]
    if spec_userns.has_own(pod):
        listed.append({"type": "user", "path": f"/proc/{holder_pid}/ns/user"})
    for kind, name in (("network", "net"), ("uts", "uts"), ("ipc", "ipc")):
        if kind in own:
            listed.append({"type": kind, "path": f"/proc/{holder_pid}/ns/{name}"})
    listed += _pid_namespace(asked, pod, holder_pid, target_pid)
    if defaults.cgroup_version == 2 and not config.security.privileged:
        listed.append({"type": "cgroup"})
    return listed


def _pid_namespace(asked: NamespaceOption, pod: NamespaceOption, holder_pid: int, target_pid: int | None) -> list[Json]:
    """POD, which is also what a client sends that says nothing, means what the sandbox was run with."""
    if asked.pid is NamespaceMode.TARGET:
        if target_pid is None:
            raise InvalidArgument(
                f"pid mode TARGET: container {asked.target_id!r} has no process to share with",
                hint="target_id names a running container of the same sandbox",
            )
        return [{"type": "pid", "path": f"/proc/{target_pid}/ns/pid"}]
    if NamespaceMode.CONTAINER in {asked.pid, pod.pid} and asked.pid is not NamespaceMode.NODE:
        return [{"type": "pid"}]
    if pod.pid is NamespaceMode.NODE:
        return []
    return [{"type": "pid", "path": f"/proc/{holder_pid}/ns/pid"}]


def _paths(field: str, paths: Sequence[str], privileged: bool) -> list[str]:
    """As sent, and none for a privileged container."""
    for path in paths:
        if not path.startswith("/") or ".." in path.split("/"):
            raise InvalidArgument(f"{field} has {path!r}", hint="use absolute paths without '..'")
    return [] if privileged else list(paths)


def linux_resources(asked: LinuxResources | None) -> Json:
    """``linux.resources`` of what was asked for; 0 and "" are left out.

    A memory limit without a swap limit is one for both together: a container that may swap without end is not limited.
    """
    if asked is None:
        return {}
    limit = asked.memory_limit_in_bytes
    memory = {"limit": limit, "swap": asked.memory_swap_limit_in_bytes or limit}
    cpu = {
        "shares": asked.cpu_shares,
        "quota": asked.cpu_quota,
        "period": asked.cpu_period,
        "cpus": asked.cpuset_cpus,
        "mems": asked.cpuset_mems,
    }
    sections: Json = {
        "memory": {key: value for key, value in memory.items() if value},
        "cpu": {key: value for key, value in cpu.items() if value},
        "hugepageLimits": [{"pageSize": huge.page_size, "limit": huge.limit} for huge in asked.hugepage_limits],
        "unified": dict(asked.unified),
    }
    return {name: section for name, section in sections.items() if section}
