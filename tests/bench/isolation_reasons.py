"""Why a pod under ours is not, in everything, what it is under containerd + runc."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# Property, pods ("" for all), reason. The first that fits is told.
_REASONS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "refused",
        "user namespace",
        "1.6 does not know userns_options and runs the pod without, silently; the comparison needs a newer containerd",
    ),
    ("mount /", "", "volatile spares the sync at unmount: a container's root is never mounted a second time"),
    (
        "mount /(proc/acpi|proc/asound|proc/scsi|sys/firmware)",
        "default, hostNetwork+hostPID, hardened",
        "an empty tmpfs hides it in both; ours is one for all such places, and without room for a byte",
    ),
    (
        "mount /sys/fs/cgroup",
        "",
        "the directory of hierarchies: ours is read-only where the container is unprivileged, and smaller",
    ),
    (
        "mount /sys/fs/cgroup/systemd",
        "",
        "a hierarchy without a controller limits nothing; ours puts no process into it and shows none",
    ),
    (
        "mount /sys",
        "",
        "all mounts of a network's sysfs share one superblock; there whoever came first made it read-only as a whole, "
        "and a privileged container's writable mount of it writes nothing",
    ),
    (
        r"sysctl net\.ipv4\.(ip_unprivileged_port_start|ping_group_range)",
        "default, privileged, hardened",
        "in a pod's own network ports below 1024 and ping need no capability; containerd has a setting for each",
    ),
    ("cgroup cgroup.freeze", "", "runc enters the v2 hierarchy of a hybrid node too, in which no controller is"),
)


def reason_for(pods: Sequence[str], name: str) -> str:
    """The explanation of a difference in the property ``name``, "" if there is none."""
    for pattern, only, reason in _REASONS:
        if re.fullmatch(pattern, name) and (not only or set(pods) <= set(only.split(", "))):
            return reason
    return ""
