"""The address pool as a state machine: never an address twice, never one that is not a pod's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, precondition, rule

from cri_py.errors import ConfigError, ResourceExhausted
from cri_py.network.ipam import AddressPool

SUBNET = IPv4Network("10.1.2.0/28")
PODS = [SUBNET[n] for n in range(2, 15)]  # not the network, the bridge, the broadcast


class Addresses(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = AddressPool(SUBNET)
        self.held: set[IPv4Address] = set()

    taken = Bundle("taken")

    @precondition(lambda self: len(self.held) < len(PODS))
    @rule(target=taken)
    def take(self) -> IPv4Address:
        address = self.pool.take()
        assert address in PODS
        assert address not in self.held
        self.held.add(address)
        return address

    @rule(address=taken)
    def release(self, address: IPv4Address) -> None:
        self.pool.release(address)
        self.held.discard(address)

    @rule(target=taken, addresses=st.lists(st.sampled_from(PODS), max_size=3))
    def reserve(self, addresses: list[IPv4Address]) -> object:
        self.pool.reserve([*addresses, IPv4Address("192.0.2.1")])
        self.held |= set(addresses)
        return multiple(*addresses)

    @precondition(lambda self: len(self.held) == len(PODS))
    @rule()
    def refuse(self) -> None:
        with pytest.raises(ResourceExhausted, match=r"all 13 addresses of 10\.1\.2\.0/28"):
            self.pool.take()

    @invariant()
    def counts(self) -> None:
        assert self.pool.taken == len(self.held)


TestAddresses = Addresses.TestCase


def test_a_released_address_is_the_last_to_be_given_again() -> None:
    pool = AddressPool(SUBNET)
    first = pool.take()
    pool.release(first)
    given = [pool.take() for _ in PODS]
    assert given[-1] == first
    assert set(given) == set(PODS)


def test_the_turn_goes_on_after_what_lives_on() -> None:
    pool = AddressPool(SUBNET)
    pool.reserve([PODS[4], PODS[2]])
    assert pool.take() == PODS[5]


def test_the_turn_wraps_after_the_last_address_lives_on() -> None:
    pool = AddressPool(SUBNET)
    pool.reserve([PODS[-1]])
    assert pool.take() == PODS[0]


def test_a_subnet_without_room_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"10\.0\.0\.0/30 has no room.*at least a /29"):
        AddressPool(IPv4Network("10.0.0.0/30"))
