"""The main job, seen from a client: pull an image, run a pod with a container, read its log, run a command in it.

    python deploy/demo.py --socket /run/cri_py/cri.sock --logs DIR            run it (again)
    python deploy/demo.py --socket /run/cri_py/cri.sock --remove              stop and remove all pods and images

It speaks CRI as a kubelet does. Where no public registry answers, it makes an image from this machine's busybox and
serves it from a registry on loopback for as long as it runs.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc

from cri_py.rpc.gen import api_pb2 as cri
from cri_py.rpc.gen import api_pb2_grpc as stubs

PUBLIC_IMAGE = "docker.io/library/busybox:latest"
PULL_PATIENCE_S = 8  # beyond that no registry is near, and the demo shall go on
START_PATIENCE_S = 20
LABELS = {"app": "cri_py-demo"}
# Network and ipc shared in the pod, pids not: what a kubelet asks for unless the pod says otherwise.
AS_A_KUBELET = cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)
PROGRAM = 'i=0; while true; do i=$((i + 1)); echo "hello number $i from $(hostname), pid $$"; sleep 1; done'


@dataclass(frozen=True)
class Pod:
    id: str
    config: cri.PodSandboxConfig


class Client:
    """The two services of CRI on one channel."""

    def __init__(self, socket: str) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self.runtime = stubs.RuntimeServiceStub(self.channel)
        self.images = stubs.ImageServiceStub(self.channel)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", required=True, help="path of the CRI socket")
    parser.add_argument("--logs", default="/var/log/cri_py-demo", help="directory of the containers' logs")
    parser.add_argument("--remove", action="store_true", help="stop and remove all pods and images")
    arguments = parser.parse_args()
    client = Client(arguments.socket)
    try:
        if arguments.remove:
            remove_all(client)
        else:
            run(client, os.path.abspath(arguments.logs))
    except grpc.RpcError as error:
        print(f"\n{error.code().name}: {error.details()}", file=sys.stderr)
        return 1
    except (TimeoutError, FileNotFoundError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    finally:
        client.channel.close()
    return 0


# --------------------------------------------------------------- the story


def run(client: Client, logs: str) -> None:
    version = client.runtime.Version(cri.VersionRequest(), timeout=START_PATIENCE_S, wait_for_ready=True)
    step("the daemon answers", f"{version.runtime_name} {version.runtime_version}, CRI {version.runtime_api_version}")
    remove_pods(client, LABELS)  # of an earlier run
    image = pull(client)
    started = time.monotonic()
    pod = run_pod(client, logs)
    container = start_container(client, pod, image)
    took_ms = (time.monotonic() - started) * 1000
    step("a pod with a container runs", f"sandbox {pod.id[:13]}, container {container[:13]}, after {took_ms:.0f} ms")
    show_log(client, container)
    show_exec(client, container)
    show_status(client, pod.id, container)


def pull(client: Client) -> str:
    """Returns the image's id."""
    try:
        image = client.images.PullImage(
            cri.PullImageRequest(image=cri.ImageSpec(image=PUBLIC_IMAGE)), timeout=PULL_PATIENCE_S
        )
        step("an image is pulled", f"{PUBLIC_IMAGE} is {image.image_ref}")
    except grpc.RpcError as error:
        print(f"   ({PUBLIC_IMAGE} can't be had: {error.details()}; so one is made from this machine's busybox)")
        with busybox_registry() as (ref, size):
            image = client.images.PullImage(cri.PullImageRequest(image=cri.ImageSpec(image=ref)), timeout=60)
        step("an image is pulled", f"{ref} ({size >> 10} KiB) is {image.image_ref}")
    return str(image.image_ref)


