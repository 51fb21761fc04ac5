"""What a device asks for in the container that gets it, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """A device node. What is None is taken from ``host_path``, or from ``path`` on the node."""

    path: str  # in the container
    host_path: str = ""
    kind: str = ""  # b, c, u or p
    major: int | None = None
    minor: int | None = None
    mode: int | None = None
    access: str = "rwm"
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    host_path: str
    container_path: str
    kind: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that is run at ``stage`` of a container's life (OCI runtime-spec, config.md, Hooks)."""

    stage: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int = 0  # 0: no limit of its own


@dataclass(frozen=True, slots=True)
class NetDevice:
    """An interface of the node that moves into the container's network."""

    host_interface: str
    name: str


@dataclass(frozen=True, slots=True)
class Rdt:
    """A class of Intel's resource control (OCI runtime-spec, config-linux.md, IntelRdt)."""

    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    monitoring: bool = False

    def __add__(self, other: Rdt) -> Rdt:
        """What both ask for, in one class: a process is in no more. Where they contradict, the later one wins."""
        return Rdt(
            clos_id=other.clos_id or self.clos_id,
            l3_cache_schema=other.l3_cache_schema or self.l3_cache_schema,
            mem_bw_schema=other.mem_bw_schema or self.mem_bw_schema,
            schemata=tuple(dict.fromkeys(self.schemata + other.schemata)),
            monitoring=self.monitoring or other.monitoring,
        )


@dataclass(frozen=True, slots=True)
class Edits:
    """In the order in which they are made: later ones win."""

    env: tuple[str, ...] = ()  # NAME=value
    nodes: tuple[Node, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hooks: tuple[Hook, ...] = ()
    groups: tuple[int, ...] = ()
    net_devices: tuple[NetDevice, ...] = ()
    rdt: Rdt | None = None

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            env=self.env + other.env,
            nodes=self.nodes + other.nodes,
            mounts=self.mounts + other.mounts,
            hooks=self.hooks + other.hooks,
            groups=self.groups + other.groups,
            net_devices=self.net_devices + other.net_devices,
            rdt=self.rdt + other.rdt if self.rdt and other.rdt else other.rdt or self.rdt,
        )
