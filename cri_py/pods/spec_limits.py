"""What no node should be asked for: configs over the limits, and paths that leave their place. Pure.

These checks run before a name is reserved or anything is made. What an OCI document can't express is refused where the
document is built (``cri_py.pods.spec``).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Final

from cri_py.errors import InvalidArgument
from cri_py.model import ContainerConfig, LinuxResources, NamespaceMode, NamespaceOption, SandboxConfig
from cri_py.pods.files import resolv_conf_text

_NAME_BYTES: Final = 253  # a DNS subdomain, what Kubernetes allows for names
_HOSTNAME_BYTES: Final = 64  # __NEW_UTS_LEN of the kernel
_LABEL_BYTES: Final = 4096  # key and value, as peers have it
_ANNOTATIONS_BYTES: Final = 1 << 20  # Kubernetes allows 256 KiB; the kubelet and tools add to them
_ARGUMENT_BYTES: Final = 131071  # MAX_ARG_STRLEN without its NUL: execve(2) refuses longer strings
_NAME_MAX: Final = 255
_PATH_MAX: Final = 4096
_CPU_PERIOD_US: Final = (1000, 1_000_000)
_CPU_SHARES_MAX: Final = 262144
_CPU_QUOTA_US: Final = 1000
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"  # RFC 1123 section 2.1
_HOSTNAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_CPUSET = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_GROUP_FILE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+", re.ASCII)
_PAGE_SIZE = re.compile(r"[1-9]\d*[KMG]B")
_SHM_SIZES: Final = ("shm-size.crio.io", "io.kubernetes.cri-o.ShmSize")
_SHM_MOST: Final = 1 << 40
_QUANTITY = re.compile(r"([0-9]{1,15})(|[kMGT]|[KMGT]i)", re.ASCII)
_UNITS: Final = {"": 1} | {
    unit: base**power
    for base, units in ((1000, ("k", "M", "G", "T")), (1024, ("Ki", "Mi", "Gi", "Ti")))
    for power, unit in enumerate(units, 1)
}
_SYSCTL_PART = re.compile(r"[A-Za-z0-9_.:-]+")
# namespaced ones, by the namespace that holds them (sysctl(8); the kernel's ipc/ipc_sysctl.c and mq_sysctl.c)
_IPC_SYSCTLS = re.compile(r"kernel/(shm[a-z_]+|msg[a-z_]+|sem|sem_next_id)|fs/mqueue/[a-z_]+")
_POD_NETWORK_SYSCTLS: Final = {
    "net/ipv4/ip_unprivileged_port_start": "0",  # ports below 1024 are the pod's own: no capability is worth asking for
    "net/ipv4/ping_group_range": "0 2147483647",  # ping without CAP_NET_RAW
}


def validate_sandbox_config(config: SandboxConfig) -> None:
    """Raises InvalidArgument that names the field, the limit and the way out. What form of cgroup_parent is right
    depends on who makes cgroups: ``Groups.check_parent``."""
    for field, name in (("name", config.metadata.name), ("namespace", config.metadata.namespace)):
        _check_name(f"metadata.{field}", name)
    if config.metadata.uid:
        _check_name("metadata.uid", config.metadata.uid)
    _check_hostname(config.hostname)
    _check_words(config.labels, config.annotations)
    _check_place("log_directory", config.log_directory)
    for resources in (config.overhead, config.resources):
        validate_resources(resources)
    _check_namespaces(config.namespaces)
    resolv_conf_text(config.dns, "")
    sandbox_sysctls(config)
    shm_bytes(config, 0)


def _check_namespaces(asked: NamespaceOption) -> None:
    if asked.pid is NamespaceMode.TARGET:
        raise InvalidArgument("a sandbox can't have pid: TARGET", hint="TARGET is for containers; use POD or CONTAINER")
    for name, mode in (("network", asked.network), ("ipc", asked.ipc)):
        if mode in {NamespaceMode.CONTAINER, NamespaceMode.TARGET}:
            raise InvalidArgument(f"a sandbox can't have {name}: {mode.name}", hint="use POD or NODE")


def validate_container_config(config: ContainerConfig, sandbox: SandboxConfig) -> None:
    """Raises InvalidArgument that names the field, the limit and the way out."""
    _check_name("metadata.name", config.metadata.name)
    _check_words(config.labels, config.annotations)
    container_log_path(config, sandbox)
    validate_resources(config.resources)
    for field, texts in (("command", config.command), ("args", config.args)):
        for text in texts:
            _check_argument(field, text.encode("utf-8", "surrogateescape"))
    for name, value in config.envs:
        _check_argument(f"envs {name}", name.encode("utf-8", "surrogateescape") + b"=" + value)


def container_log_path(config: ContainerConfig, sandbox: SandboxConfig) -> str:
    """The absolute path of the container's log, "" if either part of it is not given.

    Raises InvalidArgument if the path is not below the sandbox's log directory.
    """
    if not config.log_path or not sandbox.log_directory:
        return ""
    parts = config.log_path.split("/")
    if config.log_path.startswith("/") or ".." in parts or "\0" in config.log_path or parts[-1] in {"", "."}:
        raise InvalidArgument(
            f"log_path {config.log_path!r} leaves the sandbox's log_directory {sandbox.log_directory}",
            hint="log_path is the name of a file below it, such as app/0.log",
        )
    path = posixpath.normpath(posixpath.join(sandbox.log_directory, config.log_path))
    if len(path.encode()) >= _PATH_MAX or any(len(part.encode()) > _NAME_MAX for part in parts):
        raise InvalidArgument(f"log_path {config.log_path[:64]!r}… is too long for a file system")
    return path


def sandbox_sysctls(config: SandboxConfig) -> dict[str, str]:
    """Values by path below /proc/sys, for the holder's namespaces: what was asked for, on top of a pod's defaults.

    A name is given with dots or slashes (sysctl.d(5): the separator that comes first is the one). Raises
    InvalidArgument for one that isn't namespaced, or whose namespace is the host's: it would change the node.
    """
    namespaces = config.namespaces
    sysctls = dict(_POD_NETWORK_SYSCTLS) if namespaces.network is not NamespaceMode.NODE else {}
    for name, value in config.sysctls.items():
        path = _sysctl_path(name)
        if any(character in value for character in "\n\r\0"):
            raise InvalidArgument(f"the value of sysctl {name} holds a line break", hint="a value is one line")
        if path.startswith("net/"):
            holder, mode = "network", namespaces.network
        elif _IPC_SYSCTLS.fullmatch(path):
            holder, mode = "ipc", namespaces.ipc
        else:
            raise InvalidArgument(
                f"sysctl {name} is not namespaced, it would change the whole node",
                hint="pods may set net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.*",
            )
        if mode is NamespaceMode.NODE:
            raise InvalidArgument(
                f"sysctl {name} is refused: the pod's {holder} namespace is the node's",
                hint=f"leave it out, or give the pod its own {holder} namespace",
            )
        sysctls[path] = value
    return sysctls


def shm_bytes(config: SandboxConfig, usual: int) -> int:
    """How much the pod's /dev/shm may hold. CRI has no field for it; CRI-O's annotations are taken for one.

    Raises InvalidArgument for what is no quantity of Kubernetes', or none at all. What is in it counts as memory of the
    pod, whose limit holds all the same.
    """
    for name in _SHM_SIZES:
        if name in config.annotations:
            found = _QUANTITY.fullmatch(config.annotations[name])
            size = int(found[1]) * _UNITS[found[2]] if found else 0
            if not 0 < size <= _SHM_MOST:
                raise InvalidArgument(
                    f"the annotation {name} is {config.annotations[name]!r}", hint="a size reads like 128Mi, up to 1Ti"
                )
            return size
    return usual


def _sysctl_path(name: str) -> str:
    separators = [character for character in name if character in "./"]
    slashes = bool(separators) and separators[0] == "/"
    parts = name.split("/") if slashes else name.replace("/", "\0").replace(".", "/").replace("\0", ".").split("/")
    if len(parts) < 2 or not all(_SYSCTL_PART.fullmatch(part) and part not in {".", ".."} for part in parts):
        raise InvalidArgument(f"{name!r} is no sysctl", hint="a name reads like net.ipv4.ip_forward")
    return "/".join(parts)


def _check_name(field: str, name: str) -> None:
    encoded = name.encode("utf-8", "surrogateescape")
    if not name or len(encoded) > _NAME_BYTES:
        raise InvalidArgument(f"{field} has {len(encoded)} bytes", hint=f"a name has 1 to {_NAME_BYTES} bytes")
    if not name.isprintable():
        raise InvalidArgument(f"{field} {name!r} holds characters that can't be printed", hint="use letters and digits")


def _check_hostname(hostname: str) -> None:
    if not hostname:
        return
    if len(hostname.encode()) > _HOSTNAME_BYTES:
        raise InvalidArgument(
            f"hostname {hostname[:80]!r} has more than {_HOSTNAME_BYTES} bytes", hint="the kernel takes no longer one"
        )
    if not _HOSTNAME.fullmatch(hostname):
        raise InvalidArgument(
            f"hostname {hostname!r} is none", hint="use letters, digits and '-', between dots at most 63 of them"
        )


def _check_words(labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > _LABEL_BYTES:
            raise InvalidArgument(f"label {key[:64]!r} has {size} bytes", hint=f"at most {_LABEL_BYTES} with its value")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
    if size > _ANNOTATIONS_BYTES:
        raise InvalidArgument(f"the annotations have {size} bytes", hint=f"at most {_ANNOTATIONS_BYTES} in all")


def _check_place(field: str, path: str) -> None:
    """Empty, or absolute and without ``..``."""
    if path and (not path.startswith("/") or ".." in path.split("/") or "\0" in path or len(path) >= _PATH_MAX):
        raise InvalidArgument(f"{field} {path[:80]!r} is no place", hint="use an absolute path without '..'")


def check_cgroup_parent(parent: str) -> None:
    """A path, for the driver cgroupfs. Raises InvalidArgument."""
    if parent.endswith(".slice") and "/" not in parent:
        raise InvalidArgument(
            f"cgroup_parent {parent!r} is a slice of the systemd driver, and this runtime has the driver cgroupfs",
            hint='name a path such as /kubepods/podUID, or set cgroups.driver = "systemd" here, or cgroupDriver: '
            "cgroupfs in the kubelet's config, or let it ask the runtime (RuntimeConfig)",
        )
    _check_place("cgroup_parent", parent)
    if parent and not parent.strip("/"):
        raise InvalidArgument("cgroup_parent is the root of the hierarchy", hint="name a group below it, or none")
    if any(character.isspace() for character in parent):
        raise InvalidArgument(f"cgroup_parent {parent!r} holds spaces", hint="use a path such as /kubepods/podUID")


def validate_resources(resources: LinuxResources | None) -> None:
    """Raises InvalidArgument that names the field, its value and what it takes."""
    if resources is None:
        return
    low, high = _CPU_PERIOD_US
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    faults = {
        "cpu_period": resources.cpu_period != 0 and not low <= resources.cpu_period <= high,
        "cpu_quota": resources.cpu_quota not in {0, -1} and resources.cpu_quota < _CPU_QUOTA_US,
        "cpu_shares": resources.cpu_shares != 0 and not 2 <= resources.cpu_shares <= _CPU_SHARES_MAX,
        "memory_limit_in_bytes": limit < -1,
        "memory_swap_limit_in_bytes": swap < -1 or (0 < swap < limit),
        "oom_score_adj": not -1000 <= resources.oom_score_adj <= 1000,
        "cpuset_cpus": bool(resources.cpuset_cpus) and not _CPUSET.fullmatch(resources.cpuset_cpus),
        "cpuset_mems": bool(resources.cpuset_mems) and not _CPUSET.fullmatch(resources.cpuset_mems),
        "hugepage_limits": not all(_PAGE_SIZE.fullmatch(each.page_size) for each in resources.hugepage_limits),
        "unified": not all(_GROUP_FILE.fullmatch(key) for key in resources.unified),
    }
    for field, faulty in faults.items():
        if faulty:
            raise InvalidArgument(f"resources.{field} is {getattr(resources, field)!r}", hint=_RESOURCE_HINTS[field])


_RESOURCE_HINTS: Final = {
    "cpu_period": "µs, from 1000 to 1000000, or 0 for the kernel's default",
    "cpu_quota": "µs, at least 1000, or -1 for none",
    "cpu_shares": "2 to 262144, or 0 for the kernel's default",
    "memory_limit_in_bytes": "a number of bytes, 0 or -1 for none",
    "memory_swap_limit_in_bytes": "memory and swap together, so not less than memory_limit_in_bytes",
    "oom_score_adj": "-1000 to 1000",
    "cpuset_cpus": "a list such as 0-3,7",
    "cpuset_mems": "a list such as 0,1",
    "hugepage_limits": "sizes of pages are written as 64KB, 2MB, 1GB",
    "unified": "keys are files of cgroup v2 such as memory.high",
}


def validate_exec(command: Sequence[str]) -> None:
    """Raises InvalidArgument for a command that execve(2) can't take."""
    if not command or not command[0]:
        raise InvalidArgument("the command to execute is empty", hint="name a program")
    for argument in command:
        _check_argument("cmd", argument.encode("utf-8", "surrogateescape"))


def _check_argument(field: str, encoded: bytes) -> None:
    if len(encoded) > _ARGUMENT_BYTES:
        raise InvalidArgument(
            f"{field} holds a string of {len(encoded)} bytes, the kernel passes at most {_ARGUMENT_BYTES}",
            hint="put long values into a file",
        )
    if b"\0" in encoded:
        raise InvalidArgument(f"{field} holds a NUL", hint="execve(2) can't pass one")
