"""Debian's containerd with runc or crun, in a mount namespace and directories of its own, to compare ours with."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc

from cri_py.kernel import procfs
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.gen import api_pb2_grpc as services
from tests.simulators.kubelet import Kubelet

RUNTIMES: Final = {"runc": "/usr/sbin/runc", "crun": "/usr/bin/crun"}
PAUSE: Final = "registry.k8s.io/pause:3.10"
_CNI: Final = "/usr/lib/cni"
_START_S: Final = 20
_BRIDGE: Final = "crbench0"

# crun refuses a host that has controllers in v1 and an empty v2 hierarchy; it is shown no v2.
_START: Final = """
v2=/sys/fs/cgroup/unified
[ "$1" = crun ] && mountpoint -q $v2 && mount -t tmpfs -o mode=755,size=64m tmpfs $v2
exec containerd --config "$2"
"""

_CONFIG: Final = """\
version = 2
root = "{work}/root"
state = "{work}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{work}/containerd.sock"
[debug]
  level = "warn"
[plugins."io.containerd.internal.v1.opt"]
  path = "{work}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{cni}"
  conf_dir = "{work}/cni"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{work}/certs.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "{name}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
  BinaryName = "{binary}"
  SystemdCgroup = false
"""

_NETWORK: Final = """\
{{"cniVersion": "1.0.0", "name": "{bridge}", "plugins": [
  {{"type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": true,
    "ipam": {{"type": "host-local", "dataDir": "{work}/ipam", "ranges": [[{{"subnet": "{subnet}"}}]],
             "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"""


def cni_text(bridge: str, work: Path, subnet: str = "10.231.0.0/16") -> str:
    """The configuration of the chain that attaches pods; the leases are below ``work``."""
    return _NETWORK.format(bridge=bridge, work=work, subnet=subnet)


def missing(name: str) -> list[str]:
    """What a peer needs and this machine has not; empty for ours, which needs nothing."""
    if name not in RUNTIMES:
        return []
    needed = ("containerd", RUNTIMES[name], f"{_CNI}/bridge", f"{_CNI}/portmap", f"{_CNI}/host-local")
    return [program for program in needed if shutil.which(program) is None]


@contextlib.contextmanager
def containerd(name: str, registry: str, work: Path) -> Iterator[str]:
    """The path of its CRI socket. ``name`` is runc or crun; ``registry`` is HOST:PORT; ``work`` takes all it makes."""
    socket = str(work / "containerd.sock")
    _write_config(name, registry, work)
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "bash", "-c", _START, "-", name, work / "config.toml"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _await(process, socket, work / "log")
        try:
            yield socket
        finally:
            with Kubelet(socket, work / "logs", "") as kubelet:
                kubelet.sweep()  # its shims end with their pods
    finally:
        process.terminate()
        process.wait(timeout=30)
        subprocess.run(["ip", "link", "del", _BRIDGE], check=False, capture_output=True)


def remove_groups(parent: str) -> None:
    """Remove empty cgroups that were made for pods, in every hierarchy, as the kubelet would."""
    for mount in procfs.mountinfo():
        if mount.fstype in {"cgroup", "cgroup2"}:
            for directory, _, _ in os.walk(mount.path + parent, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)


def _write_config(name: str, registry: str, work: Path) -> None:
    hosts = work / "certs.d" / "_default" / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f'[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n')
    (work / "cni").mkdir()
    (work / "cni" / "10-bench.conflist").write_text(cni_text(_BRIDGE, work))
    (work / "config.toml").write_text(
        _CONFIG.format(work=work, name=name, binary=RUNTIMES[name], pause=PAUSE, cni=_CNI)
    )


def _await(process: subprocess.Popen[bytes], socket: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            try:
                status = services.RuntimeServiceStub(channel).Status(  # type: ignore[no-untyped-call]
                    pb.StatusRequest(), timeout=2
                )
            except grpc.RpcError:
                status = None
        if status is not None and all(condition.status for condition in status.status.conditions):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"containerd did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
