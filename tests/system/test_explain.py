"""``cri-py explain`` tells what /proc and the cgroup files say, of containers of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import MASKED, READONLY, Kubelet, Pod, namespaces
from tests.system.daemon import Daemon

Explain = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def explain(daemon: Daemon, kubelet: Kubelet) -> Explain:
    """Runs the command as a person would, beside the session's daemon."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cri_py", "explain", "--config", os.devnull, "--state", str(daemon.state)]
        return subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, timeout=60)

    return run


def document(explain: Explain, container: str) -> dict[str, Any]:
    done = explain(container, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def facts(told: dict[str, Any], section: str) -> dict[str, dict[str, Any]]:
    return {fact["name"]: fact for fact in told["sections"][section]["facts"]}


def values(told: dict[str, Any], section: str) -> dict[str, Any]:
    return {name: fact["value"] for name, fact in facts(told, section).items()}


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def bits(names: list[str]) -> int:
    from cri_py.kernel import capabilities

    return capabilities.mask(names)


def test_it_tells_what_the_kernel_says_of_an_unprivileged_container(
    kubelet: Kubelet, pod: Pod, explain: Explain, tmp_path: Path
) -> None:
    config = kubelet.container_config(
        "sleep", "1000", mounts=[pb.Mount(container_path="/vol", host_path=str(tmp_path), readonly=True)]
    )
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    config.linux.resources.cpu_quota = 50_000
    config.linux.resources.oom_score_adj = 500
    context = config.linux.security_context
    context.no_new_privs = True
    context.readonly_rootfs = True
    context.run_as_user.value, context.run_as_group.value = 1234, 99
    context.supplemental_groups.extend((7, 8))
    context.capabilities.drop_capabilities.append("NET_RAW")
    container = kubelet.create(pod, config=config)
    kubelet.start(container)
    told = document(explain, container[:8])
    pid, kernel = told["container"]["pid"], status(told["container"]["pid"])
    assert (told["source"], told["container"]["id"], told["pod"]["id"]) == ("kernel", container, pod.id)
    assert values(told, "user") | {"uid_map": 0, "gid_map": 0} == {
        "uid": 1234, "gid": 99, "groups": [7, 8, 99], "uid_map": 0, "gid_map": 0,
    }  # fmt: skip
    for name, line in (("bounding", "CapBnd"), ("effective", "CapEff"), ("permitted", "CapPrm"), ("ambient", "CapAmb")):
        assert bits(values(told, "capabilities")[name]) == int(kernel[line], 16), name
    assert facts(told, "capabilities")["bounding"]["from"]["asked"] == {"drop_capabilities": ["NET_RAW"]}
    confinement = values(told, "confinement")
    assert confinement["seccomp"] == {"mode": int(kernel["Seccomp"]), "filters": int(kernel["Seccomp_filters"])}
    assert confinement["no_new_privs"] is True
    assert values(told, "process")["oom_score_adj"] == int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == 500
    differing = [fact["name"] for each in told["sections"].values() for fact in each["facts"] if fact["differs"]]
    assert set(differing) <= {"RLIMIT_NOFILE"}  # root without CAP_SYS_RESOURCE can't raise it


def test_namespaces_are_told_with_whom_they_are_shared(kubelet: Kubelet, explain: Explain) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(network=pb.NODE))
    config.hostname = ""
    pod = kubelet.run_pod(config)
    ids = []
    for name in ("one", "two"):
        wanted = kubelet.container_config("sleep", "1000", name=name)
        wanted.linux.security_context.namespace_options.CopyFrom(namespaces(network=pb.NODE))
        ids.append(kubelet.create(pod, config=wanted))
        kubelet.start(ids[-1])
    told = document(explain, ids[0])
    found = facts(told, "namespaces")
    for name, fact in found.items():
        assert f"{name}:[{fact['value']['id']}]" == os.readlink(f"/proc/{told['container']['pid']}/ns/{name}")
    sharing = {name: fact["value"]["sharing"] for name, fact in found.items()}
    times = {"time": "node"} if os.path.exists("/proc/self/ns/time") else {}  # not every kernel has them
    assert sharing | {"cgroup": "?"} == {
        "mnt": "own", "pid": "own", "net": "node", "uts": "node", "ipc": "pod", "user": "node", "cgroup": "?", **times,
    }  # fmt: skip
    assert [party["name"] for party in found["ipc"]["value"]["with"]] == ["", "two"]
    field = "linux.security_context.namespace_options"
    assert found["net"]["from"] == {"of": "sandbox", "field": f"{field}.network", "asked": "NODE"}
    assert found["pid"]["from"] == {"of": "container", "field": f"{field}.pid", "asked": "CONTAINER"}


