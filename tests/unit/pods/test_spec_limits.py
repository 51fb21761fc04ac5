from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cri_py import model
from cri_py.errors import InvalidArgument
from cri_py.pods import spec_limits
from cri_py.pods.spec_limits import (
    check_cgroup_parent,
    container_log_path,
    sandbox_sysctls,
    validate_container_config,
    validate_sandbox_config,
)
from tests.unit.pods.builders import container, sandbox

NODE = model.NamespaceMode.NODE
LOGS = sandbox(log_directory="/var/log/pods/web/").config


def refuses_sandbox(word: str, **config: Any) -> None:
    with pytest.raises(InvalidArgument, match=word):
        validate_sandbox_config(sandbox(**config).config)


def refuses_container(word: str, **config: Any) -> None:
    with pytest.raises(InvalidArgument, match=word):
        validate_container_config(container(**config), LOGS)


def test_ordinary_configs_pass() -> None:
    dns = model.DnsConfig(("10.0.0.10",), ("svc.cluster.local",), ("ndots:5",))
    validate_sandbox_config(
        sandbox(cgroup_parent="/kubepods/podx", log_directory="/var/log", dns=dns, labels={"a": "b"}).config
    )
    check_cgroup_parent("/kubepods/podx")
    check_cgroup_parent("")
    validate_sandbox_config(sandbox(hostname="", metadata=model.SandboxMetadata("a", "", "b")).config)
    resources = model.LinuxResources(100_000, -1, 2, -1, -998, "0-3,5", "0", unified={"memory.high": "1"})
    validate_container_config(container(log_path="app/0.log", args=("x" * 1000,), resources=resources), LOGS)


@pytest.mark.parametrize("field", ["name", "namespace", "uid"])
def test_names_over_the_limit_or_with_line_breaks_are_refused(field: str) -> None:
    metadata = model.SandboxMetadata("web", "uid", "shop")
    for value in ("x" * 254, "a\nb"):
        refuses_sandbox(f"metadata.{field}", metadata=replace(metadata, **{field: value}))


def test_a_containers_name_is_limited_too() -> None:
    refuses_container("metadata.name", metadata=model.ContainerMetadata("x" * 254))


@pytest.mark.parametrize("hostname", ["x" * 63, "web.shop.svc.cluster.local", f"{'x' * 60}.abc", "WEB-1"])
def test_a_hostname_is_a_label_or_a_whole_name(hostname: str) -> None:
    validate_sandbox_config(sandbox(hostname=hostname).config)


@pytest.mark.parametrize(
    "hostname",
    ["x" * 64, f"{'x' * 60}.abcd", "a b", "evil\n6.6.6.6 bank", "-a", "a_b", "a..b", "a.", "pöd", "пример"],
)
def test_a_hostname_that_the_kernel_or_etc_hosts_would_not_take_is_refused(hostname: str) -> None:
    refuses_sandbox("hostname", hostname=hostname)


@pytest.mark.parametrize("parent", ["relative", "kubepods.slice", "/a/../b", "/..", "/", "/a b", "/a\0"])
def test_a_cgroup_parent_that_leaves_its_place_is_refused(parent: str) -> None:
    with pytest.raises(InvalidArgument, match="cgroup_parent"):
        check_cgroup_parent(parent)


@pytest.mark.parametrize("directory", ["relative", "/var/../etc"])
def test_a_log_directory_must_be_a_place(directory: str) -> None:
    refuses_sandbox("log_directory", log_directory=directory)


def test_labels_and_annotations_are_limited() -> None:
    refuses_sandbox("label", labels={"k": "v" * 4096})
    refuses_sandbox("annotations", annotations={"k": "v" * (1 << 20)})
    refuses_container("label", labels={"k": "v" * 4096})


def test_a_dns_entry_that_would_break_its_line_is_refused() -> None:
    refuses_sandbox("dns_config.servers", dns=model.DnsConfig(("10.0.0.1\nnameserver 6.6.6.6",)))


def test_a_sandbox_has_no_target() -> None:
    refuses_sandbox("TARGET", namespaces=model.NamespaceOption(pid=model.NamespaceMode.TARGET))


@pytest.mark.parametrize("name", ["network", "ipc"])
@pytest.mark.parametrize("mode", [model.NamespaceMode.CONTAINER, model.NamespaceMode.TARGET])
def test_network_and_ipc_are_the_pods_or_the_nodes(name: str, mode: model.NamespaceMode) -> None:
    asked: dict[str, Any] = {name: mode}
    refuses_sandbox(f"{name}: {mode.name}", namespaces=model.NamespaceOption(**asked))


# ------------------------------------------------------------- log path


def test_the_log_lies_below_the_sandboxs_directory() -> None:
    assert container_log_path(container(log_path="app/0.log"), LOGS) == "/var/log/pods/web/app/0.log"
    assert container_log_path(container(log_path="./app//0.log"), LOGS) == "/var/log/pods/web/app/0.log"


def test_without_a_directory_or_a_path_there_is_no_log() -> None:
    assert container_log_path(container(), LOGS) == ""
    assert container_log_path(container(log_path="x"), sandbox().config) == ""


