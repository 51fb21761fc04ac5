"""A container with everything that an explanation may be asked about, as a value to be varied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cri_py.cgroups.limits import Above, Reading
from cri_py.explain.facts import Asked, Device, Explanation, Fact, Party, Seen, Subject
from cri_py.kernel import capabilities
from cri_py.kernel.isolation import IdRange, ResourceLimit
from cri_py.kernel.procfs import parse_mountinfo

NODE = {"mnt": 1, "pid": 2, "net": 3, "uts": 4, "ipc": 5, "user": 6, "cgroup": 7, "time": 8}
POD = {**NODE, "net": 30, "uts": 40, "ipc": 50}
OWN = {**POD, "mnt": 100, "pid": 200}
GRANTED = ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"]
MOUNTINFO = b"""\
10 1 0:50 / / rw,relatime - overlay overlay rw,lowerdir=a:b:c,upperdir=/u,workdir=/w,volatile
11 10 0:51 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
12 10 0:52 / /dev rw,nosuid - tmpfs tmpfs rw,mode=755
13 10 0:53 / /sys ro,nosuid,nodev,noexec - sysfs sysfs rw
14 10 8:1 /srv/vol /vol ro,relatime master:3 - ext4 /dev/sda1 rw
15 14 8:2 / /vol/inner rw,relatime - ext4 /dev/sda2 rw
16 10 8:1 /run/cri/pods/P/hosts /etc/hosts rw,relatime - ext4 /dev/sda1 rw
17 11 0:52 /null /proc/kcore rw,nosuid - tmpfs tmpfs rw,mode=755
18 11 0:60 / /proc/acpi ro,relatime - tmpfs tmpfs rw,size=0k
19 11 0:51 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
20 13 0:61 / /sys/fs/cgroup ro,nosuid,nodev,noexec - tmpfs tmpfs rw
21 20 0:62 /g /sys/fs/cgroup/cpu ro,nosuid,nodev,noexec - cgroup cgroup rw,cpu
"""


def _container() -> dict[str, Any]:
    return {
        "metadata": {"name": "app"},
        "mounts": [{"container_path": "/vol/", "host_path": "/srv/vol", "readonly": True}],
        "linux": {
            "resources": {"cpu_shares": "102", "memory_limit_in_bytes": "67108864", "oom_score_adj": "500"},
            "security_context": {
                "namespace_options": {"pid": "CONTAINER"},
                "run_as_user": {"value": "1234"},
                "supplemental_groups": ["7"],
                "capabilities": {"add_capabilities": ["SYS_ADMIN"]},
                "masked_paths": ["/proc/kcore", "/proc/acpi"],
                "readonly_paths": ["/proc/sys"],
            },
        },
    }


def _document() -> dict[str, Any]:
    return {
        "root": {"path": "/run/cri/pods/P/containers/C/rootfs", "readonly": False},
        "process": {
            "capabilities": {name: list(GRANTED) for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
            "oomScoreAdj": 500,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/vol", "type": "bind", "source": "/srv/vol", "options": ["rbind", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/cri/pods/P/hosts", "options": ["rbind"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "mount"},
                {"type": "pid"},
                {"type": "network", "path": "/proc/900/ns/net"},
                {"type": "uts", "path": "/proc/900/ns/uts"},
            ],
            "devices": [{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
                ]
            },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {"action": "SCMP_ACT_ALLOW", "names": ["read", "write"]},
                    {"action": "SCMP_ACT_ALLOW", "names": ["write", "open"]},
                ],
            },
        },
    }


@pytest.fixture
def subject() -> Subject:
    return Subject(
        id="c" * 64,
        name="app",
        image="registry.test/app:1",
        image_id="sha256:" + "1" * 64,
        state="running",
        created_at=1_700_000_000 * 10**9,
        started_at=1_700_000_001 * 10**9,
        finished_at=0,
        exit_code=0,
        reason="",
        message="",
        pid=4711,
        cgroup="/pods/P/C",
        bundle="/run/cri/pods/P/containers/C",
        user=(1234, 0, (7,)),
        resources=_container()["linux"]["resources"],
        sandbox_id="P",
        holder_pid=900,
        monitor_pid=800,
        asked=Asked(
            _container(),
            {"metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "hostname": "web-0"},
            _document(),
        ),
    )


@pytest.fixture
def seen() -> Seen:
    bits = f"{capabilities.mask(GRANTED):016x}"
    return Seen(
        pid=4711,
        namespaces=OWN,
        parties=(
            Party("node", 800, NODE),
            Party("holder", 900, POD),
            Party("container", 5000, {**POD, "mnt": 101, "pid": 201}, "d" * 64, "side"),
        ),
        status={
            "Uid": "1234\t1234\t1234\t1234",
            "Gid": "0\t0\t0\t0",
            "Groups": "0 7",
            "CapBnd": bits,
            "CapPrm": bits,
            "CapEff": bits,
            "CapInh": "0",
            "CapAmb": "0",
            "NoNewPrivs": "0",
            "Seccomp": "2",
            "Seccomp_filters": "1",
        },
        node_filters=0,
        uid_map=(IdRange(0, 0, 2**32 - 1),),
        gid_map=(IdRange(0, 0, 2**32 - 1),),
        limits=(ResourceLimit("RLIMIT_CPU", -1, -1, "seconds"), ResourceLimit("RLIMIT_NOFILE", 1024, 1024, "files")),
        mounts=parse_mountinfo(MOUNTINFO),
        cgroups=(
            Reading(
                "memory",
                "/sys/fs/cgroup/memory/pods/P/C",
                "memory.limit_in_bytes",
                "67108864",
                "1048576",
                (Above("/sys/fs/cgroup/memory/pods", "134217728"),),
            ),
            Reading("cpu", "/sys/fs/cgroup/cpu/pods/P/C", "cpu.shares", "102", "", ()),
            Reading("pids", "/sys/fs/cgroup/pids/pods/P/C", "pids.max", "max", "3", ()),
            Reading("devices", "/sys/fs/cgroup/devices/pods/P/C", "devices.list", "c *:* m\nc 1:3 rwm", "", ()),
        ),
        devices=(Device("/dev/null", "c", 1, 3, 0o666, 0, 0),),
        oom_score_adj=500,
        label="",
    )


def asking(subject: Subject, **changes: Any) -> Subject:
    """The subject with fields of its container's security context changed; None takes one away."""
    container = _container()
    context = container["linux"]["security_context"]
    context.update(changes)
    container["linux"]["security_context"] = {name: value for name, value in context.items() if value is not None}
    return replace(subject, asked=replace(subject.asked, container=container))


def fact(explanation: Explanation, section: str, name: str) -> Fact:
    """The last of the name: it hides the others."""
    facts = next(each.facts for each in explanation.sections if each.name == section)
    return [each for each in facts if each.name == name][-1]
