"""Sandboxes and containers with all that a test doesn't care about filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cri_py import model
from cri_py.pods import spec, spec_selinux

FILES = spec.SandboxFiles(
    hosts="/run/pods/s1/hosts",
    hostname="/run/pods/s1/hostname",
    resolv_conf="/run/pods/s1/resolv.conf",
    shm="/run/pods/s1/shm",
)
IMAGE = model.ImageConfig(
    env=("PATH=/image/bin", "LANG=C"), entrypoint=("/entry",), cmd=("default",), working_dir="/srv"
)
SANDBOX_ID = model.SandboxId("5a" * 32)
# As Fedora's container-selinux has it.
POLICY = spec_selinux.Contexts(
    spec_selinux.Label("system_u", "system_r", "container_t", "s0"),
    spec_selinux.Label("system_u", "object_r", "container_file_t", "s0"),
)


def sandbox(**config: Any) -> model.Sandbox:
    metadata = model.SandboxMetadata(name="web", uid="uid-1", namespace="shop")
    filled = {"metadata": metadata, "hostname": "web", **config}
    return model.Sandbox(
        id=SANDBOX_ID,
        config=model.SandboxConfig(**filled),
        runtime_handler="",
        created_at=model.Nanos(1),
        state=model.Ready(monitor_pid=100, holder_pid=101),
        cgroup="/pods/web",
    )


def container(security: dict[str, Any] | None = None, **config: Any) -> model.ContainerConfig:
    filled = {"metadata": model.ContainerMetadata("app"), "image": model.ImageSpec("shop/app:1"), **config}
    return model.ContainerConfig(security=model.ContainerSecurity(**(security or {})), **filled)


def document(
    pod: model.Sandbox | None = None, config: model.ContainerConfig | None = None, **more: Any
) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "sandbox": pod or sandbox(),
        "config": config or container(),
        "image": IMAGE,
        "container_id": "c0" * 32,
        "root_path": "/run/pods/s1/app/root",
        "holder_pid": 101,
        "files": FILES,
        "defaults": spec.SpecDefaults(node_hostname="node"),
        **more,
    }
    return spec.container_document(**arguments)


def defaults(**changes: Any) -> spec.SpecDefaults:
    return replace(spec.SpecDefaults(node_hostname="node"), **changes)
