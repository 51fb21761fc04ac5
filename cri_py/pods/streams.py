"""What Exec, Attach and PortForward may have, and the hand-over of their clients to the pod's monitor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.kernel import steps
from cri_py.model import Container, ContainerId, Ready, Running, Stdio, StreamKind, StreamRequest
from cri_py.pods import spec_limits
from cri_py.pods.execs import Exec, Execs
from cri_py.pods.ledger import Ledger
from cri_py.pods.monitors import Monitors
from cri_py.wire.channels import Agreement

_TIMEOUT_S: Final = 10.0


class Streams:
    """``open`` makes a URL under which a client gets a session, once."""

    open: Callable[[StreamRequest], str]

    def __init__(
        self,
        ledger: Ledger,
        monitors: Monitors,
        execs: Execs,
        idle_s: float,
    ) -> None:
        self._ledger = ledger
        self._monitors = monitors
        self._execs = execs
        self._idle_s = idle_s

    # ------------------------------------------------------------------ asked

    def exec(self, container_id: str, command: Sequence[str], stdio: Stdio) -> str:
        """Raises InvalidArgument, NotFound, FailedPrecondition."""
        spec_limits.validate_exec(command)
        container = self._running(container_id, stdio)
        return self.open(StreamRequest(StreamKind.EXEC, container.sandbox_id, container.id, tuple(command), stdio))

    def attach(self, container_id: str, stdio: Stdio) -> str:
        """Raises InvalidArgument, NotFound, FailedPrecondition; whether there is a tty, the container has decided."""
        container = self._running(container_id, stdio)
        if stdio.tty != container.config.tty:
            has = "has a tty" if container.config.tty else "has no tty"
            raise InvalidArgument(f"container {container.id} {has}", hint=f"attach with tty={container.config.tty}")
        if stdio.stdin and not container.config.stdin:
            raise FailedPrecondition(f"container {container.id} was made without stdin", hint="attach without stdin")
        return self.open(StreamRequest(StreamKind.ATTACH, container.sandbox_id, container.id, (), stdio))

    def port_forward(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """Raises InvalidArgument, NotFound, FailedPrecondition. Most clients name their ports themselves."""
        sandbox = self._ledger.sandbox(sandbox_id)
        if not isinstance(sandbox.state, Ready):
            raise FailedPrecondition(f"pod sandbox {sandbox.id} is not ready: there is nothing to connect to")
        for port in ports:
            if not 0 < port < 1 << 16:
                raise InvalidArgument(f"{port} is no port", hint="ports are 1 to 65535")
        return self.open(StreamRequest(StreamKind.PORT_FORWARD, sandbox.id, ports=tuple(ports)))

    def _running(self, container_id: str, stdio: Stdio) -> Container:
        container = self._ledger.container(container_id)
        if not isinstance(container.state, Running):
            raise FailedPrecondition(f"container {container.id} is not running")
        if stdio.tty and stdio.stderr:
            raise InvalidArgument("tty and stderr exclude each other: a terminal has one output")
        if not (stdio.stdin or stdio.stdout or stdio.stderr):
            raise InvalidArgument("none of stdin, stdout and stderr is asked for", hint="ask for one at least")
        return container

    # ------------------------------------------------------------- handed over

    async def hand_over(
        self, request: StreamRequest, agreement: Agreement, rest: bytes, connection: socket.socket
    ) -> None:
        """Give the connection to the pod's monitor, which keeps a descriptor of its own.

        ``rest``: what the client has sent beyond its request's head. Raises NotFound, FailedPrecondition, Unavailable.
        """
        fields: dict[str, Any] = {
            "transport": agreement.transport.value,
            "protocol": agreement.protocol,
            "answer": agreement.answer.decode("latin-1"),
            "rest": rest.decode("latin-1"),
            "idle_s": self._idle_s,
            "name": "",
            "stdio": asdict(request.stdio),
            "ports": request.ports,
        }
        command = self._command(request) if request.kind is StreamKind.EXEC else None
        fds = [connection.fileno()]
        if command is not None:
            fields |= {"name": command.name, "words": steps.words(command.steps), "owner": command.owner}
            fds.append(steps.in_memory(steps.program(command.steps)))
        try:
            await self._monitors.of(request.sandbox_id).request(
                "stream",
                timeout_s=_TIMEOUT_S,
                fds=tuple(fds),
                kind=request.kind.value,
                id=request.container_id or "",
                stdin=request.stdio.stdin,
                **fields,
            )
        finally:
            for fd in fds[1:]:
                os.close(fd)

    def _command(self, request: StreamRequest) -> Exec:
        container = self._ledger.container(request.container_id or ContainerId(""))
        return self._execs.prepare(container, request.command, terminal=request.stdio.tty)
