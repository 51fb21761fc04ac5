"""Limits, membership and the end of groups of processes, on cgroup v1 and v2 alike.

``detect()`` finds what the node has; everything else is a method of the ``Cgroups`` that it returns.
"""

from cri_py.cgroups.detection import detect
from cri_py.cgroups.hierarchy import Cgroups, ExecScope, Made, oom_count, read_oom
from cri_py.cgroups.plans import cpu_weight
from cri_py.cgroups.writes import Write

__all__ = ["Cgroups", "ExecScope", "Made", "Write", "cpu_weight", "detect", "oom_count", "read_oom"]
