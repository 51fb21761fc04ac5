from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cri_py import model
from cri_py.errors import FailedPrecondition, InvalidArgument
from tests.unit.pods.builders import FILES, IMAGE, POLICY, container, defaults, document, sandbox

LABELLED = defaults(selinux=POLICY)
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
        (model.Mount("/m", "/h", mount_options=("noexec",)), ["rbind", "rprivate", "rw", "rnoexec"], "rprivate"),
        (model.Mount("/m", "/h", readonly=True, recursive_read_only=True), ["rbind", "rprivate", "rro"], "rprivate"),
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


MAP = (model.IdMapping(200000, 0, 65536),)
OCI = [{"containerID": 0, "hostID": 200000, "size": 65536}]
USERNS = model.NamespaceOption(userns=model.UserNamespace(model.NamespaceMode.POD, MAP, MAP))


@pytest.mark.parametrize("propagation", [Propagation.HOST_TO_CONTAINER, Propagation.BIDIRECTIONAL, Propagation.PRIVATE])
def test_recursive_read_only_needs_readonly_and_private(propagation: model.MountPropagation) -> None:
    readonly = propagation is not Propagation.PRIVATE
    with pytest.raises(InvalidArgument, match="recursive_read_only"):
        mounted(model.Mount("/m", "/h", recursive_read_only=True, readonly=readonly, propagation=propagation))


@pytest.mark.parametrize("asked", [{"recursive_read_only": True}, {"mount_options": ("noexec",)}])
def test_what_the_kernel_can_t_enforce_below_a_mount_is_refused(asked: dict[str, Any]) -> None:
    config = container(mounts=(model.Mount("/m", "/h", readonly=True, **asked),))
    unable = defaults(features=model.Features(no_recursive_read_only="mount_setattr(): not implemented"))
    with pytest.raises(FailedPrecondition, match=r"RROUnsupported.*not implemented"):
        document(config=config, defaults=unable)


def test_a_mount_is_id_mapped_by_both_mappings_or_not_at_all() -> None:
    built = mounted(model.Mount("/m", "/h", uid_mappings=MAP, gid_mappings=MAP))["/m"]
    assert (built["uidMappings"], built["gidMappings"]) == (OCI, OCI)
    with pytest.raises(InvalidArgument, match="uidMappings and gidMappings"):
        mounted(model.Mount("/m", "/h", uid_mappings=MAP))
    with pytest.raises(InvalidArgument, match="maps 0 ids"):
        mounted(model.Mount("/m", "/h", uid_mappings=(model.IdMapping(1, 0, 0),), gid_mappings=MAP))


@pytest.mark.parametrize(
    ("pod", "mapped"),
    [(sandbox(namespaces=USERNS), False), (sandbox(), True)],
    ids=["in a user namespace", "id-mapped"],
)
def test_mounts_of_another_user_namespace_never_travel_to_the_node(pod: model.Sandbox, mapped: bool) -> None:
    mappings: dict[str, Any] = {"uid_mappings": MAP, "gid_mappings": MAP} if mapped else {}
    with pytest.raises(InvalidArgument, match="BIDIRECTIONAL"):
        mounted(model.Mount("/m", "/h", propagation=Propagation.BIDIRECTIONAL, **mappings), pod=pod)


def test_an_image_volume_is_the_images_layers_read_only() -> None:
    mount = model.Mount(
        "/m", readonly=True, image=model.ImageSpec("data:1"), image_sub_path="etc", mount_options=("noexec",)
    )
    built = document(config=container(mounts=(mount,)), image_volumes={"/m": ("/layers/2", "/layers/1")})
    (found,) = [each for each in built["mounts"] if each["destination"] == "/m"]
    assert found["type"] == "overlay"
    assert found["options"] == [
        *("ro", "nosuid", "nodev", "rnoexec", "lowerdir=/layers/2:/layers/1", "X-mount.subdir=etc"),
    ]


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"readonly": False}, "readonly"),
        ({"host_path": "/h"}, "host_path"),
        ({"propagation": Propagation.HOST_TO_CONTAINER}, "propagation"),
        ({"image_sub_path": "/etc"}, "image_sub_path"),
        ({"image_sub_path": "a/../../etc"}, "image_sub_path"),
        ({"image_sub_path": "a\0b"}, "image_sub_path"),
    ],
)
def test_an_image_volume_that_makes_no_sense_is_refused_by_name(asked: dict[str, Any], part: str) -> None:
    mount = model.Mount("/m", **{"readonly": True, "image": model.ImageSpec("data:1"), **asked})
    with pytest.raises(InvalidArgument, match=f"ImageVolumeMountFailed.*{part}"):
        document(config=container(mounts=(mount,)), image_volumes={"/m": ("/layers/1",)})


