"""A pod's interfaces, as the kernel lists them for a process in its namespace."""

from __future__ import annotations

import os
import subprocess

from cri_py.pods.stats_network import HolderNetwork, Interface, parse
from tests.leaks import open_descriptors

TEXT = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  1000     100    0    0    0     0          0         0  1000     100    0    0    0     0       0          0
  eth0:   306       4    1    2    0     0          0         0   750       9    3    5    0     0       0          0
net1:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
"""  # noqa: E501


def test_every_interface_but_the_loopback_is_told_in_both_directions() -> None:
    assert parse(TEXT) == (
        Interface("eth0", 306, 4, 1, 2, 750, 9, 3, 5),
        Interface("net1", 1, 2, 3, 4, 9, 10, 11, 12),
    )


def _names() -> list[str]:
    with open("/proc/self/net/dev", "rb") as file:
        return [each.name for each in parse(file.read())]


def test_the_interfaces_of_a_process_are_read_without_keeping_its_namespace() -> None:
    network = HolderNetwork(os.getpid())
    before = set(open_descriptors())
    for _ in range(100):  # interfaces of this machine's other pods come and go
        names, told, names_after = _names(), [each.name for each in network.interfaces()], _names()
        if names == names_after:
            break
    assert told == names
    assert set(open_descriptors()) == before
    network.close()
    assert network.interfaces() == ()


def test_a_process_that_has_ended_has_no_interfaces_also_when_its_pid_is_used_again() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        network = HolderNetwork(process.pid)
        process.kill()
    assert network.interfaces() == ()
    network.close()
    assert HolderNetwork(process.pid).interfaces() == ()
