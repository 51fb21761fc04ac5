"""Where things lie: every path that pods use, below the root and the state directory of this daemon."""

from __future__ import annotations

from dataclasses import dataclass

from cri_py.model import ContainerId, SandboxId
from cri_py.pods.spec_mounts import SandboxFiles


@dataclass(frozen=True, slots=True)
class Places:
    """``root`` outlives a reboot, ``state`` does not."""

    root: str
    state: str

    @property
    def pods(self) -> str:
        return f"{self.state}/pods"

    @property
    def containers(self) -> str:
        return f"{self.root}/containers"

    @property
    def trash(self) -> str:
        """Directories on their way out, emptied in the background; on the filesystem of ``containers``."""
        return f"{self.root}/trash"

    @property
    def pods_trash(self) -> str:
        """The same on the filesystem of ``pods``."""
        return f"{self.state}/trash"

    @property
    def group_parents(self) -> str:
        """A file: the cgroups above pods that are ours. In ``state``, for a reboot removes cgroups too."""
        return f"{self.state}/cgroup-parents"

    @property
    def seccomp(self) -> str:
        return f"{self.state}/seccomp"

    @property
    def holder_program(self) -> str:
        """In ``root``, as many a node has /run on a file system where nothing may be executed."""
        return f"{self.root}/holder"

    def pod(self, sandbox_id: SandboxId) -> str:
        """The pod's directory: its monitor's socket, its files, its containers' bundles."""
        return f"{self.pods}/{sandbox_id}"

    def files(self, sandbox_id: SandboxId) -> SandboxFiles:
        pod = self.pod(sandbox_id)
        return SandboxFiles(f"{pod}/hosts", f"{pod}/hostname", f"{pod}/resolv.conf", f"{pod}/shm")

    def bundle(self, sandbox_id: SandboxId, container_id: ContainerId) -> str:
        return f"{self.pod(sandbox_id)}/containers/{container_id}"

    def writable(self, container_id: ContainerId) -> str:
        """The container's own layer: ``upper`` and ``work`` of its overlay."""
        return f"{self.containers}/{container_id}"
