from __future__ import annotations

from typing import Any

import pytest

from cri_py import model
from cri_py.errors import InvalidArgument, Unimplemented
from tests.unit.pods.builders import FILES, container, defaults, document, sandbox

Propagation = model.MountPropagation


def mounted(*asked: model.Mount, pod: model.Sandbox | None = None, **security: Any) -> dict[str, dict[str, Any]]:
    built = document(pod, container(security, mounts=asked))
    return {mount["destination"]: mount for mount in built["mounts"]}


def test_the_standard_mounts_are_there_in_an_order_that_hides_none() -> None:
    assert list(mounted()) == [
        *("/proc", "/dev", "/sys"),
        *("/dev/pts", "/dev/mqueue", "/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"),
        "/sys/fs/cgroup",
    ]


def test_sys_and_cgroup_are_read_only_unless_privileged() -> None:
    plain, privileged = mounted(), mounted(pod=sandbox(privileged=True), privileged=True)
    for path in ("/sys", "/sys/fs/cgroup"):
        assert "ro" in plain[path]["options"]
        assert "ro" not in privileged[path]["options"]


def test_shm_is_the_pods_or_with_the_hosts_ipc_the_hosts() -> None:
    assert mounted()["/dev/shm"]["source"] == FILES.shm
    pod = sandbox(namespaces=model.NamespaceOption(ipc=model.NamespaceMode.NODE))
    assert mounted(pod=pod)["/dev/shm"]["source"] == "/dev/shm"


def test_the_pods_files_are_writable_unless_the_root_is_read_only() -> None:
    assert mounted()["/etc/hosts"]["options"] == ["rbind", "rprivate", "rw"]
    assert mounted(readonly_rootfs=True)["/etc/hosts"]["options"] == ["rbind", "rprivate", "ro"]


def test_a_mount_of_the_kubelet_replaces_the_standard_one_at_its_path() -> None:
    built = document(config=container(mounts=(model.Mount("/etc//hosts/", "/kubelet/hosts"),)))
    assert [m["source"] for m in built["mounts"] if m["destination"] == "/etc/hosts"] == ["/kubelet/hosts"]


def test_the_hosts_dev_brings_its_own_devices_but_not_its_shm() -> None:
    built = mounted(model.Mount("/dev", "/dev"))
    assert built["/dev"]["type"] == "bind"
    assert "/dev/pts" not in built
    assert "/dev/mqueue" not in built
    assert built["/dev/shm"]["source"] == FILES.shm
    assert document(config=container(mounts=(model.Mount("/dev", "/dev"),)))["linux"]["devices"] == []


def test_deep_mounts_come_after_shallow_ones() -> None:
    order = list(mounted(model.Mount("/a/b/c", "/1"), model.Mount("/etc", "/2"), model.Mount("/a", "/3")))
    assert order.index("/a") < order.index("/a/b/c")
    assert order.index("/etc") < order.index("/etc/hosts")


@pytest.mark.parametrize(
    ("mount", "options", "root"),
    [
        (model.Mount("/m", "/h"), ["rbind", "rprivate", "rw"], "rprivate"),
        (model.Mount("/m", "/h", readonly=True), ["rbind", "rprivate", "ro"], "rprivate"),
        (model.Mount("/m", "/h", propagation=Propagation.HOST_TO_CONTAINER), ["rbind", "rslave", "rw"], "rslave"),
        (model.Mount("/m", "/h", propagation=Propagation.BIDIRECTIONAL), ["rbind", "rshared", "rw"], "rshared"),
        (model.Mount("/m", "/h", mount_options=("noexec",)), ["rbind", "rprivate", "rw", "noexec"], "rprivate"),
    ],
)
def test_a_bind_says_how_it_is_mounted(mount: model.Mount, options: list[str], root: str) -> None:
    assert mounted(mount)["/m"] == {"destination": "/m", "type": "bind", "source": "/h", "options": options}
    assert document(config=container(mounts=(mount,)))["linux"]["rootfsPropagation"] == root


@pytest.mark.parametrize("path", ["relative", "/a/../etc", "..", "/..", "/", "//", "/a\0b", ""])
def test_a_container_path_that_leaves_its_place_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="container_path"):
        mounted(model.Mount(path, "/h"))


@pytest.mark.parametrize("path", ["", "relative"])
def test_a_host_path_must_be_absolute(path: str) -> None:
    with pytest.raises(InvalidArgument, match="host_path"):
        mounted(model.Mount("/m", path))


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="'suid'"):
        mounted(model.Mount("/m", "/h", mount_options=("suid",)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", model.ImageSpec("x")),
        ("image_sub_path", "x"),
        ("uid_mappings", (model.IdMapping(1, 0, 1),)),
        ("gid_mappings", (model.IdMapping(1, 0, 1),)),
    ],
)
def test_what_this_version_lacks_is_refused_not_ignored(field: str, value: Any) -> None:
    with pytest.raises(Unimplemented, match="mounts"):
        mounted(model.Mount("/m", "/h", **{field: value}))


def test_recursive_read_only_is_refused_as_nonsense_or_as_missing() -> None:
    with pytest.raises(InvalidArgument, match="recursive_read_only"):
        mounted(model.Mount("/m", "/h", recursive_read_only=True))
    with pytest.raises(Unimplemented, match="recursive_read_only"):
        mounted(model.Mount("/m", "/h", recursive_read_only=True, readonly=True))


def test_relabelling_is_nothing_without_selinux_and_refused_with_it() -> None:
    config = container(mounts=(model.Mount("/m", "/h", selinux_relabel=True),))
    assert document(config=config)
    with pytest.raises(Unimplemented, match="selinux_relabel"):
        document(config=config, defaults=defaults(selinux=True))
