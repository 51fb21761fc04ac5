"""What the daemon tells about itself, and how it takes requests."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

import cri_py
from cri_py.kernel import syscalls
from cri_py.kernel.constants import MNT_DETACH, MS_NODEV, MS_NOEXEC, MS_NOSUID
from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Pod, refused, wait_for
from tests.system.daemon import Daemon


def test_the_version_names_the_runtime(kubelet: Kubelet) -> None:
    answer = kubelet.Version(version="v1")
    assert (answer.runtime_name, answer.runtime_api_version) == ("cri_py", "v1")
    assert answer.runtime_version == cri_py.__version__


def test_the_status_says_ready_and_what_the_handlers_can(kubelet: Kubelet) -> None:
    answer = kubelet.Status()
    assert {condition.type: condition.status for condition in answer.status.conditions} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
    assert "" in [handler.name for handler in answer.runtime_handlers]
    assert answer.features.supplemental_groups_policy
    assert not answer.info
    verbose = kubelet.Status(verbose=True).info
    assert verbose
    for text in verbose.values():
        json.loads(text)


def test_verbose_statuses_are_json_with_the_pids(kubelet: Kubelet, pod: Pod) -> None:
    container = kubelet.run(pod, "sleep", "1000")
    told = json.loads(kubelet.ContainerStatus(container_id=container, verbose=True).info["info"])
    assert Path(f"/proc/{told['pid']}/cmdline").read_bytes() == b"sleep\x001000\0"
    assert told["runtimeSpec"]["process"]["args"] == ["sleep", "1000"]
    of_pod = json.loads(kubelet.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"])
    assert os.path.exists(f"/proc/{of_pod['pid']}")
    assert not kubelet.ContainerStatus(container_id=container).info


def test_the_cgroup_driver_is_told(kubelet: Kubelet) -> None:
    assert kubelet.RuntimeConfig().linux.cgroup_driver == pb.CGROUPFS


def test_a_pod_cidr_is_taken(kubelet: Kubelet) -> None:
    network = pb.NetworkConfig(pod_cidr=f"10.{220 + secrets.randbelow(24)}.{secrets.randbelow(256)}.0/24")
    kubelet.UpdateRuntimeConfig(runtime_config=pb.RuntimeConfig(network_config=network))
    kubelet.UpdateRuntimeConfig()


def test_health_is_told_as_grpc_has_it(kubelet: Kubelet) -> None:
    stub = health_pb2_grpc.HealthStub(kubelet.channel)
    for service in ("", "runtime.v1.RuntimeService", "runtime.v1.ImageService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


def test_the_socket_is_for_root_and_its_group(daemon: Daemon) -> None:
    found = os.stat(daemon.socket)
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660


def test_the_socket_may_belong_to_a_group(make_daemon: Callable[[str], Daemon]) -> None:
    served = make_daemon('[server]\nsocket_group = "www-data"\n')
    found = os.stat(served.socket)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, 33)


def metric(daemon: Daemon, series: str) -> float:
    found = re.findall(rf"^{re.escape(series)} (\S+)$", daemon.metrics(), re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_metrics_count_what_there_is_and_what_was_asked(kubelet: Kubelet, daemon: Daemon, pod: Pod) -> None:
    calls = metric(daemon, 'cri_py_rpc_seconds_count{method="Version"}')
    errors = metric(daemon, 'cri_py_rpc_errors_total{code="NOT_FOUND",method="ContainerStatus"}')
    kubelet.run(pod, "sleep", "1000")
    kubelet.create(pod, "true", name="second")
    kubelet.Version()
    with refused("NOT_FOUND"):
        kubelet.status("0" * 64)
    assert metric(daemon, 'cri_py_pods{state="ready"}') == 1
    assert metric(daemon, 'cri_py_containers{state="running"}') == 1
    assert metric(daemon, 'cri_py_containers{state="created"}') == 1
    assert metric(daemon, 'cri_py_rpc_seconds_count{method="Version"}') == calls + 1
    assert metric(daemon, 'cri_py_rpc_errors_total{code="NOT_FOUND",method="ContainerStatus"}') == errors + 1
    assert metric(daemon, "cri_py_pull_bytes_total") > 0
    assert metric(daemon, "cri_py_monitor_memory_bytes") > 0


def test_requests_and_answers_may_be_longer_than_16_mib(kubelet: Kubelet, pod: Pod) -> None:
    answer = kubelet.Version(version="x" * (17 << 20))
    assert answer.runtime_name == "cri_py"


def test_a_config_over_the_limits_is_refused_however_long_it_is(kubelet: Kubelet) -> None:
    config = kubelet.pod_config(annotations={"note": "x" * (17 << 20)})
    with refused("INVALID_ARGUMENT", "annotations"):
        kubelet.run_pod(config)


def test_an_unknown_method_is_unimplemented(kubelet: Kubelet) -> None:
    with refused("UNIMPLEMENTED"):
        kubelet.channel.unary_unary("/runtime.v1.RuntimeService/Fly")(b"", timeout=10)


def test_a_request_that_is_no_message_is_refused(kubelet: Kubelet) -> None:
    with refused("INVALID_ARGUMENT"):
        kubelet.channel.unary_unary("/runtime.v1.RuntimeService/Version")(b"\xff\xff\xff", timeout=10)


def test_each_call_is_logged_once_with_its_object(kubelet: Kubelet, daemon: Daemon) -> None:
    offset = daemon.log_file.stat().st_size
    pod = kubelet.run_pod()
    lines = [json.loads(line) for line in daemon.log_since(offset).splitlines()]
    (line,) = [line for line in lines if line.get("method") == "RunPodSandbox"]
    assert line["code"] == "OK"
    assert line["name"] == f"default/{pod.config.metadata.name}"
    assert line["request_id"]


def test_nothing_is_executed_in_the_state_directory(fresh_daemon: Daemon) -> None:
    """Debian's initramfs mounts /run noexec."""
    kubelet, state = fresh_daemon.kubelet, str(fresh_daemon.state)
    fresh_daemon.stop()
    syscalls.mount("tmpfs", state, "tmpfs", MS_NOEXEC | MS_NODEV | MS_NOSUID)
    try:
        fresh_daemon.start()
        for mode in (pb.POD, pb.CONTAINER):
            options = pb.NamespaceOption(pid=mode)
            config = kubelet.pod_config()
            config.linux.security_context.namespace_options.CopyFrom(options)
            pod = kubelet.run_pod(config)
            container = kubelet.run(pod, "sleep", "1000")
            assert kubelet.shell(container, "echo here") == "here\n"
            kubelet.remove_pod(pod)
        fresh_daemon.stop()
    finally:
        syscalls.umount2(state, MNT_DETACH)
    fresh_daemon.start()