def test_of_a_pod_with_a_user_namespace_it_tells_who_is_who_and_finds_nothing_amiss(
    kubelet: Kubelet, explain: Explain, tmp_path: Path
) -> None:
    mapping = [pb.IDMapping(host_id=200000, container_id=0, length=65536)]
    users = pb.UserNamespace(mode=pb.POD, uids=mapping, gids=mapping)
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(userns_options=users))
    pod = kubelet.run_pod(config)
    volume = pb.Mount(container_path="/vol", host_path=str(tmp_path), readonly=True)
    wanted = kubelet.container_config("sleep", "1000", mounts=[volume])
    wanted.linux.security_context.namespace_options.CopyFrom(namespaces(userns_options=users))
    wanted.linux.security_context.run_as_user.value = 1000
    wanted.linux.resources.oom_score_adj = 500
    container = kubelet.create(pod, config=wanted)
    kubelet.start(container)
    told = document(explain, container)
    found = facts(told, "namespaces")
    pid = told["container"]["pid"]
    for name, fact in found.items():
        assert f"{name}:[{fact['value']['id']}]" == os.readlink(f"/proc/{pid}/ns/{name}")
    sharing = {name: fact["value"]["sharing"] for name, fact in found.items()}
    assert [sharing[name] for name in ("user", "net", "ipc", "uts", "pid", "mnt")] == ["pod"] * 4 + ["own"] * 2
    field = "linux.security_context.namespace_options.userns_options"
    assert found["user"]["from"]["field"].startswith(field)
    user = values(told, "user")
    assert (user["uid"], user["uid_map"]) == (201000, [{"inside": 0, "outside": 200000, "length": 65536}])
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    mounts = told["sections"]["mounts"]["facts"]
    assert [fact["name"] for fact in mounts] == [line.split()[4] for line in lines]
    assert next(fact for fact in mounts if fact["name"] == "/vol")["from"]["field"] == "mounts[0]"
    differing = [fact["name"] for each in told["sections"].values() for fact in each["facts"] if fact["differs"]]
    assert set(differing) <= {"RLIMIT_NOFILE"}
    page = explain(container)
    assert page.returncode == 0, page.stderr
    assert "200000" in page.stdout


def test_mounts_are_those_of_mountinfo_each_with_its_field(
    kubelet: Kubelet, pod: Pod, explain: Explain, tmp_path: Path
) -> None:
    volume = pb.Mount(container_path="/vol", host_path=str(tmp_path), readonly=True)
    container = kubelet.run(pod, "sleep", "1000", mounts=[volume])
    told = document(explain, container)
    lines = Path(f"/proc/{told['container']['pid']}/mountinfo").read_text().splitlines()
    mounts = told["sections"]["mounts"]["facts"]
    assert [fact["name"] for fact in mounts] == [line.split()[4] for line in lines]
    assert [fact["value"]["options"] for fact in mounts] == [line.split()[5].split(",") for line in lines]
    fields = {fact["name"]: fact["from"]["field"] for fact in mounts}
    context = "linux.security_context"
    assert (fields["/vol"], fields["/"]) == ("mounts[0]", f"{context}.readonly_rootfs")
    assert {fields[path] for path in MASKED if path in fields} == {f"{context}.masked_paths"}
    assert {fields[path] for path in READONLY if path in fields} == {f"{context}.readonly_paths"}


def test_limits_are_the_files_of_the_cgroup(kubelet: Kubelet, pod: Pod, explain: Explain) -> None:
    config = kubelet.container_config("sleep", "1000")
    config.linux.resources.memory_limit_in_bytes = 64 << 20
    config.linux.resources.cpu_quota = 50_000
    container = kubelet.create(pod, config=config)
    kubelet.start(container)
    told = document(explain, container)
    read = facts(told, "cgroup")
    assert read.pop("path")["value"] == told["container"]["cgroup"]
    for name, fact in read.items():
        assert Path(fact["read"]).name == name
        assert told["container"]["cgroup"] in fact["read"]
        assert Path(fact["read"]).read_text().strip() == fact["value"]["value"]
    asked = {fact["from"]["field"]: fact["from"]["asked"] for fact in read.values()}
    assert asked["linux.resources.memory_limit_in_bytes"] == 64 << 20
    assert asked["linux.resources.cpu_quota"] == 50_000
    limits = values(told, "process")
    lines = Path(f"/proc/{told['container']['pid']}/limits").read_text().splitlines()[1:]
    assert len(limits) == len(lines) + 1
    assert f"{limits['RLIMIT_NOFILE']['soft']} " in next(line for line in lines if "open files" in line)


