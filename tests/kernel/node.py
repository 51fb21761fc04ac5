"""The cgroups of the machine that the tests run on, and what its versions can do."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

from cri_py.cgroups import detect
from cri_py.cgroups.v1 import V1
from cri_py.kernel import procfs

NODE = detect()
UNIFIED = next(mount.path for mount in procfs.mountinfo() if mount.fstype == "cgroup2")
VERSIONS = ["v1", "v2"] if isinstance(NODE, V1) else ["v2"]
WITH_LIMITS = ["v1"] if isinstance(NODE, V1) else ["v2"]
WITH_HUGE_PAGES = [
    f"v{1 if isinstance(NODE, V1) and any('hugetlb' in each.controllers for each in NODE.hierarchies) else 2}"
]
_NUMBER = itertools.count()

Act = Callable[[], object]
MakeMember = Callable[..., int]


def own_name() -> str:
    """Of a group that no other test has."""
    return f"cri_py-test-{os.getpid()}-{next(_NUMBER)}"
