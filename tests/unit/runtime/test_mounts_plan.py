"""The OCI document's mounts, sorted into what mount(2) takes."""

from __future__ import annotations

from typing import Any

import pytest

from cri_py.kernel.constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_STRICTATIME,
)
from cri_py.runtime.mounts import OWN, MountOp, plan


@pytest.mark.parametrize(
    ("mount", "operation"),
    [
        (
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            MountOp("proc", "proc", "/proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, 0, ""),
        ),
        (
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            MountOp("tmpfs", "tmpfs", "/dev", MS_NOSUID | MS_STRICTATIME, 0, "mode=755,size=65536k"),
        ),
        (
            {"destination": "/v", "type": "bind", "source": "/host", "options": ["rbind", "rprivate", "ro"]},
            MountOp("bind", "/host", "/v", MS_BIND | MS_REC | MS_RDONLY, MS_PRIVATE | MS_REC, ""),
        ),
        (
            {"destination": "/v", "type": "bind", "source": "/host", "options": ["bind", "rshared", "rw"]},
            MountOp("bind", "/host", "/v", MS_BIND, MS_SHARED | MS_REC, ""),
        ),
        ({"destination": "/v", "type": "bind", "source": "/host"}, MountOp("bind", "/host", "/v", MS_BIND, 0, "")),
        (
            {"destination": "/v", "source": "/host", "options": ["rbind", "slave"]},
            MountOp("", "/host", "/v", MS_BIND | MS_REC, MS_SLAVE, ""),
        ),
        ({"destination": "/t", "type": "tmpfs"}, MountOp("tmpfs", "tmpfs", "/t", 0, 0, "")),
    ],
)
def test_options_become_flags_propagation_and_the_filesystems_own(mount: dict[str, Any], operation: MountOp) -> None:
    assert plan([mount]) == [operation]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["ro", "rw"], 0),
        (["rw", "ro"], MS_RDONLY),
        (["nosuid", "suid", "nodev"], MS_NODEV),
        (["exec", "noexec"], MS_NOEXEC),
    ],
)
def test_the_later_of_two_options_counts(options: list[str], flags: int) -> None:
    (operation,) = plan([{"destination": "/t", "type": "tmpfs", "options": options}])
    assert operation.flags == flags


def test_mounts_keep_their_order() -> None:
    mounts = [{"destination": f"/{name}", "type": "tmpfs"} for name in "cab"]
    assert [operation.destination for operation in plan(mounts)] == ["/c", "/a", "/b"]


def planned(kind: str, *options: str, source: str = "/h", **more: Any) -> MountOp:
    (operation,) = plan(
        [{"destination": "/m", "type": kind, "source": source, "options": options, **more}], "/bundle/root"
    )
    return operation


def test_what_holds_for_all_mounts_below_is_told_apart() -> None:
    found = planned("bind", "rbind", "rro", "rnoexec", "rnodev", "rnosuid")
    assert found.below == MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID
    assert found.apart
    assert not planned("bind", "rbind", "ro", "noexec").apart


def test_a_mapping_is_the_kernels_text() -> None:
    mapping = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    found = planned("bind", "rbind", "ridmap", uidMappings=mapping, gidMappings=mapping)
    assert (found.uid_map, found.gid_map, found.options) == ("0 200000 65536\n", "0 200000 65536\n", "")
    assert found.apart


def test_an_image_is_its_layers_and_a_part_of_it() -> None:
    found = planned("overlay", "ro", "lowerdir=/l/2:/l/1", "X-mount.subdir=etc", source="overlay")
    assert (found.lower, found.subdir, found.options) == (("/l/2", "/l/1"), "etc", "")
    assert found.apart


def test_a_bind_from_the_root_itself_is_a_volume_of_the_image() -> None:
    assert planned("bind", source="/bundle/root/data").fstype == OWN
    assert planned("bind", source="/bundle/root").fstype == "bind"
    assert planned("bind", source="/bundle/rootless").fstype == "bind"


LABEL = "u:object_r:container_file_t:s0:c1,c2"


def test_what_is_made_for_the_container_has_its_label_and_what_is_the_nodes_or_the_kernels_has_not() -> None:
    kinds = ("tmpfs", "devpts", "mqueue", "overlay", "cgroup", "proc", "sysfs", "bind")
    found = {
        each.fstype: each.label
        for each in plan([{"destination": "/m", "type": kind, "source": "/h"} for kind in kinds], "/r", LABEL)
    }
    assert {kind for kind, label in found.items() if label == LABEL} == set(kinds[:5])
    assert not any(found[kind] for kind in kinds[5:])


def test_a_volume_to_be_relabelled_is_told_to_us_and_not_to_the_file_system() -> None:
    assert planned("bind", "rbind", "Z").relabel
    assert planned("bind", "rbind", "Z").options == ""
    assert not planned("bind", "rbind").relabel
