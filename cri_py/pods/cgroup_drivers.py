"""Who makes the pods' cgroups: this daemon alone, or systemd when it is asked (docs/cgroup-drivers.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import structlog

from cri_py.cgroups import Cgroups
from cri_py.config import CgroupConfig
from cri_py.errors import CriError, FailedPrecondition
from cri_py.pods.group_parents import GroupParents
from cri_py.pods.groups import Groups
from cri_py.pods.places import Places

log = structlog.get_logger()
BOOTED: Final = "/run/systemd/system"  # there where systemd is init (sd_booted(3))
_HINT: Final = 'set cgroups.driver to "auto" or "cgroupfs", and let the kubelet ask for it or have the same'


def groups(config: CgroupConfig, cgroups: Cgroups, places: Places) -> Groups:
    """Raises FailedPrecondition where systemd is asked for and can't be had."""
    note = Path(places.group_parents)
    if choose(config.driver, cgroups) == "cgroupfs":
        if config.driver == "auto" and _has_systemd(cgroups):
            remedy = 'systemctl status dbus; with cgroups.driver = "systemd" a daemon rather does not start'
            log.warning("systemd is init and does not answer: cgroups are made without it", remedy=remedy)
        return Groups(cgroups, config.parent, GroupParents(note))
    from cri_py.pods.systemd_bus import SystemdBus  # noqa: PLC0415 (memory)
    from cri_py.pods.unit_groups import UnitGroups  # noqa: PLC0415

    return UnitGroups(cgroups, config.parent, note, SystemdBus(), places.holder_program)


def choose(configured: str, cgroups: Cgroups) -> str:
    """``systemd`` or ``cgroupfs``. Raises FailedPrecondition as ``groups``."""
    if configured == "cgroupfs":
        return configured
    lacking = lack(cgroups)
    if not lacking:
        return "systemd"
    if configured == "systemd":
        raise FailedPrecondition(f"the cgroup driver systemd can't be had: {lacking}", hint=_HINT)
    return "cgroupfs"


def lack(cgroups: Cgroups) -> str:
    """What keeps systemd from being the driver; "" if nothing does."""
    if not cgroups.leaves_only:
        return "this node runs cgroup v1 (boot it with systemd.unified_cgroup_hierarchy=1)"
    if not os.path.isdir(BOOTED):
        return "systemd is not this node's init"
    from cri_py.pods.systemd_bus import SystemdBus  # noqa: PLC0415 (memory)

    try:
        SystemdBus().version()
    except CriError as error:
        return error.message
    return ""


def _has_systemd(cgroups: Cgroups) -> bool:
    return cgroups.leaves_only and os.path.isdir(BOOTED)
