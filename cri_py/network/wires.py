"""The seam between a pod's network and who makes it: the built-in bridge, or plugins of CNI."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Protocol

from cri_py.model import Attachment, Condition, Sandbox


@dataclass(frozen=True, slots=True)
class Surroundings:
    """How the node reaches a pod: by which interface, and in which networks it has its neighbours."""

    interface: str
    networks: tuple[IPv4Network | IPv6Network, ...]


class Wires(Protocol):
    """What gives a pod its network namespace, interface and addresses."""

    @property
    def tables(self) -> frozenset[str]:
        """The names of the nft tables that these wires keep; written anew by :meth:`restore_rules`."""
        ...

    async def restore_rules(self) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def condition(self) -> Condition: ...

    def damage(self) -> str:
        """What somebody has removed that :meth:`start` brings back, "" if nothing. Asked before every attachment."""
        ...

    def verbose(self) -> dict[str, str]:
        """What ``crictl info`` shows of the network, beside the condition."""
        ...

    async def update_pod_cidr(self, cidr: str) -> None: ...

    async def attach(self, sandbox: Sandbox, on_netns: Callable[[], None], holder: int) -> Attachment: ...

    async def detach(self, attachment: Attachment) -> None: ...

    def adopt(self, attachment: Attachment) -> bool: ...

    async def sweep(self, known: Set[str]) -> list[str]: ...

    def pin_of(self, sandbox: Sandbox) -> str: ...

    def surroundings(self, attachment: Attachment) -> Surroundings | None:
        """None: the wires lead host ports to the pod themselves."""
        ...

    def result(self, attachment: Attachment) -> dict[str, Any] | None:
        """The attachment in the form of a CNI result, for people and agents that read it."""
        ...