def run_pod(client: Client, logs: str) -> Pod:
    """Make its shell: namespaces, cgroup, network."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="demo", uid="cri_py-demo", namespace="default", attempt=1),
        hostname="demo",
        log_directory=logs,
        labels=LABELS,
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(namespace_options=AS_A_KUBELET)
        ),
    )
    answer = client.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=30)
    return Pod(answer.pod_sandbox_id, config)


def start_container(client: Client, pod: Pod, image: str) -> str:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="hello", attempt=1),
        image=cri.ImageSpec(image=image),
        command=["sh", "-c", PROGRAM],
        log_path="hello.log",
        labels=LABELS,
        linux=cri.LinuxContainerConfig(
            resources=cri.LinuxContainerResources(memory_limit_in_bytes=64 << 20),
            security_context=cri.LinuxContainerSecurityContext(namespace_options=AS_A_KUBELET),
        ),
    )
    made = client.runtime.CreateContainer(
        cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config), timeout=30
    )
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=made.container_id), timeout=30)
    return str(made.container_id)


def show_log(client: Client, container: str) -> None:
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container), timeout=10).status
    deadline = time.monotonic() + 10
    while not (lines := read_lines(status.log_path)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the container wrote nothing to {status.log_path} within 10 s")
        time.sleep(0.02)
    step("its log", status.log_path)
    for line in lines[-3:]:
        print(f"   {line}")


def read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as log:
            return log.read().splitlines()
    except FileNotFoundError:
        return []


def show_exec(client: Client, container: str) -> None:
    command = ["sh", "-c", "id; ps; ip -4 addr show eth0 | grep inet"]
    answer = client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=command, timeout=10), timeout=20)
    step("a command in it", f"{command[-1]!r} ended with {answer.exit_code}")
    for line in (answer.stdout + answer.stderr).decode(errors="replace").splitlines():
        print(f"   {line}")


def show_status(client: Client, pod: str, container: str) -> None:
    sandbox = client.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=pod), timeout=10).status
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container), timeout=10).status
    step("its status", cri.ContainerState.Name(status.state))
    print(f"   pod {sandbox.metadata.name} {cri.PodSandboxState.Name(sandbox.state)}, address {sandbox.network.ip}")
    print(f"   container {status.metadata.name}, image {status.image_id}")


def remove_all(client: Client) -> None:
    remove_pods(client, {})
    for image in client.images.ListImages(cri.ListImagesRequest(), timeout=10).images:
        client.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image.id)), timeout=30)


def remove_pods(client: Client, labels: dict[str, str]) -> None:
    wanted = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector=labels))
    for pod in client.runtime.ListPodSandbox(wanted, timeout=10, wait_for_ready=True).items:
        client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
        client.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)


def step(title: str, text: str) -> None:
    print(f"→  {title}: {text}", flush=True)


# ------------------------------------------------ an image made on the spot


@contextmanager
def busybox_registry() -> Iterator[tuple[str, int]]:
    """Serve an image with this machine's busybox from loopback; gives its ref and its size in bytes."""
    content = busybox_image()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.content = content  # type: ignore[attr-defined]  # what the handler answers from
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}/demo/busybox:latest", sum(len(body) for body, _ in content.values())
    finally:
        server.shutdown()
        server.server_close()


class Registry(BaseHTTPRequestHandler):
    """The pull half of the OCI distribution-spec, for one image."""

    def do_GET(self) -> None:
        body, media_type = self.server.content.get(self.path.rpartition("/")[2], (b"", ""))  # type: ignore[attr-defined]
        self.send_response(200 if media_type or self.path == "/v2/" else 404)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is printed by the steps."""


def busybox_image() -> dict[str, tuple[bytes, str]]:
    """Body and media type by digest, and of the manifest also by its tag."""
    raw = busybox_layer()
    layer = gzip.compress(raw, mtime=0)
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(raw)]},
        }
    ).encode()
    kind = "application/vnd.oci.image"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": digest(layer), "size": len(layer)}],
        }
    ).encode()
    blobs = {digest(body): (body, "application/octet-stream") for body in (config, layer)}
    described = (manifest, f"{kind}.manifest.v1+json")
    return {**blobs, digest(manifest): described, "latest": described}


def busybox_layer() -> bytes:
    """A tar with /bin/busybox, its programs as links, and the few files that a root needs."""
    program = shutil.which("busybox")
    if program is None:
        raise FileNotFoundError("this machine has no busybox to make an image from: apt install busybox-static")
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        add_file(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        add_file(archive, "etc/group", b"root:x:0:\n", 0o644)
        with open(program, "rb") as binary:
            add_file(archive, "bin/busybox", binary.read(), 0o755)
        for name in ("cat", "echo", "grep", "hostname", "id", "ip", "ls", "ping", "ps", "sh", "sleep", "wget"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    return raw.getvalue()


def add_file(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    sys.exit(main())
