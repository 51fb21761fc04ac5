"""ExecSync: a command in a running container, its output collected here through pipes, its end told by the monitor."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from cri_py.cgroups import Cgroups
from cri_py.config import RuntimeConfig
from cri_py.errors import DeadlineExceeded, FailedPrecondition
from cri_py.kernel import procfs, resctrl, steps, syscalls
from cri_py.kernel.faults import trace
from cri_py.kernel.null import open_null
from cri_py.kernel.steps import Step
from cri_py.model import Container, ContainerId, ExecResult
from cri_py.monitor.client import MonitorClient, StepFailed
from cri_py.pods import exec_steps
from cri_py.pods.step_parts import Filter

_READ_BYTES: Final = 64 << 10
_KILLED_S: Final = 10.0


class Exec(NamedTuple):
    """A command in a container, ready to be run: the ``name`` of its group, and its program.

    ``owner``: (uid, gid) on the node of who it runs as. The pipes that are its stdio belong to them, or /dev/stdout
    could not be opened there.
    """

    container_id: ContainerId
    name: str
    steps: Sequence[Step]
    owner: tuple[int, int]


class Execs:
    """Knows of each container what a further process in it inherits."""

    def __init__(
        self,
        config: RuntimeConfig,
        cgroups: Cgroups,
        read: Callable[[Container], tuple[dict[str, Any], dict[str, Any] | None]],
    ) -> None:
        """``read``: the OCI document of a container, and its seccomp filter, {path, flags}."""
        self._config = config
        self._cgroups = cgroups
        self._read = read
        self._rights = _rights()
        os.close(open_null(os.O_RDONLY))  # once, so that the first exec takes no longer than others
        self._templates: dict[ContainerId, exec_steps.Template] = {}
        self._compiled: dict[str, bytes] = {}  # by path: most containers have the same filter
        # Sessions outlive the daemon, and a container may give the next one the same pid: no group's name comes twice.
        self._mark = secrets.token_hex(4)
        self._count = 0

    def forget(self, container_id: ContainerId) -> None:
        self._templates.pop(container_id, None)

    def prepare(self, container: Container, command: Sequence[str], *, terminal: bool = False) -> Exec:
        """The container's own process with another command, as the user it runs as. Raises InvalidArgument."""
        if container.id not in self._templates:
            self._templates[container.id] = self._template(container, *self._read(container))
        self._count += 1
        name = f"exec-{self._mark}-{self._count}"
        scope = self._cgroups.exec_scope(container.cgroup, name)
        common = self._templates[container.id]
        return Exec(container.id, name, exec_steps.steps(common, command, scope, terminal=terminal), common.owner)

    def _template(
        self, container: Container, document: dict[str, Any], secure: dict[str, Any] | None
    ) -> exec_steps.Template:
        user = container.user
        assert user is not None  # a container whose user is unknown never runs
        identity = exec_steps.Identity(user.uid, user.gid, user.supplemental_groups, user.home)
        linux = document.get("linux", {})
        if "intelRdt" in linux:
            linux = {**linux, "task_files": resctrl.task_files(linux["intelRdt"], container.id)}
        found = self._filter(secure) if secure else None
        return exec_steps.template(document["process"], identity, found, self._rights, linux)

    def _filter(self, found: dict[str, Any]) -> Filter:
        path = found["path"]
        if path not in self._compiled:
            try:
                with open(path, "rb") as file:
                    self._compiled[path] = file.read()
            except OSError as error:
                raise FailedPrecondition(f"the container's seccomp filter {path} can't be read: {error}") from error
        return Filter(self._compiled[path], found["flags"])

    async def run(self, monitor: MonitorClient, command: Exec, timeout_s: int) -> ExecResult:
        """Run it to its end or to the deadline; then everything that it started is killed."""
        with ExitStack() as ours, ExitStack() as sent:
            stdin = open_null(os.O_RDONLY)
            sent.callback(os.close, stdin)
            streams = self._collector(command, ours, sent), self._collector(command, ours, sent)
            asked = self._ask(monitor, command, (stdin, *(stream.write_end for stream in streams)), sent)
            code = await self._await_end(monitor, command, asked, sent, timeout_s)
            trace("exec: ended")
            await self._drain(streams)
            return ExecResult(streams[0].taken(), streams[1].taken(), code)

    def _collector(self, command: Exec, ours: ExitStack, sent: ExitStack) -> Collector:
        collector = Collector(self._config.exec_output_bytes, command.owner)
        ours.callback(collector.close)
        sent.callback(os.close, collector.write_end)
        return collector

    def _ask(
        self, monitor: MonitorClient, command: Exec, stdio: tuple[int, ...], sent: ExitStack
    ) -> asyncio.Future[dict[str, Any]]:
        """The request, which goes out with the loop's next turn; its answer is the command's end."""
        program = steps.in_memory(steps.program(command.steps))
        sent.callback(os.close, program)
        words = {"id": command.container_id, "name": command.name}
        return asyncio.ensure_future(monitor.request("exec", timeout_s=None, fds=(*stdio, program), **words))

    async def _await_end(
        self,
        monitor: MonitorClient,
        command: Exec,
        asked: asyncio.Future[dict[str, Any]],
        sent: ExitStack,
        timeout_s: int,
    ) -> int:
        """Whoever leaves before, from the first moment on, leaves no command behind."""
        try:
            async with asyncio.timeout(timeout_s or None):
                trace("exec: before the frame")
                await asyncio.sleep(0)  # the frame goes out, its descriptors with it
                sent.close()
                return int((await asyncio.shield(asked))["code"])
        except StepFailed as failure:
            raise exec_steps.refusal(command.steps[failure.step], failure.errno) from failure
        except (TimeoutError, asyncio.CancelledError) as error:
            try:
                await monitor.request("kill_exec", timeout_s=_KILLED_S, name=command.name)
                await asyncio.wait([asked], timeout=_KILLED_S)
            finally:
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)  # nobody else hears of how it ended
            if isinstance(error, asyncio.CancelledError):
                raise
        raise DeadlineExceeded(f"the command did not end within {timeout_s} s; it was killed with all that it started")

    async def _drain(self, streams: tuple[Collector, Collector]) -> None:
        """The command has ended; what it left running may hold the pipes open, and is awaited only so long."""
        waits = [stream.ended for stream in streams if not stream.ended.done()]
        if waits:
            await asyncio.wait(waits, timeout=self._config.exec_drain_s)


def _rights() -> exec_steps.Rights:
    """Ours, which are the spawner's and every monitor's as well."""
    kinds = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    limits = {kind: resource.getrlimit(kind)[1] for kind in kinds}
    return exec_steps.Rights(syscalls.capget()[1], procfs.last_capability(), limits)


class Collector:
    """Reads a pipe to its end and keeps the first ``limit`` bytes; the rest is read and let go, as CRI asks."""

    def __init__(self, limit: int, owner: tuple[int, int] = (0, 0)) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if owner != (0, 0):
            os.fchown(self.write_end, *owner)
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
