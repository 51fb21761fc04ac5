"""What an update asks for, merged into what holds."""

from __future__ import annotations

from cri_py.model import LinuxResources
from cri_py.pods.updates import merged

MIB = 1 << 20


def test_what_is_not_asked_for_stays() -> None:
    current = LinuxResources(cpu_shares=5, cpuset_cpus="0", unified={"memory.high": "1", "memory.low": "2"})
    asked = LinuxResources(cpu_quota=2000, unified={"memory.low": "3"})
    assert merged(current, asked) == LinuxResources(
        cpu_shares=5, cpu_quota=2000, cpuset_cpus="0", unified={"memory.high": "1", "memory.low": "3"}
    )


def test_a_container_without_swap_stays_without_swap() -> None:
    current = LinuxResources(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=64 * MIB)
    changed = merged(current, LinuxResources(memory_limit_in_bytes=128 * MIB))
    assert changed.memory_swap_limit_in_bytes == 128 * MIB


def test_swap_that_was_asked_for_is_kept() -> None:
    current = LinuxResources(memory_limit_in_bytes=64 * MIB, memory_swap_limit_in_bytes=256 * MIB)
    assert merged(current, LinuxResources(memory_limit_in_bytes=128 * MIB)) == LinuxResources(
        memory_limit_in_bytes=128 * MIB, memory_swap_limit_in_bytes=256 * MIB
    )
