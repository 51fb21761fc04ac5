"""Which addresses are taken. In memory only: recovery rebuilds it from the attachments that live on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface
from typing import Final

from cri_py.errors import ConfigError, ResourceExhausted

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

_FEWEST: Final = 8  # network, broadcast, bridge and five pods
_MOST: Final = 1 << 20  # an IPv6 range has more than anybody can go through in turn


class AddressPool:
    """Hands out the pods' addresses of one subnet: not the network's, the broadcast's and the bridge's (the first).

    Addresses are given in turn, so that one just released is the last to be given again: peers may remember it.
    """

    def __init__(self, subnet: Network) -> None:
        if subnet.num_addresses < _FEWEST:
            raise ConfigError(
                f"{subnet} has no room for pods", hint=f"give network.subnet at least a /{subnet.max_prefixlen - 3}"
            )
        self.subnet = subnet
        self.gateway: Address = subnet[1]
        self._first: Address = subnet[2]
        self._size = min(int(subnet.broadcast_address) - int(self._first), _MOST)
        self._turn = 0  # offset from _first of the next candidate
        self._taken: set[int] = set()

    def __contains__(self, address: Address) -> bool:
        """Whether the address is one that pods get, taken or not."""
        return address.version == self.subnet.version and 0 <= int(address) - int(self._first) < self._size

    @property
    def taken(self) -> int:
        return len(self._taken)

    def take(self) -> Address:
        """The next free address; raises ResourceExhausted when all are taken."""
        for step in range(self._size):
            offset = (self._turn + step) % self._size
            if offset not in self._taken:
                self._taken.add(offset)
                self._turn = (offset + 1) % self._size
                return self._first + offset
        raise ResourceExhausted(
            f"all {self._size} addresses of {self.subnet} are taken",
            hint="remove sandboxes that are no longer needed, or give network.subnet a larger range",
        )

    def reserve(self, addresses: Iterable[Address]) -> None:
        """Mark what lives on as taken; the turn goes on after the highest. Addresses of other subnets are nobody's."""
        offsets = {int(address) - int(self._first) for address in addresses if address in self}
        self._taken |= offsets
        self._turn = max([self._turn, *(offset + 1 for offset in offsets)]) % self._size

    def release(self, address: Address) -> None:
        """Give back; of an address that isn't taken: nothing happens."""
        if address in self:
            self._taken.discard(int(address) - int(self._first))


class Ranges:
    """The pods' subnets: those that addresses are given from, one of each family at most, and those of before.

    A pod keeps its address when the subnets change, so no pool is forgotten. Raises ConfigError for two of a family.
    """

    def __init__(self, subnets: Sequence[Network], former: Iterable[Network] = ()) -> None:
        self._pools: dict[Network, AddressPool] = {}
        self._current: tuple[AddressPool, ...] = ()
        for subnet in former:
            self._pool_of(subnet)
        self.change(subnets)

    def change(self, subnets: Sequence[Network]) -> None:
        """Give addresses of ``subnets`` from now on."""
        versions = [subnet.version for subnet in subnets]
        if not versions or len(versions) != len(set(versions)):
            raise ConfigError(
                f"pods can't have {', '.join(map(str, subnets)) or 'no subnet'}", hint="give one subnet of each family"
            )
        self._current = tuple(self._pool_of(subnet) for subnet in subnets)

    def _pool_of(self, subnet: Network) -> AddressPool:
        overlapping = next((held for held in self._pools if overlap(held, subnet)), None)
        if overlapping is not None and overlapping != subnet:
            raise ConfigError(f"{subnet} overlaps {overlapping}, of which pods may have addresses", hint="use another")
        return self._pools.setdefault(subnet, AddressPool(subnet))

    @property
    def subnets(self) -> tuple[Network, ...]:
        """Those that addresses are given from."""
        return tuple(pool.subnet for pool in self._current)

    @property
    def all(self) -> tuple[Network, ...]:
        """Those of before, too."""
        return tuple(self._pools)

    @property
    def gateways(self) -> tuple[Interface, ...]:
        """The bridge's address in each of all subnets."""
        return tuple(_in_subnet(pool.gateway, pool.subnet) for pool in self._pools.values())

    @property
    def taken(self) -> int:
        return sum(pool.taken for pool in self._pools.values())

    def in_subnet(self, address: Address) -> Interface:
        """One of the addresses with the prefix of its subnet; of a stranger, of itself alone."""
        found = next((pool.subnet for pool in self._pools.values() if address in pool), None)
        return ip_interface(address) if found is None else _in_subnet(address, found)

    def gateway_of(self, address: Interface) -> Address:
        """The bridge's address in the subnet of one of the addresses; of a stranger it is nobody's: itself."""
        pool = self._pools.get(address.network)
        return address.ip if pool is None else pool.gateway

    def take(self) -> tuple[Interface, ...]:
        """An address of each subnet with its prefix, or of none. Raises ResourceExhausted."""
        found: list[Interface] = []
        try:
            for pool in self._current:
                found.append(_in_subnet(pool.take(), pool.subnet))  # noqa: PERF401 what was taken is given back below
        except ResourceExhausted:
            self.release(address.ip for address in found)
            raise
        return tuple(found)

    def reserve(self, addresses: Iterable[Address]) -> tuple[Address, ...]:
        """Mark what lives on as taken; returns those that are of our subnets."""
        ours = tuple(address for address in addresses if any(address in pool for pool in self._pools.values()))
        for pool in self._pools.values():
            pool.reserve(ours)
        return ours

    def release(self, addresses: Iterable[Address]) -> None:
        """Give back; of addresses that aren't taken: nothing happens."""
        for address in addresses:
            for pool in self._pools.values():
                pool.release(address)


def _in_subnet(address: Address, subnet: Network) -> Interface:
    return ip_interface((address, subnet.prefixlen))


def overlap(one: Network, other: Network) -> bool:
    """Whether two networks have an address in common."""
    return one.version == other.version and one.overlaps(other)