def test_a_sub_path_without_an_image_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="image_sub_path"):
        mounted(model.Mount("/m", "/h", image_sub_path="x"))


@pytest.mark.parametrize(
    ("declared", "place"),
    [
        ("/data", "/data"),
        ("/data/../../../etc/cron.d", "/etc/cron.d"),
        ("../../var/lib", "/var/lib"),
        ("//data//x/", "/data/x"),
        ("/", ""),
        ("/..", ""),
        ("/a\0b", ""),
    ],
)
def test_a_volume_that_an_image_declares_stays_inside(declared: str, place: str) -> None:
    """CVE-2022-23648: containerd made the host's file at such a path a volume."""
    image = replace(IMAGE, volumes=(declared,))
    own = [m for m in document(image=image)["mounts"] if m["source"].startswith("/run/pods/s1/app/root")]
    wanted = {"destination": place, "type": "bind", "source": f"/run/pods/s1/app/root{place}"}
    assert own == ([{**wanted, "options": ["bind", "rprivate", "rw"]}] if place else [])


def test_a_declared_volume_yields_to_what_the_kubelet_and_the_runtime_mount() -> None:
    image = replace(IMAGE, volumes=("/m", "/proc", "/etc/hosts"))
    built = document(config=container(mounts=(model.Mount("/m", "/h"),)), image=image)
    assert [m["source"] for m in built["mounts"] if m["destination"] in ("/m", "/proc")] == ["proc", "/h"]
    assert not [m for m in built["mounts"] if m["source"].startswith("/run/pods/s1/app/root")]


def test_in_a_user_namespace_the_nodes_sys_is_bound_where_the_network_is_the_nodes() -> None:
    assert mounted(pod=sandbox(namespaces=USERNS))["/sys"]["type"] == "sysfs"
    shared = replace(USERNS, network=model.NamespaceMode.NODE)
    asked = {"namespaces": model.NamespaceOption(network=model.NamespaceMode.NODE)}
    sys = mounted(pod=sandbox(namespaces=shared), **asked)["/sys"]
    assert (sys["type"], "rro" in sys["options"]) == ("bind", True)


def test_terminals_belong_to_the_group_tty_where_it_is_mapped() -> None:
    few = (model.IdMapping(200000, 0, 5),)
    pod = sandbox(namespaces=model.NamespaceOption(userns=model.UserNamespace(model.NamespaceMode.POD, few, few)))
    assert "gid=5" in mounted(pod=sandbox(namespaces=USERNS))["/dev/pts"]["options"]
    assert "gid=5" not in mounted(pod=pod)["/dev/pts"]["options"]


def test_relabelling_is_nothing_without_selinux() -> None:
    asked = model.Mount("/m", "/h", selinux_relabel=True), model.Mount("/n", "/h")
    config = container(mounts=asked)
    assert "Z" not in mounted(*asked)["/m"]["options"]
    labelled = {each["destination"]: each["options"] for each in document(config=config, defaults=LABELLED)["mounts"]}
    assert ("Z" in labelled["/m"], "Z" in labelled["/n"]) == (True, False)


@pytest.mark.parametrize("path", ["/", "/etc/", "/./usr", "/proc", "/home"])
def test_what_the_node_needs_is_not_relabelled(path: str) -> None:
    config = container(mounts=(model.Mount("/m", path, selinux_relabel=True),))
    with pytest.raises(InvalidArgument, match="may not be relabelled"):
        document(config=config, defaults=LABELLED)
