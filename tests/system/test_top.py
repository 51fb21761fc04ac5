"""``cri-py top`` beside a real daemon."""

from __future__ import annotations

import subprocess
import sys

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod

LIMITS = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20)


def test_a_busy_container_stands_below_its_pod_with_what_it_uses(kubelet: Kubelet, pod: Pod) -> None:
    kubelet.run(pod, "sh", "-c", "while :; do :; done", name="busy", linux=pb.LinuxContainerConfig(resources=LIMITS))
    listen = f"unix://{kubelet.socket}"
    done = subprocess.run(
        [sys.executable, "-m", "cri_py", "top", "--listen", listen, "--interval", "1.5", "--sort", "pids"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    head, *lines = done.stdout.splitlines()
    assert head.split()[:4] == ["POD", "and", "container", "CPU"]
    assert "PIDS*" in head
    at = next(number for number, line in enumerate(lines) if line.startswith(f"default/{pod.config.metadata.name} "))
    container = lines[at + 1].split()
    assert container[0] == "busy"
    assert float(container[1].rstrip("%")) > 5
    assert container[3] in ("0%", "1%", "2%")  # of its 64 MB
    assert container[8] == "1"
