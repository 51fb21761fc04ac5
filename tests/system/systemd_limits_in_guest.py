"""Limits for which user-mode Linux has no controller or no disk, by workload, with the driver systemd.

Only in the guest with a kernel as nodes have it. What every kernel has is in systemd_in_guest.py.
"""

from __future__ import annotations

from tests.system.systemd_in_guest import served  # noqa: F401
from tests.system.test_limits import (  # noqa: F401
    huge_pages,
    loop_device,
    test_a_cpuset_is_met_by_affinity_or_refused_by_name,
    test_a_rate_of_io_is_met_by_waiting,
    test_huge_pages_are_met_by_mmap,
)
