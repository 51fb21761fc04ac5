"""Pods with a user namespace: who is who inside and on the node, and what belongs to whom."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.busybox import CUSTOM
from tests.simulators.kubelet import MASKED, READONLY, Kubelet, Pod, namespaces, refused, wait_for
from tests.system.daemon import Daemon

FIRST, LENGTH = 200000, 65536


def mapped(first: int = FIRST, length: int = LENGTH, inside: int = 0) -> list[pb.IDMapping]:
    return [pb.IDMapping(host_id=first, container_id=inside, length=length)]


def own(mode: int = pb.POD, **changes: Any) -> pb.UserNamespace:
    return pb.UserNamespace(**{"mode": mode, "uids": mapped(), "gids": mapped(), **changes})


def run_pod(kubelet: Kubelet, userns: pb.UserNamespace | None = None, **modes: Any) -> Pod:
    config = kubelet.pod_config()
    config.linux.security_context.namespace_options.CopyFrom(namespaces(userns_options=userns or own(), **modes))
    if modes.get("network") == pb.NODE:
        config.hostname = ""
    return kubelet.run_pod(config)


def run(kubelet: Kubelet, pod: Pod, *command: str, security: dict[str, Any] | None = None, **fields: Any) -> str:
    config = kubelet.container_config(*(command or ("sleep", "1000")), **fields)
    context = config.linux.security_context
    context.namespace_options.CopyFrom(pod.config.linux.security_context.namespace_options)
    context.MergeFrom(pb.LinuxContainerSecurityContext(**(security or {})))
    container = kubelet.create(pod, config=config)
    kubelet.start(container)
    return container


@pytest.fixture
def pod(kubelet: Kubelet) -> Pod:
    return run_pod(kubelet)


def pid_of(kubelet: Kubelet, container: str) -> int:
    info = kubelet.ContainerStatus(container_id=container, verbose=True).info["info"]
    return int(info.split('"pid": ')[1].split(",")[0])


def test_root_inside_is_nobody_on_the_node(kubelet: Kubelet, pod: Pod) -> None:
    container = run(kubelet, pod)
    assert kubelet.shell(container, "cat /proc/self/uid_map /proc/self/gid_map").split() == ["0", str(FIRST), str(LENGTH)] * 2
    assert kubelet.shell(container, "id -u; id -g").split() == ["0", "0"]
    owner = os.stat(f"/proc/{pid_of(kubelet, container)}/ns")
    status = Path(f"/proc/{pid_of(kubelet, container)}/status").read_text()
    assert f"Uid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}" in status
    assert owner.st_uid in {FIRST, 0}
