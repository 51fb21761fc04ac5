"""The life of a pod and its container, seen through the socket."""

from __future__ import annotations

from cri_py.rpc.gen import api_pb2 as pb
from tests.simulators.kubelet import Kubelet, Line


def test_a_container_runs_logs_and_exits_with_its_code(kubelet: Kubelet) -> None:
    pod = kubelet.run_pod()
    container = kubelet.run(pod, "sh", "-c", "echo hello; echo oh >&2; exit 3")
    status = kubelet.wait(container)
    assert (status.exit_code, status.reason, status.state) == (3, "Error", pb.CONTAINER_EXITED)
    assert status.created_at <= status.started_at < status.finished_at
    assert sorted(kubelet.log(container), key=lambda line: line.stream) == [
        Line("stderr", "F", b"oh"),
        Line("stdout", "F", b"hello"),
    ]
