"""What a container may do: profiles of the node's files, ambient capabilities. All of it asked from inside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, namespaces, refused

Profile = pb.SecurityProfile


def secure(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


def field_of(status: str, name: str) -> str:
    return next(line.split("\t", 1)[1] for line in status.splitlines() if line.startswith(f"{name}:"))


# ---------------------------------------------------------------- seccomp

CHMOD = ["chmod", "fchmod", "fchmodat", "fchmodat2"]


def localhost(directory: Path, *rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> Profile:
    file = directory / "profile.json"
    file.write_text(json.dumps({"defaultAction": default, "syscalls": rules, **more}))
    return Profile(profile_type=Profile.Localhost, localhost_ref=str(file))


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_a_profile_of_the_nodes_files_is_enforced_on_the_program_and_on_execs(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, no_new_privs: bool
) -> None:
    own = localhost(tmp_path, {"names": CHMOD, "action": "SCMP_ACT_ERRNO", "errnoRet": 28})
    container = kubelet.run(
        pod,
        *("sh", "-c", "chmod 700 /tmp; sleep 1000"),
        linux=secure(seccomp=own, no_new_privs=no_new_privs),
    )
    assert "No space left" in kubelet.shell(container, "chmod 700 /root 2>&1; true")
    assert kubelet.shell(container, "stat -c %a /tmp").strip() == "1777"
    assert field_of(kubelet.shell(container, "cat /proc/1/status"), "Seccomp") == "2"


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_a_profile_need_not_allow_what_only_the_runtime_calls(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, no_new_privs: bool
) -> None:
    """Identity, capabilities, working directory and signals are set before the filter is there."""
    calls = ["setgroups", "setresuid", "setresgid", "capset", "capget", "chdir", "getcwd", "rt_sigaction", "prctl"]
    own = localhost(tmp_path, {"names": calls, "action": "SCMP_ACT_KILL_PROCESS"})
    context = secure(seccomp=own, no_new_privs=no_new_privs, run_as_user=pb.Int64Value(value=1000))
    status, said = kubelet.outcome(pod, "/bin/true", working_dir="/tmp", linux=context)
    assert (status.exit_code, said) == (128 + 31, "")  # busybox itself calls getcwd or the like: it was executed
    own = localhost(tmp_path, {"names": calls[:4], "action": "SCMP_ACT_KILL_PROCESS"})
    context = secure(seccomp=own, no_new_privs=no_new_privs, run_as_user=pb.Int64Value(value=1000))
    status, said = kubelet.outcome(pod, "cat", "/proc/self/status", name="2", working_dir="/tmp", linux=context)
    assert status.exit_code == 0
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert field_of(said, name) == "0" * 16


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_a_program_that_is_not_there_is_told_though_the_profile_lets_nobody_write(
    kubelet: Kubelet, pod: Pod, tmp_path: Path, no_new_privs: bool
) -> None:
    own = localhost(tmp_path, {"names": ["write", "writev"], "action": "SCMP_ACT_ERRNO"})
    context = secure(seccomp=own, no_new_privs=no_new_privs, run_as_user=pb.Int64Value(value=1000))
    running = kubelet.run(pod, "sleep", "1000", linux=context)
    for number, (program, words) in enumerate(
        (
            ("none", 'exec: "none": executable file not found in $PATH'),
            ("/bin/none", 'exec: "/bin/none": no such file or directory'),
            ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
        )
    ):
        with refused("UNKNOWN", words):
            kubelet.exec(running, program)
        with refused("UNKNOWN", words):
            kubelet.start(kubelet.create(pod, program, name=str(number), linux=context))
    assert kubelet.exec(running, "true").exit_code == 0


def test_rules_count_by_the_containers_capabilities(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    rule = {"names": CHMOD, "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_NET_ADMIN"]}}
    own = localhost(tmp_path, rule)
    assert kubelet.outcome(pod, "chmod", "700", "/tmp", linux=secure(seccomp=own))[0].exit_code == 1
    admin = pb.Capability(add_capabilities=["NET_ADMIN"])
    context = secure(seccomp=own, capabilities=admin)
    assert kubelet.outcome(pod, "chmod", "700", "/tmp", name="2", linux=context)[0].exit_code == 0


def test_a_changed_profile_holds_for_the_next_container(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    own = localhost(tmp_path, {"names": CHMOD, "action": "SCMP_ACT_ERRNO"})
    assert kubelet.outcome(pod, "chmod", "700", "/tmp", linux=secure(seccomp=own))[0].exit_code == 1
    own = localhost(tmp_path)
    assert kubelet.outcome(pod, "chmod", "700", "/tmp", name="2", linux=secure(seccomp=own))[0].exit_code == 0


def test_a_profile_that_can_t_be_enforced_is_refused(kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    def create(profile: Profile) -> None:
        kubelet.create(pod, "true", linux=secure(seccomp=profile))

    with refused("NOT_FOUND", str(tmp_path / "none.json")):
        create(Profile(profile_type=Profile.Localhost, localhost_ref=str(tmp_path / "none.json")))
    with refused("INVALID_ARGUMENT", "localhost_ref"):
        create(Profile(profile_type=Profile.Localhost))
    with refused("UNIMPLEMENTED", "SCMP_ACT_NOTIFY"):
        create(localhost(tmp_path, {"names": CHMOD, "action": "SCMP_ACT_NOTIFY"}))
    with refused("INVALID_ARGUMENT", "chmood"):
        create(localhost(tmp_path, {"names": ["chmood"], "action": "SCMP_ACT_ERRNO"}))
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with refused("INVALID_ARGUMENT", str(path), "no file"):
            create(Profile(profile_type=Profile.Localhost, localhost_ref=str(path)))
    assert not kubelet.ListContainers().containers


def test_a_privileged_container_has_no_filter_whatever_it_names(kubelet: Kubelet, tmp_path: Path) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    own = localhost(tmp_path, {"names": CHMOD, "action": "SCMP_ACT_ERRNO"})
    pod = kubelet.run_pod(config)
    assert kubelet.outcome(pod, "chmod", "700", "/tmp", linux=secure(seccomp=own, privileged=True))[0].exit_code == 0


# ----------------------------------------------------------- capabilities


def test_ambient_capabilities_reach_a_user_without_rights_and_its_execs(kubelet: Kubelet, pod: Pod) -> None:
    asked = pb.Capability(drop_capabilities=["ALL"], add_ambient_capabilities=["NET_BIND_SERVICE", "CAP_KILL"])
    context = secure(capabilities=asked, run_as_user=pb.Int64Value(value=1000), no_new_privs=True)
    container = kubelet.run(pod, "sleep", "1000", linux=context)
    for pid in ("1", "self"):
        status = kubelet.shell(container, f"cat /proc/{pid}/status")
        for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
            assert int(field_of(status, name), 16) == 1 << 10 | 1 << 5, (pid, name)


def test_a_capability_that_the_daemon_lacks_is_refused_by_name(kubelet: Kubelet, pod: Pod) -> None:
    own = int(field_of(Path("/proc/self/status").read_text(), "CapPrm"), 16)
    resources = pb.Capability(add_capabilities=["SYS_RESOURCE"])
    if own >> 24 & 1:
        assert kubelet.outcome(pod, "true", linux=secure(capabilities=resources))[0].exit_code == 0
        return
    with refused("FAILED_PRECONDITION", "CAP_SYS_RESOURCE"):
        kubelet.create(pod, "true", linux=secure(capabilities=resources))


# -------------------------------------------------------------- namespaces


def test_processes_of_another_pod_can_t_be_shared(kubelet: Kubelet, pod: Pod) -> None:
    theirs = kubelet.run(kubelet.run_pod(), "sleep", "1000")
    options = namespaces(pid=pb.TARGET, target_id=theirs)
    with refused("INVALID_ARGUMENT", theirs, "another pod"):
        kubelet.create(pod, "true", linux=secure(namespace_options=options))


def test_the_first_process_of_shared_pids_leads_nobody_to_the_node(kubelet: Kubelet) -> None:
    """It is older than every container, and root: what a container may trace, it may walk through."""
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(pid=pb.POD))
    pod = kubelet.run_pod(config)
    tracing = pb.Capability(add_capabilities=["SYS_PTRACE", "SYS_ADMIN"])
    asked = kubelet.container_config("sleep", "1000", linux=secure(capabilities=tracing))
    asked.linux.security_context.namespace_options.CopyFrom(namespaces(pid=pb.POD))
    container = kubelet.run(pod, config=asked)
    assert kubelet.shell(container, "ls /proc/1/root/ 2>/dev/null; true") == ""
    status = kubelet.shell(container, "cat /proc/1/status")
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
        assert int(field_of(status, name), 16) == 0, name
    asked.metadata.name = "second"
    asked.linux.security_context.capabilities.Clear()
    usual = kubelet.run(pod, config=asked)
    assert "Permission denied" in kubelet.shell(usual, "ls /proc/1/root/ 2>&1; true")
