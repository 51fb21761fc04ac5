"""ExecSync: a command in a running container, its output collected here through pipes, its end told by the monitor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from cri_py.config import RuntimeConfig
from cri_py.errors import DeadlineExceeded
from cri_py.kernel import userns
from cri_py.kernel.faults import trace
from cri_py.model import Container, ContainerId, ExecResult, User
from cri_py.monitor.client import MonitorClient

_READ_BYTES: Final = 64 << 10
_KILLED_S: Final = 10.0


class Execs:
    """Knows of each container what a further process in it inherits."""

    def __init__(self, config: RuntimeConfig, filter_of: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self._config = config
        self._filter_of = filter_of
        self._templates: dict[ContainerId, tuple[dict[str, Any], dict[str, Any] | None, list[int] | None]] = {}
        self._count = 0

    def forget(self, container_id: ContainerId) -> None:
        self._templates.pop(container_id, None)

    def request(
        self, container: Container, read: Callable[[Container], dict[str, Any]], command: Sequence[str]
    ) -> dict[str, Any]:
        """The monitor's request: the container's own process with another command, as the user it runs as."""
        user = container.user
        assert user is not None  # a container whose user is unknown never runs
        if container.id not in self._templates:
            document = read(container)
            owner = _owner(user, document["linux"])
            self._templates[container.id] = document["process"], self._filter_of(document), owner
        process, secure, owner = self._templates[container.id]
        self._count += 1
        return {
            "id": container.id,
            "name": f"exec-{os.getpid()}-{self._count}",
            "process": {**process, "args": list(command), "terminal": False},
            "user": {
                "uid": user.uid,
                "gid": user.gid,
                "groups": user.supplemental_groups,
                "home": user.home,
            },
            "seccomp": secure,
            "owner": owner,
        }

    async def run(self, monitor: MonitorClient, request: dict[str, Any], timeout_s: int) -> ExecResult:
        """Run it to its end or to the deadline; then everything that it started is killed."""
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        streams = Collector(self._config.exec_output_bytes), Collector(self._config.exec_output_bytes)
        fds = (stdin, streams[0].write_end, streams[1].write_end)
        try:
            try:
                asked = asyncio.ensure_future(monitor.request("exec", timeout_s=None, fds=fds, **request))
                trace("exec: before the frame")
                await asyncio.sleep(0)  # the frame goes out, its descriptors with it
            finally:
                for fd in fds:
                    os.close(fd)
            code = await self._await_end(monitor, request["name"], asked, timeout_s)
            trace("exec: ended")
            await self._drain(streams)
            return ExecResult(streams[0].taken(), streams[1].taken(), code)
        finally:
            for stream in streams:
                stream.close()

    async def _await_end(
        self, monitor: MonitorClient, name: str, asked: asyncio.Future[dict[str, Any]], timeout_s: int
    ) -> int:
        try:
            async with asyncio.timeout(timeout_s or None):
                return int((await asyncio.shield(asked))["code"])
        except (TimeoutError, asyncio.CancelledError) as error:
            await monitor.request("kill_exec", timeout_s=_KILLED_S, name=name)
            await asyncio.wait([asked], timeout=_KILLED_S)
            asked.cancel()
            if isinstance(error, asyncio.CancelledError):
                raise
        raise DeadlineExceeded(f"the command did not end within {timeout_s} s; it was killed with all that it started")

    async def _drain(self, streams: tuple[Collector, Collector]) -> None:
        """The command has ended; what it left running may hold the pipes open, and is awaited only so long."""
        waits = [stream.ended for stream in streams if not stream.ended.done()]
        if waits:
            await asyncio.wait(waits, timeout=self._config.exec_drain_s)


def _owner(user: User, linux: dict[str, Any]) -> list[int] | None:
    """Who the user is on the node, where the container has a user namespace."""
    if "uidMappings" not in linux:
        return None
    return [userns.outside(linux["uidMappings"], user.uid), userns.outside(linux["gidMappings"], user.gid)]


class Collector:
    """Reads a pipe to its end and keeps the first ``limit`` bytes; the rest is read and let go, as CRI asks."""

    def __init__(self, limit: int) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._read_end, self._read)

    def _read(self) -> None:
        try:
            part = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return
        if not part:
            self._loop.remove_reader(self._read_end)
            if not self.ended.done():
                self.ended.set_result(None)
            return
        room = self._limit - self._size
        if room > 0:
            self._parts.append(part[:room])
            self._size += len(self._parts[-1])

    def taken(self) -> bytes:
        return b"".join(self._parts)

    def close(self) -> None:
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)