@pytest.mark.parametrize(
    "path", ["../x.log", "a/../../x", "/etc/passwd", "..", "a/", ".", "a\0b", "x" * 256, "d/" * 2100 + "x"]
)
def test_a_log_path_that_leaves_the_directory_is_refused(path: str) -> None:
    refuses_container("log_path", log_path=path)


# ------------------------------------------------------------ arguments


def test_strings_that_execve_would_refuse_are_refused_first() -> None:
    refuses_container("command", command=("x" * 131072,))
    refuses_container("args holds a NUL", args=("a\0b",))
    refuses_container("envs BIG", envs=(("BIG", b"x" * 131072),))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("cpu_period", 999), ("cpu_period", 1_000_001), ("cpu_quota", 999), ("cpu_quota", -2), ("cpu_shares", -1)),
        *(("memory_limit_in_bytes", -2), ("memory_swap_limit_in_bytes", -2), ("oom_score_adj", 1001)),
        *(("cpu_shares", 1), ("cpu_shares", 262145), ("cpu_shares", -5)),
        *(
            ("hugepage_limits", (model.HugepageLimit("2mb", 0),)),
            ("hugepage_limits", (model.HugepageLimit("../2MB", 0),)),
        ),
        *(("cpuset_cpus", "0-"), ("cpuset_mems", "a"), ("unified", {"../x.y": "1"}), ("unified", {"cgroup": "1"})),
        ("unified", {"memory.\0high": "1"}),
    ],
)
def test_resources_that_no_kernel_takes_are_refused_by_name(field: str, value: Any) -> None:
    refuses_container(f"resources.{field}", resources=model.LinuxResources(**{field: value}))


def test_a_swap_limit_below_the_memory_limit_is_refused() -> None:
    asked = model.LinuxResources(memory_limit_in_bytes=10, memory_swap_limit_in_bytes=9)
    refuses_container("memory_swap_limit_in_bytes", resources=asked)


# -------------------------------------------------------------- sysctls


def sysctls(values: dict[str, str], **namespaces: Any) -> dict[str, str]:
    return sandbox_sysctls(sandbox(sysctls=values, namespaces=model.NamespaceOption(**namespaces)).config)


def test_a_pod_may_bind_low_ports_and_ping_by_default() -> None:
    assert sysctls({}) == {"net/ipv4/ip_unprivileged_port_start": "0", "net/ipv4/ping_group_range": "0 2147483647"}
    assert sysctls({}, network=NODE) == {}


def test_what_is_asked_for_goes_before_the_default() -> None:
    assert sysctls({"net.ipv4.ip_unprivileged_port_start": "1024"})["net/ipv4/ip_unprivileged_port_start"] == "1024"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kernel.shmmax", "kernel/shmmax"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
        ("kernel.sem", "kernel/sem"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"),
        ("net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_namespaced_sysctls_are_paths_below_proc_sys(name: str, path: str) -> None:
    assert sysctls({name: "1"})[path] == "1"


@pytest.mark.parametrize(
    "name", ["kernel.panic", "vm.swappiness", "fs.file-max", "kernel.hostname", "kernel.core_pattern"]
)
def test_a_sysctl_of_the_node_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="not namespaced"):
        sysctls({name: "1"})


def test_a_sysctl_of_a_namespace_that_is_the_hosts_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="network namespace is the node's"):
        sysctls({"net.ipv4.ip_forward": "1"}, network=NODE)
    with pytest.raises(InvalidArgument, match="ipc namespace is the node's"):
        sysctls({"kernel.msgmax": "1"}, ipc=NODE)


@pytest.mark.parametrize(
    "name", ["net", "", "net..x", "net.ipv4.a+kernel.core_pattern", "net.a\nb", "net/../kernel/panic", "/net/x"]
)
def test_a_name_that_smuggles_another_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is no sysctl"):
        sysctls({name: "1"})


def test_a_value_is_one_line() -> None:
    with pytest.raises(InvalidArgument, match="line break"):
        sysctls({"net.ipv4.ip_forward": "1\n2"})


def test_a_slice_is_refused_by_its_driver() -> None:
    with pytest.raises(InvalidArgument, match=r"kubepods-burstable-pod1\.slice.*driver cgroupfs.*name a path such as"):
        check_cgroup_parent("kubepods-burstable-pod1.slice")


@pytest.mark.parametrize(
    ("text", "size"), [("128Mi", 128 << 20), ("1G", 10**9), ("4096", 4096), ("2k", 2000), ("1Ti", 1 << 40)]
)
def test_the_size_of_shared_memory_may_be_an_annotations(text: str, size: int) -> None:
    for name in ("shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"):
        assert spec_limits.shm_bytes(sandbox(annotations={name: text}).config, 7) == size
    assert spec_limits.shm_bytes(sandbox().config, 7) == 7


@pytest.mark.parametrize("text", ["", "0", "-1", "12 Mi", "1.5Gi", "12mb", "2Ti", "9" * 40, "1Ki,nr_inodes=1"])
def test_a_size_of_shared_memory_that_is_none_is_refused(text: str) -> None:
    refuses_sandbox("shm-size", annotations={"shm-size.crio.io": text})
