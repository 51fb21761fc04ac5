from __future__ import annotations

import json
import os
from typing import Any

import pytest

from cri_py import model
from cri_py.errors import CriError, FailedPrecondition, InvalidArgument
from cri_py.pods import spec
from tests.unit.pods.builders import POLICY, container, defaults, document, sandbox

POD, CONTAINER, NODE, TARGET = model.NamespaceMode
EMPTY_IMAGE = model.ImageConfig()


def namespaces(pod: dict[str, Any], asked: dict[str, Any], **more: Any) -> dict[str, str | None]:
    built = document(
        sandbox(namespaces=model.NamespaceOption(**pod)),
        container({"namespaces": model.NamespaceOption(**asked)}),
        **more,
    )
    return {entry["type"]: entry.get("path") for entry in built["linux"]["namespaces"]}


# -------------------------------------------------------------- process


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ["/entry", "default"]),
        ((), ("x",), ["/entry", "x"]),
        (("/run",), (), ["/run"]),
        (("/run",), ("x",), ["/run", "x"]),
    ],
)
def test_a_command_resets_the_images_cmd(command: tuple[str, ...], args: tuple[str, ...], expected: list[str]) -> None:
    assert document(config=container(command=command, args=args))["process"]["args"] == expected


def test_no_command_anywhere_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no command"):
        document(image=EMPTY_IMAGE)


def test_the_kubelets_variables_replace_the_images_and_the_images_ours() -> None:
    built = document(config=container(envs=(("LANG", b"de"), ("HOSTNAME", b"other"))))
    assert built["process"]["env"] == ["PATH=/image/bin", "HOSTNAME=other", "LANG=de"]


def test_path_and_hostname_are_always_there() -> None:
    environment = document(config=container(command=("x",)), image=EMPTY_IMAGE)["process"]["env"]
    assert environment == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web"]


def test_on_the_hosts_network_the_hostname_is_the_nodes() -> None:
    pod = sandbox(namespaces=model.NamespaceOption(network=NODE))
    assert "HOSTNAME=node" in document(pod, container())["process"]["env"]


def test_a_terminal_has_a_type_that_the_config_may_change() -> None:
    assert "TERM=xterm" in document(config=container(tty=True))["process"]["env"]
    assert "TERM=dumb" in document(config=container(tty=True, envs=(("TERM", b"dumb"),)))["process"]["env"]
    assert document(config=container(tty=True))["process"]["terminal"] is True


def test_an_environment_of_any_bytes_survives_json() -> None:
    built = json.loads(json.dumps(document(config=container(envs=(("B", b"\xff\xfe="),)))))
    assert os.fsencode(built["process"]["env"][-1]) == b"B=\xff\xfe="


def test_a_nul_in_the_environment_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'B'"):
        document(config=container(envs=(("B", b"a\0b"),)))


def test_the_working_directory_is_the_configs_the_images_or_the_root() -> None:
    assert document(config=container(working_dir="/w"))["process"]["cwd"] == "/w"
    assert document()["process"]["cwd"] == "/srv"
    assert document(config=container(command=("x",)), image=EMPTY_IMAGE)["process"]["cwd"] == "/"
    with pytest.raises(InvalidArgument, match="relative"):
        document(config=container(working_dir="w"))


def test_a_container_without_resources_does_not_inherit_the_daemons_oom_score() -> None:
    assert document()["process"]["oomScoreAdj"] == 0


