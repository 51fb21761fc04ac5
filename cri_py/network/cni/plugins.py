"""The plugins' programs: found in the bin_dirs, run with a deadline, asked which versions they support."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from cri_py.errors import FailedPrecondition
from cri_py.kernel.faults import trace
from cri_py.network import program
from cri_py.network.cni.answers import supported_versions
from cri_py.network.cni.calls import Call, version_call
from cri_py.network.cni.orphans import MARK, end_orphans
from cri_py.network.program import Ended


class Plugins:
    """Runs plugins by posix_spawn, each in a process group of its own that is killed at its deadline.

    ``owner`` tells this daemon from others on the node: by it the next one finds what a killed one has left running.
    """

    def __init__(self, directories: Sequence[str], timeout_s: float, owner: str) -> None:
        self._directories = directories
        self._timeout_s = timeout_s
        self._owner = owner
        self._versions: dict[tuple[str, int, int], frozenset[str]] = {}  # by path, time and inode of the program

    def find(self, kind: str) -> str:
        """The program of a plugin. Raises FailedPrecondition if no directory has it."""
        for directory in self._directories:
            path = f"{directory}/{kind}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        raise FailedPrecondition(
            f"CNI plugin {kind} is not in {', '.join(self._directories)}",
            hint="install it there, or name its directory in network.cni_bin_dirs",
        )

    async def end_orphans(self) -> None:
        """End what an earlier daemon has called. Only before the first call."""
        await asyncio.to_thread(end_orphans, self._owner, self._directories)

    async def run(self, call: Call) -> Ended:
        """Run a plugin. Raises FailedPrecondition (not installed), Unavailable, DeadlineExceeded, ResourceExhausted."""
        trace(f"{call.command} of {call.type}: before")
        ended = await program.run(
            [self.find(call.type)], call.stdin, deadline_s=self._timeout_s, environment=self._environment(call)
        )
        trace(f"{call.command} of {call.type}: ended")
        return ended

    async def versions(self, kind: str) -> frozenset[str]:
        """The versions of CNI that a plugin supports; it is asked once, and again when its program was replaced."""
        path = self.find(kind)
        found = os.stat(path)
        key = (path, found.st_mtime_ns, found.st_ino)
        if key not in self._versions:
            self._versions[key] = supported_versions(await self.run(version_call(kind)))
        return self._versions[key]

    def _environment(self, call: Call) -> Mapping[str, str]:
        """The daemon's own, which plugins that talk to an API server need, without what another CNI call has left."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CNI_")}
        return {
            "PATH": program.SEARCH_PATH,
            **inherited,
            **call.variables,
            "CNI_COMMAND": call.command,
            "CNI_PATH": ":".join(self._directories),
            MARK: self._owner,
        }
