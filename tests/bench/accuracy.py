"""What ContainerStats and PodSandboxStats tell, beside the kernel's own files, with ours and with containerd + runc.

    .venv/bin/python -m tests.bench.accuracy [--only cri_py|runc]

One workload runs under each in turn: a fixed loop, 64 MB in /dev/shm, 8 MB and 200 files in the layer, some packets;
then it rests. What the runtime tells, through ``crictl stats`` where that is installed, stands beside the files of the
same cgroup, read before and after. Exit status 1 if a number is more than 1 % off what the kernel said meanwhile. Needs
root, and for the peer what ``tests.bench.peers`` names.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from google.protobuf.json_format import MessageToDict

from cri_py.cgroups import detect
from tests.bench.compare import installed
from tests.simulators.busybox import BUSYBOX, push_images
from tests.simulators.kubelet import Kubelet, Pod, wait_for
from tests.simulators.registry import RegistrySimulator
from tests.system import peer
from tests.system.daemon import Daemon

NAMES: Final = ("cri_py", "runc")
TOLERANCE: Final = 0.01
_WORK: Final = """
i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done
dd if=/dev/zero of=/dev/shm/kept bs=1M count=64 2>/dev/null
dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null
mkdir /many; i=0; while [ $i -lt 200 ]; do echo $i > /many/$i; i=$((i+1)); done
ping -c 200 -i 0.01 -s 1000 127.0.0.1 >/dev/null
ping -c 4 -W 1 10.255.255.1 >/dev/null
sync; echo ready; exec sleep 86413
"""
_LAYER_S: Final = 15.0  # both count layers every ten seconds
Numbers = Mapping[str, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NAMES)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a timeout cleans up, too
    found = {}
    with RegistrySimulator() as registry:
        push_images(registry)
        for name in installed(options.only or NAMES):
            with _serving(name, registry) as kubelet:
                found[name] = _looked_at(kubelet)
    lines, off = table(found)
    print("\n".join(lines))
    for each in off:
        print(f"more than {TOLERANCE:.0%} off: {each}", file=sys.stderr)
    return 1 if off else 0


@contextmanager
def _serving(name: str, registry: RegistrySimulator) -> Iterator[Kubelet]:
    if name != "cri_py":
        with peer.serving(name, registry) as kubelet:
            kubelet.pull(BUSYBOX)
            yield kubelet
        return
    daemon = Daemon(registry.url)
    try:
        daemon.start()
        daemon.kubelet.pull(BUSYBOX)
        yield daemon.kubelet
    finally:
        daemon.destroy()


def _looked_at(kubelet: Kubelet) -> tuple[Numbers, Numbers, Numbers]:
    """What the kernel said before, what the runtime tells, and what the kernel said after."""
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", _WORK)
    wait_for(lambda: [line.text for line in kubelet.log(container)], lambda lines: b"ready" in lines, 120)
    _told(kubelet, pod, container)
    time.sleep(_LAYER_S)
    before = _of_kernel(pod, container)
    told = _told(kubelet, pod, container)
    after = _of_kernel(pod, container)
    kubelet.remove_pod(pod)
    return before, told, after


def _told(kubelet: Kubelet, pod: Pod, container: str) -> Numbers:
    stats, linux = _container_stats(kubelet, container), kubelet.PodSandboxStats(pod_sandbox_id=pod.id).stats.linux
    cpu, memory, layer = stats["cpu"], stats["memory"], stats.get("writableLayer", {})
    interface = linux.network.default_interface
    return {
        "CPU time, ns": int(cpu["usageCoreNanoSeconds"]["value"]),
        "memory, usage": int(memory["usageBytes"]["value"]),
        "memory, working set": int(memory["workingSetBytes"]["value"]),
        "memory, rss": int(memory["rssBytes"]["value"]),
        "page faults": int(memory["pageFaults"]["value"]),
        "pod: CPU time, ns": linux.cpu.usage_core_nano_seconds.value,
        "pod: memory, usage": linux.memory.usage_bytes.value,
        "pod: bytes sent": interface.tx_bytes.value,
        "pod: bytes received": interface.rx_bytes.value,
        "layer, bytes": int(layer.get("usedBytes", {}).get("value", 0)),
        "layer, inodes": int(layer.get("inodesUsed", {}).get("value", 0)),
    }


def _container_stats(kubelet: Kubelet, container: str) -> dict[str, dict[str, dict[str, str]]]:
    """As protobuf's JSON, which is what crictl prints."""
    if not shutil.which("crictl"):
        found: dict[str, dict[str, dict[str, str]]] = MessageToDict(
            kubelet.ContainerStats(container_id=container).stats
        )
        return found
    endpoint = f"unix://{kubelet.socket}"
    command = ["crictl", "-r", endpoint, "-i", endpoint, "stats", "--all", "--output", "json", "--id", container]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (found,) = json.loads(done.stdout)["stats"]
    return found


