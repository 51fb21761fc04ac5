"""Which addresses of a subnet are taken. In memory only: recovery rebuilds it from the attachments that live on."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from cri_py.errors import ConfigError, ResourceExhausted

_SMALLEST_PREFIX = 29  # network, broadcast, bridge and five pods


class AddressPool:
    """Hands out the pods' addresses of one subnet: not the network's, the broadcast's and the bridge's (the first).

    Addresses are given in turn, so that one just released is the last to be given again: peers may remember it.
    """

    def __init__(self, subnet: IPv4Network) -> None:
        if subnet.prefixlen > _SMALLEST_PREFIX:
            raise ConfigError(
                f"network.subnet {subnet} has no room for pods", hint=f"give at least a /{_SMALLEST_PREFIX}"
            )
        self.subnet = subnet
        self.gateway = subnet[1]
        self._first = int(subnet[2])
        self._size = int(subnet.broadcast_address) - self._first
        self._turn = 0  # offset from _first of the next candidate
        self._taken: set[int] = set()

    def __contains__(self, address: IPv4Address) -> bool:
        """Whether the address is one that pods get, taken or not."""
        return 0 <= int(address) - self._first < self._size

    @property
    def taken(self) -> int:
        return len(self._taken)

    def take(self) -> IPv4Address:
        """The next free address; raises ResourceExhausted when all are taken."""
        for step in range(self._size):
            offset = (self._turn + step) % self._size
            if offset not in self._taken:
                self._taken.add(offset)
                self._turn = (offset + 1) % self._size
                return IPv4Address(self._first + offset)
        raise ResourceExhausted(
            f"all {self._size} addresses of {self.subnet} are taken",
            hint="remove sandboxes that are no longer needed, or give network.subnet a larger range",
        )

    def reserve(self, addresses: Iterable[IPv4Address]) -> None:
        """Mark what lives on as taken; the turn goes on after the highest. Addresses of other subnets are nobody's."""
        offsets = {int(address) - self._first for address in addresses if address in self}
        self._taken |= offsets
        self._turn = max([self._turn, *(offset + 1 for offset in offsets)]) % self._size

    def release(self, address: IPv4Address) -> None:
        """Give back; of an address that isn't taken: nothing happens."""
        self._taken.discard(int(address) - self._first)
