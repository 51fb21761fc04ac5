"""Whole OCI documents, compared with tests/golden/documents; ``GOLDEN_WRITE=1 pytest tests/golden`` rewrites them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cri_py import model
from cri_py.pods.seccomp_default import default_profile
from tests.unit.pods.builders import container, defaults, document, sandbox

DIRECTORY = Path(__file__).parent / "documents"
NODE, POD, CONTAINER = model.NamespaceMode.NODE, model.NamespaceMode.POD, model.NamespaceMode.CONTAINER
DEFAULT_SECCOMP = "the default profile for the bounding set"
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/sched_debug", "/sys/firmware")
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def plain() -> dict[str, Any]:
    alone = model.NamespaceOption(pid=CONTAINER)
    pod = sandbox(namespaces=alone)
    config = container(
        {"namespaces": alone, "masked_paths": MASKED, "readonly_paths": READONLY},
        args=("--port", "80"),
        envs=(("PORT", b"80"), ("TOKEN", b"\xff\x00"[:1])),
        mounts=(
            model.Mount("/data/cache/", "/var/lib/cache", readonly=True),
            model.Mount("/data", "/var/lib/data", propagation=model.MountPropagation.HOST_TO_CONTAINER),
            model.Mount("/etc/hosts", "/var/lib/kubelet/hosts"),
        ),
        resources=model.LinuxResources(
            cpu_period=100_000, cpu_quota=50_000, cpu_shares=512, memory_limit_in_bytes=64 << 20, oom_score_adj=968
        ),
    )
    return document(pod, config, defaults=defaults(seccomp=True), cgroup="/pods/web/app")


def privileged() -> dict[str, Any]:
    config = container({"privileged": True, "masked_paths": MASKED, "readonly_paths": READONLY}, tty=True)
    return document(sandbox(privileged=True), config, defaults=defaults(cgroup_version=2))


def host() -> dict[str, Any]:
    shared = model.NamespaceOption(network=NODE, pid=NODE, ipc=NODE)
    config = container({"namespaces": shared})
    return document(sandbox(namespaces=shared), config, defaults=defaults(seccomp=True))


def hardened() -> dict[str, Any]:
    config = container(
        {
            "capabilities": model.Capabilities(drop=("ALL",), add=("NET_BIND_SERVICE",)),
            "run_as_user": 1000,
            "run_as_group": 2000,
            "supplemental_groups": (3000,),
            "groups_policy": model.GroupsPolicy.STRICT,
            "readonly_rootfs": True,
            "no_new_privs": True,
            "seccomp": model.SecurityProfile(model.ProfileKind.RUNTIME_DEFAULT),
            "masked_paths": MASKED,
            "readonly_paths": READONLY,
        },
        mounts=(model.Mount("/tmp", "/var/lib/tmp", mount_options=("noexec", "nodev", "nosuid")),),
    )
    return document(config=config, defaults=defaults(cgroup_version=2, seccomp=False))


def compare(name: str, value: Any) -> None:
    path = DIRECTORY / f"{name}.json"
    if os.environ.get("GOLDEN_WRITE"):
        path.write_text(json.dumps(value, indent=1) + "\n")
    assert value == json.loads(path.read_text())


@pytest.mark.parametrize("build", [plain, privileged, host, hardened])
def test_a_document_is_the_golden_one(build: Any) -> None:
    value = build()
    if profile := value["linux"].get("seccomp"):
        assert profile == default_profile(frozenset(value["process"]["capabilities"]["bounding"]), "x86_64")
        value["linux"]["seccomp"] = DEFAULT_SECCOMP
    compare(build.__name__, json.loads(json.dumps(value)))


def test_the_default_seccomp_profile_is_the_golden_one() -> None:
    compare("seccomp-default", default_profile(frozenset(), "x86_64"))


def test_every_golden_file_is_compared() -> None:
    names = {build.__name__ for build in (plain, privileged, host, hardened)} | {"seccomp-default"}
    assert {path.stem for path in DIRECTORY.glob("*.json")} == names
