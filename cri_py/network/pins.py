"""Where the pods' network namespaces are pinned, and by which names: ``ip netns`` lists those in /var/run/netns.

The directory may be shared with agents that look there (Cilium, Istio), with ``ip netns`` itself and with other
daemons, so a name says whose it is.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Set
from typing import Final

from cri_py.errors import KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.constants import MS_BIND, MS_REC, MS_SHARED
from cri_py.model import Sandbox
from cri_py.network import netns

_NAME_BYTES: Final = 120  # of the pod's; a file's name may have 255 in all
_ID_DIGITS: Final = 12


class Pins:
    """``owner`` tells this daemon from others on the node, such as its state directory."""

    def __init__(self, directory: str, owner: str) -> None:
        self.directory = directory
        self._mark = hashlib.sha256(owner.encode()).hexdigest()[:6]
        self._is_private = directory.startswith(f"{owner}/")

    def path_of(self, sandbox: Sandbox) -> str:
        """``cri-default-web-0123456789ab-ffeedd``: the pod, its sandbox's id, whose it is."""
        meta = sandbox.config.metadata
        pod = f"{meta.namespace}-{meta.name}".replace("/", "_")[:_NAME_BYTES]
        return f"{self.directory}/cri-{pod}-{sandbox.id[:_ID_DIGITS]}-{self._mark}"

    def make_directory(self) -> None:
        """Make the directory. One that others use, too, is a shared mount, as ``ip netns add`` and CNI's plugins make
        it: a namespace pinned before would else stay busy below the mount that they put over it. Raises KernelError.
        """
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        if self._is_private:
            return
        try:
            syscalls.mount("", self.directory, "", MS_SHARED | MS_REC)
        except KernelError as error:
            if error.errno != errno.EINVAL:  # EINVAL: no mount point yet
                raise
            syscalls.mount(self.directory, self.directory, "", MS_BIND | MS_REC)
            syscalls.mount("", self.directory, "", MS_SHARED | MS_REC)

    def strange(self, attached: Set[str], known: Set[str]) -> list[str]:
        """The paths of our pins that are not ``attached`` and belong to none of the ``known`` sandbox ids."""
        ids = {sandbox_id[:_ID_DIGITS] for sandbox_id in known}
        paths = [f"{self.directory}/{name}" for name in netns.pins(self.directory) if self._is_ours(name)]
        return [path for path in paths if path not in attached and _id_of(path) not in ids]

    def _is_ours(self, name: str) -> bool:
        return self._is_private or (name.startswith("cri-") and name.endswith(f"-{self._mark}"))


def _id_of(path: str) -> str:
    parts = path.rsplit("-", 2)
    return parts[1] if len(parts) == 3 else ""
