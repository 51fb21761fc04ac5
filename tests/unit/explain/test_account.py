"""From what was seen and asked to facts: what they say, where they come from, where the two differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cri_py.cgroups.limits import Reading
from cri_py.explain import account
from cri_py.explain.facts import Device, Explanation, Origin, Party, Seen, Subject
from cri_py.explain.words import CHAPTERS
from cri_py.kernel import capabilities
from cri_py.kernel.isolation import IdRange
from cri_py.kernel.procfs import MountPoint
from tests.unit.explain.conftest import GRANTED, NODE, OWN, asking, fact

CONTEXT = "linux.security_context"


@pytest.fixture
def told(subject: Subject, seen: Seen) -> Explanation:
    return account.of_kernel(subject, seen)


def differences(explanation: Explanation) -> list[str]:
    return [each.differs for section in explanation.sections for each in section.facts if each.differs]


def test_every_chapter_is_told_and_nothing_differs_where_all_is_as_asked(told: Explanation) -> None:
    assert [section.name for section in told.sections] == list(CHAPTERS)
    assert differences(told) == []


# -------------------------------------------------------------- namespaces


def test_a_namespace_is_the_nodes_the_pods_or_its_own(told: Explanation) -> None:
    sharing = {name: fact(told, "namespaces", name).value["sharing"] for name in OWN}
    assert sharing == {
        "mnt": "own", "pid": "own", "net": "pod", "uts": "pod", "ipc": "pod",
        "user": "node", "cgroup": "node", "time": "node",
    }  # fmt: skip
    assert [party["name"] for party in fact(told, "namespaces", "net").value["with"]] == ["", "side"]
    assert fact(told, "namespaces", "net").text == "the pod's, shared with side"


def test_one_that_only_another_container_has_is_that_containers(subject: Subject, seen: Seen) -> None:
    other = Party("container", 5000, {**OWN, "mnt": 101}, "d" * 64, "side")
    told = account.of_kernel(subject, replace(seen, parties=(Party("node", 800, NODE), other)))
    assert fact(told, "namespaces", "pid").value["sharing"] == "container"
    assert fact(told, "namespaces", "pid").text == "shared with side"


def test_the_pods_field_decides_where_the_containers_says_nothing(subject: Subject) -> None:
    silent = asking(subject, namespace_options={})
    field = f"{CONTEXT}.namespace_options.pid"
    pid = fact(account.without_process(subject), "namespaces", "pid").origin
    assert pid == Origin("container", field, "CONTAINER")
    assert fact(account.without_process(silent), "namespaces", "pid").origin == Origin("sandbox", field, "POD")


# ------------------------------------------------------------------- users


def test_the_user_comes_from_the_config_or_the_image(subject: Subject, seen: Seen) -> None:
    for changes, origin in (
        ({}, Origin("container", f"{CONTEXT}.run_as_user", 1234)),
        ({"run_as_user": None, "run_as_username": "www"}, Origin("container", f"{CONTEXT}.run_as_username", "www")),
        ({"run_as_user": None}, Origin("image", "config.User")),
    ):
        assert fact(account.of_kernel(asking(subject, **changes), seen), "user", "uid").origin == origin


def test_root_by_its_number_zero_is_one_that_was_asked_for(subject: Subject, seen: Seen) -> None:
    origin = fact(account.of_kernel(asking(subject, run_as_user={}), seen), "user", "uid").origin
    assert origin == Origin("container", f"{CONTEXT}.run_as_user", 0)


def test_ids_that_mean_others_outside_are_told_with_both(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(subject, replace(seen, uid_map=(IdRange(0, 100000, 65536),)))
    assert fact(told, "user", "uid_map").text == "0–65535 inside are 100000–165535 outside"
    assert fact(told, "user", "uid_map").value == [{"inside": 0, "outside": 100000, "length": 65536}]
    assert fact(told, "user", "gid_map").text == "none: each id is itself"


# ------------------------------------------------------------ capabilities


def test_sets_are_names_and_what_was_not_granted_is_said(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(subject, seen)
    assert fact(told, "capabilities", "bounding").value == GRANTED
    assert fact(told, "capabilities", "bounding").text == "CHOWN KILL SYS_ADMIN"
    assert fact(told, "capabilities", "effective").text == "the same as bounding"
    less, more = capabilities.mask(GRANTED[:2]), capabilities.mask([*GRANTED, "CAP_BPF"])
    for bits, word in ((less, "lacks SYS_ADMIN"), (more, "has BPF")):
        wrong = account.of_kernel(subject, replace(seen, status={**seen.status, "CapBnd": f"{bits:x}"}))
        assert word in fact(wrong, "capabilities", "bounding").differs


def test_of_many_those_that_lack_are_told(subject: Subject, seen: Seen) -> None:
    bits = capabilities.mask(capabilities.NAMES)
    for have, text in ((bits, "all"), (bits & ~1, "all but CHOWN")):
        told = account.of_kernel(subject, replace(seen, status={**seen.status, "CapBnd": f"{have:x}"}))
        assert fact(told, "capabilities", "bounding").text == text


def test_all_of_a_privileged_container_comes_from_that_field(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(asking(subject, privileged=True), seen)
    origin = Origin("container", f"{CONTEXT}.privileged", True)
    assert fact(told, "capabilities", "bounding").origin == origin
    assert fact(told, "confinement", "seccomp").origin == origin
    assert fact(told, "mounts", "/sys").origin == origin


# ------------------------------------------------------------- confinement


def test_a_filter_is_told_by_its_profile(told: Explanation) -> None:
    assert fact(told, "confinement", "seccomp").value == {"mode": 2, "filters": 1}
    assert fact(told, "confinement", "profile").value == {
        "default_action": "SCMP_ACT_ERRNO",
        "default_errno": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "calls": {"SCMP_ACT_ALLOW": 3},
    }
    assert fact(told, "confinement", "profile").text == "3 system calls: let pass, all others: an error"
    assert fact(told, "confinement", "seccomp").origin == Origin("node", "runtime.seccomp", True)


def test_a_filter_that_is_missing_is_said(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(subject, replace(seen, status={**seen.status, "Seccomp": "0", "Seccomp_filters": "0"}))
    assert "no filter is there" in fact(told, "confinement", "seccomp").differs


def test_the_runtimes_profile_is_named_though_its_number_is_the_default(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(asking(subject, seccomp={}), seen)
    assert fact(told, "confinement", "profile").origin.asked == {"profile_type": "RuntimeDefault"}


def test_no_new_privs_that_was_asked_for_and_is_not_set_is_said(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(asking(subject, no_new_privs=True), seen)
    assert fact(told, "confinement", "no_new_privs").differs == "asked for and not set"


def test_an_selinux_label_is_told_with_the_options_it_came_from(subject: Subject, seen: Seen) -> None:
    document = subject.asked.document
    labelled = {**document, "process": {**document["process"], "selinuxLabel": "u:r:t:s0:c1,c2"}}
    asked = replace(subject, asked=replace(subject.asked, document=labelled))
    same = fact(account.of_kernel(asked, replace(seen, label="u:r:t:s0:c1,c2")), "confinement", "label")
    assert (same.origin.field, same.differs) == (f"{CONTEXT}.selinux_options", "")
    other = fact(account.of_kernel(asked, replace(seen, label="u:r:x:s0")), "confinement", "label")
    assert other.differs == "it was given u:r:t:s0:c1,c2"


# ------------------------------------------------------------------ mounts


def test_each_mount_has_the_field_that_it_came_from(told: Explanation) -> None:
    fields = {each.name: (each.origin.of, each.origin.field) for each in told.sections[4].facts}
    assert fields == {
        "/": ("container", f"{CONTEXT}.readonly_rootfs"),
        "/proc": ("runtime", ""),
        "/dev": ("runtime", ""),
        "/sys": ("container", f"{CONTEXT}.privileged"),
        "/vol": ("container", "mounts[0]"),
        "/vol/inner": ("container", "mounts[0]"),
        "/etc/hosts": ("runtime", ""),
        "/proc/kcore": ("container", f"{CONTEXT}.masked_paths"),
        "/proc/acpi": ("container", f"{CONTEXT}.masked_paths"),
        "/proc/sys": ("container", f"{CONTEXT}.readonly_paths"),
        "/sys/fs/cgroup": ("container", f"{CONTEXT}.privileged"),
        "/sys/fs/cgroup/cpu": ("container", f"{CONTEXT}.privileged"),
    }


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "overlay of 3 layers of the image: writable"),
        ("/vol", "/srv/vol of the node: read-only, mounts of the node appear here"),
        ("/etc/hosts", "the pod's hosts: writable"),
        ("/proc/kcore", "hidden behind /dev/null"),
        ("/proc/acpi", "hidden behind an empty directory"),
        ("/proc/sys", "bound over itself: read-only, nosuid, nodev, noexec"),
        ("/sys/fs/cgroup/cpu", "its own cgroup: read-only, nosuid, nodev, noexec"),
    ],
)
def test_a_mount_is_told_in_words(told: Explanation, path: str, text: str) -> None:
    assert fact(told, "mounts", path).text == text


def test_a_volume_that_is_writable_against_the_wish_is_said(subject: Subject, seen: Seen) -> None:
    mounts = [m._replace(options=("rw",)) if m.path == "/vol" else m for m in seen.mounts]
    told = account.of_kernel(subject, replace(seen, mounts=mounts))
    assert fact(told, "mounts", "/vol").differs == "asked for read-only and is writable"
    assert fact(told, "mounts", "/vol/inner").differs == ""  # came along with it, and was not made read-only


def test_a_root_that_is_writable_against_the_wish_is_said(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(asking(subject, readonly_rootfs=True), seen)
    assert fact(told, "mounts", "/").differs == "asked for read-only and is writable"


def test_what_lies_below_a_later_mount_is_marked_hidden(subject: Subject, seen: Seen) -> None:
    again: MountPoint = seen.mounts[1]._replace(id=99)
    told = account.of_kernel(subject, replace(seen, mounts=[*seen.mounts, again]))
    assert [each.value["hidden"] for each in told.sections[4].facts if each.name == "/proc"] == [True, False]


# ----------------------------------------------------------------- devices


def test_devices_are_standard_asked_for_or_the_nodes(subject: Subject, seen: Seen) -> None:
    asked = {**subject.asked.container, "devices": [{"container_path": "/dev/x", "host_path": "/dev/fuse"}]}
    more = [Device("/dev/x", "c", 10, 229, 0o600, 0, 0), Device("/dev/sda", "b", 8, 0, 0o660, 0, 6)]
    told = account.of_kernel(
        replace(subject, asked=replace(subject.asked, container=asked)), replace(seen, devices=[*seen.devices, *more])
    )
    assert fact(told, "devices", "standard").text == "null"
    assert fact(told, "devices", "/dev/x").origin.field == "devices[0]"
    assert fact(told, "devices", "/dev/x").text == "c 10:229, mode 0600"
    assert fact(told, "devices", "others").value[0]["gid"] == 6


def test_rules_are_read_from_version_1_and_recorded_of_version_2(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(subject, seen)
    assert fact(told, "devices", "rules").value == ["c *:* m", "c 1:3 rwm"]
    assert fact(told, "devices", "rules").read.endswith("/devices.list")
    on_v2 = account.of_kernel(subject, replace(seen, cgroups=()))
    assert fact(on_v2, "devices", "rules").value == ["-a *:* rwm", "c 1:3 rwm", "c 136:* rwm"]
    assert fact(on_v2, "devices", "rules").text.startswith("a BPF program on the cgroup, made of: ")


# ------------------------------------------------------------------ limits


def test_limits_come_with_what_is_used_and_what_groups_above_allow(told: Explanation) -> None:
    memory = fact(told, "cgroup", "memory.limit_in_bytes")
    assert memory.value == {
        "value": "67108864",
        "unlimited": False,
        "used": 1048576,
        "above": [{"directory": "/sys/fs/cgroup/memory/pods", "value": "134217728"}],
    }
    assert memory.text == "64 MiB, 1 MiB used; above: 128 MiB by /sys/fs/cgroup/memory/pods"
    assert memory.origin == Origin("container", "linux.resources.memory_limit_in_bytes", 67108864)
    assert fact(told, "cgroup", "pids.max").text == "no limit here, 3 used"


@pytest.mark.parametrize(
    ("file", "value", "differs"),
    [
        ("memory.limit_in_bytes", "67108864", ""),
        ("memory.limit_in_bytes", "9223372036854771712", "asked for is 67108864"),
        ("memory.max", "max", "asked for is 67108864"),
        ("memory.swap.max", "0", ""),
        ("cpu.shares", "1024", "asked for is 102"),
        ("cpu.weight", "17", ""),
        ("cpu.max", "max 100000", ""),
        ("cpuset.cpus", "0-1", ""),
    ],
)
def test_a_limit_that_is_not_the_one_asked_for_is_said(
    subject: Subject, seen: Seen, file: str, value: str, differs: str
) -> None:
    told = account.of_kernel(subject, replace(seen, cgroups=(Reading("x", "/d", file, value, "", ()),)))
    assert fact(told, "cgroup", file).differs == differs


def test_sizes_are_whole_pages_as_the_kernel_rounds_them(subject: Subject, seen: Seen) -> None:
    odd = replace(subject, resources={"memory_limit_in_bytes": "10000"})
    told = account.of_kernel(odd, replace(seen, cgroups=(Reading("memory", "/d", "memory.max", "8192", "", ()),)))
    assert fact(told, "cgroup", "memory.max").differs == ""


def test_a_file_that_was_asked_for_by_its_name_has_that_origin(subject: Subject, seen: Seen) -> None:
    asking_more = replace(subject, resources={"unified": {"memory.high": "4096"}})
    high = Reading("memory", "/d", "memory.high", "max", "", ())
    told = account.of_kernel(asking_more, replace(seen, cgroups=(high,)))
    found = fact(told, "cgroup", "memory.high")
    assert (found.origin.field, found.origin.asked) == ("linux.resources.unified[memory.high]", "4096")
    assert found.differs == "asked for is 4096"


def test_what_is_set_on_the_process_is_compared_too(subject: Subject, seen: Seen) -> None:
    told = account.of_kernel(subject, replace(seen, oom_score_adj=0))
    assert "CAP_SYS_RESOURCE" in fact(told, "process", "oom_score_adj").differs
    assert fact(told, "process", "RLIMIT_NOFILE").origin == Origin("node", "runtime.nofile", 1024)
    assert fact(told, "process", "RLIMIT_CPU").text == "unlimited"


# ------------------------------------------------------------------ record


def test_without_a_process_the_record_tells_the_same_sections(subject: Subject) -> None:
    told = account.without_process(replace(subject, state="exited", pid=0))
    assert (told.source, [section.name for section in told.sections]) == ("record", list(CHAPTERS))
    sharing = {each.name: each.value["sharing"] for each in told.sections[0].facts}
    assert (sharing["mnt"], sharing["net"], sharing["ipc"]) == ("own", "pod", "node")
    assert fact(told, "mounts", "/vol").text == "/srv/vol of the node: rbind, ro"


def test_after_a_reboot_only_the_user_is_known(subject: Subject) -> None:
    bare = replace(subject, state="unknown", pid=0, asked=replace(subject.asked, document={}))
    told = account.without_process(bare)
    assert [section.name for section in told.sections] == ["user"]
    assert "bundle is gone" in told.why


def test_the_document_is_json_with_every_fact(told: Explanation) -> None:
    document = account.as_document(told)
    assert json.loads(json.dumps(document)) == document
    assert document["pod"]["namespace"] == "shop"
    assert document["container"]["exit_code"] is None
    assert document["sections"]["namespaces"]["facts"][0] == {
        "name": "mnt",
        "value": {"id": 100, "sharing": "own", "with": []},
        "text": "its own",
        "from": {"of": "runtime", "field": "", "asked": None},
        "read": "/proc/4711/ns/mnt",
        "means": told.sections[0].facts[0].means,
        "differs": "",
    }