def test_a_privileged_container_has_all_devices_and_no_filter(kubelet: Kubelet, explain: Explain) -> None:
    config = kubelet.pod_config()
    config.linux.security_context.privileged = True
    pod = kubelet.run_pod(config)
    wanted = kubelet.container_config("sleep", "1000")
    wanted.linux.security_context.privileged = True
    container = kubelet.create(pod, config=wanted)
    kubelet.start(container)
    told = document(explain, container)
    assert values(told, "confinement")["seccomp"]["mode"] == 0
    inside = kubelet.shell(container, "find /dev -path /dev/pts -prune -o \\( -type c -o -type b \\) -print").split()
    nodes = facts(told, "devices")
    listed = [node["path"] for name, fact in nodes.items() if name != "rules" for node in fact["value"]]
    assert sorted(listed) == sorted(inside)
    assert nodes["others"]["from"] == {"of": "container", "field": "linux.security_context.privileged", "asked": True}


def test_what_a_container_puts_into_its_dev_leads_nowhere(kubelet: Kubelet, pod: Pod, explain: Explain) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    kubelet.shell(
        container, "mkdir /dev/own; mknod /dev/own/n c 1 3; ln -s /proc/1/root/dev /dev/link; ln -s /dev /dev/up"
    )
    nodes = facts(document(explain, container), "devices")
    assert [node["path"] for node in nodes["others"]["value"]] == ["/dev/own/n"]
    kubelet.shell(container, "rm -r /dev/own")
    assert "others" not in facts(document(explain, container), "devices")


def test_the_page_has_every_section_and_no_colours_where_there_is_no_terminal(
    kubelet: Kubelet, pod: Pod, explain: Explain
) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    done = explain(container)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for word in ("namespaces", "user", "capabilities", "confinement", "mounts", "devices", "cgroup", "process"):
        assert f"  {word}\n" in done.stdout
    assert "← linux.resources.cpu_shares: 102" in done.stdout


def test_of_a_container_that_has_ended_the_record_is_told(kubelet: Kubelet, pod: Pod, explain: Explain) -> None:
    container = kubelet.run(pod, "sh", "-c", "exit 3")
    kubelet.wait(container)
    told = document(explain, container)
    assert (told["source"], told["container"]["exit_code"], told["container"]["pid"]) == ("record", 3, 0)
    assert "it has ended" in told["why"]
    assert values(told, "namespaces")["pid"] == {"id": None, "sharing": "own", "with": []}
    assert values(told, "user")["uid"] == 0
    assert "exit code 3" in explain(container).stdout


def test_one_that_waits_to_be_started_is_told_of_by_its_record(kubelet: Kubelet, pod: Pod, explain: Explain) -> None:
    container = kubelet.create(pod, "sleep", "1000")
    told = document(explain, container)
    assert (told["source"], told["container"]["state"]) == ("record", "created")
    assert told["sections"]["mounts"]["facts"]


def test_what_is_wrong_is_told_in_one_line_with_the_way_out(
    kubelet: Kubelet, pod: Pod, explain: Explain, tmp_path: Path
) -> None:
    missing = explain("no-such")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == "cri-py: there is no container 'no-such' (crictl ps -a lists those that are here)\n"
    # Of 17 ids two begin with the same digit.
    ids = [kubelet.create(pod, "true", name=f"c{number}") for number in range(17)]
    digit = next(digit for digit in "0123456789abcdef" if sum(each.startswith(digit) for each in ids) > 1)
    assert "give more digits of the id" in explain(digit).stderr
    unserved = explain(ids[0], "--state", str(tmp_path))
    assert unserved.returncode == 1
    assert f"no daemon answers at unix://{tmp_path}/cri.sock" in unserved.stderr
