"""The client's end of CRI's RuntimeService, as far as our own command line asks it about containers."""

from __future__ import annotations

import json
from typing import Any, Final

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from cri_py.errors import FailedPrecondition, NotFound
from cri_py.explain.facts import Asked, Member, Subject
from cri_py.rpc.daemon_client import DaemonClient, as_error
from cri_py.rpc.gen import api_pb2 as pb
from cri_py.rpc.gen import api_pb2_grpc as services

_STATES: Final = {
    pb.CONTAINER_CREATED: "created",
    pb.CONTAINER_RUNNING: "running",
    pb.CONTAINER_EXITED: "exited",
    pb.CONTAINER_UNKNOWN: "unknown",
}


class RuntimeClient(DaemonClient):
    """What the daemon refuses is raised as the same CriError."""

    def __init__(self, listen: str) -> None:
        super().__init__(listen)
        self._stub = services.RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def subject(self, container_id: str) -> Subject:
        """A container by id or unambiguous prefix, with its sandbox and all that decided about both."""
        answer = self._call("ContainerStatus", pb.ContainerStatusRequest(container_id=container_id, verbose=True))
        info, config = self._told(answer)
        of_pod = pb.PodSandboxStatusRequest(pod_sandbox_id=info["sandboxID"], verbose=True)
        pod, pod_config = self._told(self._call("PodSandboxStatus", of_pod))
        status = answer.status
        linux = status.user.linux
        return Subject(
            id=status.id,
            name=status.metadata.name,
            image=status.image.user_specified_image or status.image.image,
            image_id=status.image_id,
            state=_STATES[status.state],
            created_at=status.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            exit_code=status.exit_code,
            reason=status.reason,
            message=status.message,
            pid=info["pid"],
            cgroup=info["cgroup"],
            bundle=info["bundle"],
            user=(linux.uid, linux.gid, tuple(linux.supplemental_groups)) if status.HasField("user") else None,
            resources=MessageToDict(status.resources.linux, preserving_proto_field_name=True),
            sandbox_id=info["sandboxID"],
            holder_pid=pod["pid"],
            monitor_pid=pod["monitorPid"],
            asked=Asked(config, pod_config, info["runtimeSpec"]),
        )

    def members(self, sandbox_id: str) -> list[Member]:
        """The containers of a sandbox; one that is removed meanwhile is left out."""
        wanted = pb.ContainerFilter(pod_sandbox_id=sandbox_id)
        listed = self._call("ListContainers", pb.ListContainersRequest(filter=wanted)).containers
        found = []
        for each in listed:
            request = pb.ContainerStatusRequest(container_id=each.id, verbose=True)
            try:
                pid = self._told(self._call("ContainerStatus", request))[0]["pid"]
            except NotFound:
                continue
            found.append(Member(each.id, each.metadata.name, pid))
        return found

    def _told(self, answer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The documents ``info`` and ``config`` of a verbose status."""
        try:
            return json.loads(answer.info["info"]), json.loads(answer.info["config"])
        except (KeyError, ValueError) as error:
            raise FailedPrecondition(
                f"what answers at {self._address} is another runtime, or an older cri_py",
                hint="name the socket of this cri_py by --listen or --state",
            ) from error

    def _call(self, method: str, request: Message) -> Any:
        try:
            return getattr(self._stub, method)(request)
        except grpc.RpcError as error:
            raise as_error(error) from None
