"""Why a pod under ours is not, in everything, what it is under containerd + runc."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# Property, pods ("" for all), reason. The first that fits is told.
_REASONS: Final[tuple[tuple[str, str, str], ...]] = (
    # containerd 1.6 does not know userns_options and runs the pod without, silently: its column is a default pod's.
    ("namespace (user|uid_map|gid_map)", "user namespace", "what was asked for; 1.6 leaves it out without a word"),
    ("(exec )?status (Uid|Gid|Groups)", "user namespace", "root inside is somebody without rights on the node"),
    (
        "mount /(dev|dev/pts|dev/shm|proc/keys|proc/timer_list)",
        "user namespace",
        "it belongs to the root inside, and is otherwise the same",
    ),
    (
        "mount /(proc/acpi|proc/asound|proc/scsi|sys/firmware)",
        "user namespace",
        "an empty tmpfs that belongs to the root inside; ours is one for all such places",
    ),
    (
        "device /dev/mqueue",
        "user namespace",
        "the kernel makes it with the IPC namespace, before its maker is anybody inside; all may use it",
    ),
    (
        r"sysctl net\.ipv4\.ping_group_range",
        "user namespace",
        "all groups of the node, which holds for those inside; their numbers say nothing there",
    ),
    (
        r"sysctl net\.ipv4\.ip_unprivileged_port_start",
        "",
        "in a pod's own network ports below 1024 need no capability; containerd has a setting for that",
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