def test_a_stop_ends_the_daemon_and_leaves_the_pods(fresh_daemon: Daemon) -> None:
    kubelet = fresh_daemon.kubelet
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done")
    assert fresh_daemon.stop() == 0
    assert fresh_daemon.monitors()
    fresh_daemon.start()
    assert kubelet.status(container).state == pb.CONTAINER_RUNNING
    assert kubelet.pod_status(pod).state == pb.SANDBOX_READY
    kubelet.stop(container, timeout_s=10)
    assert kubelet.status(container).exit_code == 5


def test_a_stop_of_the_daemon_ends_event_streams_with_a_status(fresh_daemon: Daemon) -> None:
    kubelet, seen = fresh_daemon.kubelet, []
    stream = kubelet.GetContainerEvents(deadline_s=60)
    threading.Thread(target=lambda: seen.append(next(stream)), daemon=True).start()
    wait_for(lambda: kubelet.run_pod() and seen, bool)  # the stream is open for sure once it has brought something
    kubelet.sweep()
    os.kill(fresh_daemon.pid, signal.SIGTERM)
    with refused("UNAVAILABLE", "stopping"):
        for _ in stream:
            pass
    assert fresh_daemon.stop() == 0


def test_a_verbose_status_has_the_cgroups_paths_and_what_they_say(kubelet: Kubelet, pod: Pod) -> None:
    limits = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    container = kubelet.run(pod, "sleep", "1000", linux=pb.LinuxContainerConfig(resources=limits))
    told = json.loads(kubelet.ContainerStatus(container_id=container, verbose=True).info["info"])
    assert all(path.endswith(told["cgroup"]) and os.path.isdir(path) for path in told["cgroupPaths"])
    values = told["cgroupValues"]
    assert str(64 << 20) in {values.get("memory.max"), values.get("memory.limit_in_bytes")}
    assert int(values["pids.current"]) == 1
    of_pod = json.loads(kubelet.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"])
    assert int(of_pod["cgroupValues"]["pids.current"]) >= 2
    kubelet.StopPodSandbox(pod_sandbox_id=pod.id)
    kubelet.remove(container)
    assert kubelet.PodSandboxStatus(pod_sandbox_id=pod.id, verbose=True).info["info"]