def _of_kernel(pod: Pod, container: str) -> Numbers:
    group, pods = f"{pod.config.linux.cgroup_parent}/{container}", pod.config.linux.cgroup_parent
    files, of_pod = _files(group), _files(pods)
    inactive, rss = ("inactive_file", "anon") if detect().leaves_only else ("total_inactive_file", "total_rss")
    stat = _fields(files["memory.stat"])
    usage = _memory(files)
    pid = detect().processes(group)[0]
    (eth0,) = (
        line.split(":")[1].split() for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines() if "eth0" in line
    )
    return {
        "CPU time, ns": _cpu_ns(files),
        "memory, usage": usage,
        "memory, working set": usage - stat[inactive],
        "memory, rss": stat[rss],
        "page faults": stat["pgfault" if detect().leaves_only else "total_pgfault"],
        "pod: CPU time, ns": _cpu_ns(of_pod),
        "pod: memory, usage": _memory(of_pod),
        "pod: bytes sent": int(eth0[8]),
        "pod: bytes received": int(eth0[0]),
    }


def _files(group: str) -> dict[str, str]:
    wanted = ("cpuacct.usage", "cpu.stat", "memory.usage_in_bytes", "memory.current", "memory.stat")
    places = [f"{directory}/{name}" for directory in detect().directories(group) for name in wanted]
    return {os.path.basename(place): Path(place).read_text() for place in places if os.path.exists(place)}


def _fields(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (line.split() for line in text.splitlines())}


def _cpu_ns(files: Mapping[str, str]) -> int:
    return int(files.get("cpuacct.usage") or _fields(files["cpu.stat"])["usage_usec"] * 1000)


def _memory(files: Mapping[str, str]) -> int:
    return int(files.get("memory.usage_in_bytes") or files["memory.current"])


def table(found: Mapping[str, tuple[Numbers, Numbers, Numbers]]) -> tuple[list[str], list[str]]:
    """Lines of Markdown, and what is off. Pure."""
    head = [f"{name}: told | kernel | off" for name in found]
    lines = [f"| | {' | '.join(head)} |", "| --- |" + " --- | --- | --- |" * len(found)]
    off = []
    for number in next(iter(found.values()))[1]:
        cells = []
        for name, (before, told, after) in found.items():
            if number not in before:
                cells.append(f"{told[number]:,} | | ")
                continue
            nearest = min(max(told[number], before[number]), after[number])
            apart = abs(told[number] - nearest) / max(nearest, 1)
            cells.append(f"{told[number]:,} | {before[number]:,} | {apart:.2%}")
            if apart > TOLERANCE:
                off.append(f"{name}, {number}: {told[number]:,}, kernel {before[number]:,} to {after[number]:,}")
        lines.append(f"| {number} | {' | '.join(cells)} |")
    return lines, off


if __name__ == "__main__":
    sys.exit(main())
