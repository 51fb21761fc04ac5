"""SELinux on this node: whether containers are labelled, by which policy, and which categories are whose. Blocking.

The kernel has SELinux if its file system is mounted (selinux(8)), also in permissive mode, where labels are given and
nothing is denied. The labels for containers come from container-selinux, which is no part of a base policy: a node that
lacks it runs containers as it runs everything else, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import SandboxId, SelinuxOption
from cri_py.pods import spec_selinux
from cri_py.pods.ledger import Ledger
from cri_py.pods.spec_selinux import Contexts

log = structlog.get_logger()
_FILE_SYSTEM: Final = "sys/fs/selinux"
_SHARED_CONTEXTS: Final = "usr/share/containers/selinux/contexts"


def read_policy(root: str = "/") -> Contexts | None:
    """The labels that containers start from, None where there are none. ``root``: of the node's files.

    Raises FailedPrecondition if a policy has labels that are none: a node that should confine must not run unconfined.
    """
    top = Path(root)
    if not (top / _FILE_SYSTEM / "enforce").exists():
        return None
    policy = spec_selinux.policy_of(_read(top / "etc/selinux/config"))
    places = [top / _SHARED_CONTEXTS, top / "etc/selinux" / policy / "contexts/lxc_contexts"]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        log.warning("SELinux is on, but container-selinux is missing: containers have no labels of their own")
        return None
    try:
        return spec_selinux.contexts(found.read_text(), levels=_read(top / _FILE_SYSTEM / "mls").strip() != "0")
    except InvalidArgument as error:
        raise FailedPrecondition(
            f"{found}: {error.message}", hint="mend it, or set runtime.selinux = false to go without labels"
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


class Levels:
    """Hands out pairs of categories; whose they are is in the records, so a restart forgets none."""

    def __init__(self, policy: Contexts | None, ledger: Ledger) -> None:
        self._policy = policy
        self._ledger = ledger
        self._promised: set[str] = set()

    @contextmanager
    def promise(self, sandbox_id: SandboxId, asked: SelinuxOption | None) -> Iterator[str]:
        """A level for a sandbox that is being made, "" where there are none. Nobody else gets it within the block;
        after it the sandbox is recorded, or has failed. Raises FailedPrecondition if all are taken."""
        if self._policy is None or not self._policy.has_levels:
            yield ""
            return
        level = spec_selinux.pod_level(sandbox_id, asked, self._taken())
        self._promised.add(level)
        try:
            yield level
        finally:
            self._promised.discard(level)

    def _taken(self) -> set[str]:
        named = (container.config.security.selinux for container in self._ledger.containers())
        return (
            self._promised
            | {sandbox.selinux_level for sandbox in self._ledger.sandboxes()}
            | {option.level for option in named if option is not None}
        )
