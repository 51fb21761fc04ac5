"""Which cgroups this node has, as its mounts tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri_py.cgroups.v1 import V1, Hierarchy
from cri_py.cgroups.v2 import V2
from cri_py.errors import FailedPrecondition
from cri_py.kernel import procfs

if TYPE_CHECKING:
    from cri_py.cgroups.hierarchy import Cgroups

# The options of a v1 mount are its controllers and a few words that aren't.
_NOT_CONTROLLERS = ("rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode")


def detect(root: str = "/sys/fs/cgroup", proc: str = "/proc") -> Cgroups:
    """v1 where a controller is mounted below ``root`` in a v1 hierarchy, on a hybrid node too; else v2.

    Paths are below the mount points. Where those show only a part of a hierarchy, as in a container, they are below
    that part, so that our groups stay within it.
    """
    by_path: dict[str, Hierarchy] = {}
    unified = []
    for mount in procfs.mountinfo("self", proc):
        if mount.path != root and not mount.path.startswith(f"{root}/"):
            continue
        if mount.fstype == "cgroup2":
            unified.append(mount.path)
        elif mount.fstype == "cgroup":
            options = (option for option in mount.super_options if "=" not in option)  # name=systemd has no controller
            controllers = tuple(option for option in options if option not in _NOT_CONTROLLERS)
            by_path[mount.path] = Hierarchy(mount.path, controllers)  # a later mount hides the earlier
    hierarchies = _first_of_each(by_path)
    if hierarchies:
        return V1(hierarchies)
    if unified:
        return V2(unified[-1])
    raise FailedPrecondition(
        f"no cgroup hierarchy is mounted at {root}",
        hint=f"mount -t cgroup2 cgroup2 {root}, or let the init system do it",
    )


def _first_of_each(by_path: dict[str, Hierarchy]) -> list[Hierarchy]:
    """Each hierarchy once: one that is mounted a second time has the same controllers again."""
    found: list[Hierarchy] = []
    for hierarchy in by_path.values():
        if hierarchy.controllers and all(hierarchy.controllers != other.controllers for other in found):
            found.append(hierarchy)
    return found
