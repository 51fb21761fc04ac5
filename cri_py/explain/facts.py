"""What an explanation is made from and made of: the container as its record has it, what the kernel shows, and facts.

Frozen values without I/O. Documents are JSON as parsed: the kubelet's configs with CRI's field names, the OCI document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cri_py.cgroups.limits import Reading
from cri_py.kernel.isolation import IdRange, ResourceLimit
from cri_py.kernel.procfs import MountPoint

Json = Mapping[str, Any]


# ------------------------------------------------------------- the record


@dataclass(frozen=True, slots=True)
class Asked:
    """What decided: CRI's ContainerConfig and PodSandboxConfig as they came, and the OCI document made of them."""

    container: Json
    sandbox: Json
    document: Json


@dataclass(frozen=True, slots=True)
class Member:
    """A container of the same pod; ``pid`` is 0 where it doesn't run."""

    id: str
    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Subject:
    """The container, as the daemon tells of it. Times in ns since 1970, 0 for never; pids 0 where nothing runs."""

    id: str
    name: str
    image: str
    image_id: str
    state: str  # created, running, exited or unknown
    created_at: int
    started_at: int
    finished_at: int
    exit_code: int
    reason: str
    message: str
    pid: int
    cgroup: str
    bundle: str
    user: tuple[int, int, tuple[int, ...]] | None  # uid, gid, supplementary groups
    resources: Json  # of now: an update changes them
    sandbox_id: str
    holder_pid: int
    monitor_pid: int
    asked: Asked


# ------------------------------------------------------------- the kernel


@dataclass(frozen=True, slots=True)
class Party:
    """Another process whose namespaces are compared: the node's own, the pod's holder, a container of the pod."""

    kind: str  # node, holder or container
    pid: int
    namespaces: Mapping[str, int]
    id: str = ""  # of a container
    name: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """A device node in the container's /dev."""

    path: str
    kind: str  # c or b
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Seen:
    """All that was read of the container's first process; ``namespaces`` by the names in /proc/PID/ns."""

    pid: int
    namespaces: Mapping[str, int]
    parties: Sequence[Party]
    status: Mapping[str, str]
    node_filters: int  # seccomp filters that the monitor, and so every container, is under already
    uid_map: Sequence[IdRange]
    gid_map: Sequence[IdRange]
    limits: Sequence[ResourceLimit]
    mounts: Sequence[MountPoint]
    cgroups: Sequence[Reading]
    devices: Sequence[Device]
    oom_score_adj: int
    label: str  # of AppArmor or SELinux, "" where the kernel has neither


# ------------------------------------------------------- what is told of it


@dataclass(frozen=True, slots=True)
class Origin:
    """What decided a fact. ``of``: container or sandbox (the kubelet's configs), image, node (our TOML), runtime.

    ``field`` is the path of the field, "" where no field has a say; ``asked`` what it holds, None if it was left out.
    """

    of: str
    field: str = ""
    asked: Any = None


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that holds. ``value`` is JSON for programs, ``text`` the same for people."""

    name: str
    value: Any
    text: str
    origin: Origin
    read: str = ""  # the file that it was read from
    means: str = ""  # for who does not know the word
    differs: str = ""  # why it is not what was asked for, "" where it is


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    title: str
    about: str  # a few sentences for who learns
    pages: tuple[str, ...]  # of the manual
    made_by: tuple[str, ...]  # where in the code to read on
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """``source``: kernel, or record where no process is there to be looked at; ``why`` then says so."""

    subject: Subject
    source: str
    why: str
    sections: tuple[Section, ...] = field(default=())