def test_rlimits_come_from_the_nodes_config() -> None:
    built = document(defaults=defaults(nofile=4096))
    assert built["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096}]


def test_a_privileged_container_needs_a_privileged_sandbox() -> None:
    with pytest.raises(InvalidArgument, match="privileged"):
        document(config=container({"privileged": True}))


# ----------------------------------------------------------- namespaces


def test_a_pod_shares_network_ipc_and_hostname_and_keeps_its_mounts_apart() -> None:
    assert namespaces({}, {}) == {
        "mount": None,
        "network": "/proc/101/ns/net",
        "uts": "/proc/101/ns/uts",
        "ipc": "/proc/101/ns/ipc",
        "pid": "/proc/101/ns/pid",
    }


def test_what_is_the_hosts_is_not_listed_and_the_hostname_goes_with_the_network() -> None:
    host = {"network": NODE, "ipc": NODE, "pid": NODE}
    assert namespaces(host, host) == {"mount": None}
    assert "uts" not in namespaces({"network": NODE}, {"network": NODE})
    assert "uts" in namespaces({"pid": NODE}, {"pid": NODE})


def test_a_container_that_names_nothing_gets_what_its_sandbox_was_run_with() -> None:
    assert namespaces({"network": NODE, "ipc": NODE, "pid": NODE}, {}) == {"mount": None}


def test_pid_mode_container_is_a_new_namespace_also_where_only_the_sandbox_says_so() -> None:
    assert namespaces({"pid": CONTAINER}, {"pid": CONTAINER})["pid"] is None
    assert namespaces({"pid": CONTAINER}, {})["pid"] is None
    assert namespaces({}, {"pid": CONTAINER})["pid"] is None


@pytest.mark.parametrize("field", ["network", "ipc", "pid"])
def test_the_hosts_namespace_in_a_sandbox_with_its_own_is_refused(field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"namespace_options.{field}"):
        namespaces({}, {field: NODE})


def test_a_target_is_joined_by_its_pid_or_refused() -> None:
    assert namespaces({}, {"pid": TARGET, "target_id": "t"}, target_pid=7)["pid"] == "/proc/7/ns/pid"
    with pytest.raises(InvalidArgument, match="TARGET"):
        namespaces({}, {"pid": TARGET, "target_id": "t"})


def test_a_cgroup_namespace_on_v2_unless_privileged() -> None:
    assert "cgroup" in namespaces({}, {}, defaults=defaults(cgroup_version=2))
    assert "cgroup" not in namespaces({}, {})


def test_the_holder_has_what_containers_join() -> None:
    assert set(spec.sandbox_namespaces(sandbox().config)) == {"network", "uts", "ipc", "pid"}
    alone = sandbox(namespaces=model.NamespaceOption(network=NODE, pid=CONTAINER)).config
    assert spec.sandbox_namespaces(alone) == ("ipc",)


# ------------------------------------------------------------ resources


def resources(**asked: Any) -> dict[str, Any]:
    built: dict[str, Any] = document(config=container(resources=model.LinuxResources(**asked)))["linux"]["resources"]
    return {name: section for name, section in built.items() if name != "devices"}


def test_what_is_not_asked_for_is_not_limited() -> None:
    assert resources() == {}


def test_a_memory_limit_is_one_for_memory_and_swap_together() -> None:
    assert resources(memory_limit_in_bytes=5)["memory"] == {"limit": 5, "swap": 5}
    assert resources(memory_limit_in_bytes=5, memory_swap_limit_in_bytes=9)["memory"] == {"limit": 5, "swap": 9}


def test_cpu_hugepages_and_unified_are_passed_on() -> None:
    asked = resources(
        cpu_shares=2, cpuset_cpus="0", hugepage_limits=(model.HugepageLimit("2MB", 4),), unified={"memory.high": "1"}
    )
    assert asked == {
        "cpu": {"shares": 2, "cpus": "0"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        "unified": {"memory.high": "1"},
    }


# --------------------------------------------------------------- paths


def test_masked_paths_are_those_sent_and_none_when_privileged() -> None:
    security: dict[str, Any] = {"masked_paths": ("/proc/kcore",), "readonly_paths": ("/proc/sys",)}
    assert document(config=container(security))["linux"]["maskedPaths"] == ["/proc/kcore"]
    assert document()["linux"]["maskedPaths"] == []
    built = document(sandbox(privileged=True), container({**security, "privileged": True}))
    assert built["linux"]["maskedPaths"] == built["linux"]["readonlyPaths"] == []


@pytest.mark.parametrize("field", ["masked_paths", "readonly_paths"])
def test_a_masked_path_must_be_absolute(field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        document(config=container({field: ("/proc/../etc",)}))


# ------------------------------------------------- refused, never silent


@pytest.mark.parametrize(
    ("security", "kernel", "error", "word"),
    [
        ({"apparmor": model.SecurityProfile(model.ProfileKind.LOCALHOST, "p")}, {}, FailedPrecondition, "AppArmor"),
        (
            {"apparmor": model.SecurityProfile(model.ProfileKind.LOCALHOST, "localhost/")},
            {"apparmor": True},
            InvalidArgument,
            "name the profile",
        ),
        ({"selinux": model.SelinuxOption(role="r r")}, {"selinux": POLICY}, InvalidArgument, "selinux_options.role"),
        ({"selinux": model.SelinuxOption(level="high")}, {"selinux": POLICY}, InvalidArgument, "selinux_options.level"),
        ({"selinux": model.SelinuxOption(level="s0")}, {}, FailedPrecondition, "SELinux"),
    ],
)
def test_a_label_that_would_not_be_enforced_is_refused(
    security: dict[str, Any], kernel: dict[str, Any], error: type[CriError], word: str
) -> None:
    with pytest.raises(error, match=word):
        document(config=container(security), defaults=defaults(**kernel))
    with pytest.raises(error, match=word):
        spec.check_sandbox_security(sandbox(**security).config, defaults(**kernel))


def test_where_the_kernel_has_neither_the_runtimes_default_is_nothing() -> None:
    for kind in (model.ProfileKind.RUNTIME_DEFAULT, model.ProfileKind.UNCONFINED):
        assert document(config=container({"apparmor": model.SecurityProfile(kind), "selinux": model.SelinuxOption()}))


@pytest.mark.parametrize(
    ("profile", "privileged", "label"),
    [
        (None, False, "cri-py-default"),
        (None, True, None),
        (model.SecurityProfile(model.ProfileKind.RUNTIME_DEFAULT), False, "cri-py-default"),
        (model.SecurityProfile(model.ProfileKind.RUNTIME_DEFAULT), True, None),
        (model.SecurityProfile(model.ProfileKind.UNCONFINED), False, None),
        (model.SecurityProfile(model.ProfileKind.LOCALHOST, "strict"), False, "strict"),
        (model.SecurityProfile(model.ProfileKind.LOCALHOST, "localhost/strict"), True, "strict"),
    ],
)
def test_the_apparmor_profile_is_the_named_one_or_the_nodes_but_for_privileged_containers(
    profile: model.SecurityProfile | None, privileged: bool, label: str | None
) -> None:
    kernel = defaults(apparmor=True, apparmor_profile="cri-py-default")
    config = container({"apparmor": profile, "privileged": privileged})
    built = document(sandbox(privileged=privileged), config, defaults=kernel)
    assert built["process"].get("apparmorProfile") == label
    spec.check_sandbox_security(sandbox(apparmor=profile).config, kernel)


def test_a_sandbox_that_contradicts_itself_is_refused() -> None:
    localhost = model.SecurityProfile(model.ProfileKind.LOCALHOST)
    for word, fields in (
        ("without a user", {"run_as_group": 1}),
        ("run_as_user -1 is no id", {"run_as_user": -1}),
        ("supplemental_groups -1", {"supplemental_groups": (-1,)}),
        ("localhost_ref", {"seccomp": localhost}),
    ):
        with pytest.raises(InvalidArgument, match=word):
            spec.check_sandbox_security(sandbox(**fields).config, defaults())


def test_annotations_say_what_runtimes_of_virtual_machines_read() -> None:
    config = container(image=model.ImageSpec("sha256:12", user_specified_image="shop/app:1"))
    annotations = document(config=config)["annotations"]
    assert annotations["io.kubernetes.cri.container-type"] == "container"
    assert annotations["io.kubernetes.cri.sandbox-id"] == sandbox().id
    assert annotations["io.kubernetes.cri.image-name"] == "shop/app:1"


def test_the_cgroup_is_named_where_one_is_given() -> None:
    assert "cgroupsPath" not in document()["linux"]
    assert document(cgroup="/pods/web/app")["linux"]["cgroupsPath"] == "/pods/web/app"
