"""User namespaces of pods: what may be asked for, from CRI to OCI words (runtime-spec, config-linux.md). Pure.

A pod has one user namespace or the node's; its containers share it. The kubelet maps as many ids for each pod as it has
configured (KEP-127), and gives no id of the node to two of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import ContainerConfig, IdMapping, NamespaceMode, NamespaceOption, SandboxConfig, UserNamespace

_IDS: Final = 1 << 32
_TTY: Final = 5


def has_own(asked: NamespaceOption) -> bool:
    """Whether the pod has a user namespace of its own."""
    return asked.userns is not None and asked.userns.mode is NamespaceMode.POD


def check_sandbox(config: SandboxConfig, *, why_not: str) -> None:
    """Raises InvalidArgument for what makes no sense, FailedPrecondition with ``why_not`` where the kernel has none."""
    asked = config.namespaces
    _check_mode(asked)
    if not has_own(asked):
        return
    if why_not:
        raise FailedPrecondition(f"userns_options.mode is POD: {why_not}", hint="run the pod in the node's")
    for field, mode in (("pid", asked.pid), ("ipc", asked.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidArgument(
                f"namespace_options.{field} is NODE, and userns_options.mode POD",
                hint="in a user namespace a pod has pids and IPC of its own; the node's network it may share",
            )


def check_container(config: ContainerConfig, pod: NamespaceOption) -> None:
    """Raises InvalidArgument if the container asks for another user namespace than its sandbox has, or for a mount that
    would carry the mounts of a user namespace to the node."""
    asked = config.security.namespaces
    _check_mode(asked)
    if asked.userns is not None and _settled(asked) != _settled(pod):
        raise InvalidArgument(
            f"userns_options of container {config.metadata.name} are not its sandbox's",
            hint="all containers of a pod share its user namespace",
        )


def _settled(option: NamespaceOption) -> UserNamespace | None:
    return option.userns if has_own(option) else None


def _check_mode(asked: NamespaceOption) -> None:
    userns = asked.userns
    if userns is None:
        return
    if userns.mode is NamespaceMode.NODE:
        if userns.uids or userns.gids:
            raise InvalidArgument("userns_options.mode is NODE with mappings", hint="leave uids and gids out")
        return
    if userns.mode is not NamespaceMode.POD:
        raise InvalidArgument(f"userns_options.mode is {userns.mode.name}", hint="use POD or NODE")
    for field, mappings in (("uids", userns.uids), ("gids", userns.gids)):
        if len(mappings) != 1:
            raise InvalidArgument(f"userns_options.{field} has {len(mappings)} mappings", hint="give exactly one")
        check_mappings(f"userns_options.{field}", mappings)
        if mappings[0].container_id != 0:
            raise InvalidArgument(
                f"userns_options.{field} maps from {mappings[0].container_id} on, so the pod has no root",
                hint="container_id is 0",
            )
        if mappings[0].host_id == 0:
            raise InvalidArgument(
                f"userns_options.{field} maps the node's root into the pod",
                hint="host_id is the first id of a free range",
            )


def check_mappings(field: str, mappings: Iterable[IdMapping]) -> None:
    """Raises InvalidArgument for a range that the kernel would not take."""
    for each in mappings:
        if each.length == 0 or each.host_id + each.length > _IDS or each.container_id + each.length > _IDS:
            raise InvalidArgument(
                f"{field} maps {each.length} ids from {each.container_id} to {each.host_id}",
                hint="a range has at least one id and ends below 2^32",
            )


def oci(mappings: Iterable[IdMapping]) -> list[dict[str, Any]]:
    """In OCI's words."""
    return [{"containerID": each.container_id, "hostID": each.host_id, "size": each.length} for each in mappings]


def mappings(pod: NamespaceOption) -> dict[str, Any]:
    """``linux.uidMappings`` and ``linux.gidMappings``; empty without a user namespace."""
    if pod.userns is None or not has_own(pod):
        return {}
    return {"uidMappings": oci(pod.userns.uids), "gidMappings": oci(pod.userns.gids)}


def root_of(pod: NamespaceOption) -> tuple[int, int]:
    """Who the pod's root is on the node: (uid, gid)."""
    if pod.userns is None or not has_own(pod):
        return 0, 0
    return pod.userns.uids[0].host_id, pod.userns.gids[0].host_id


def has_tty_group(pod: NamespaceOption) -> bool:
    """Whether the group tty, whose terminals are, exists in the pod."""
    return pod.userns is None or not has_own(pod) or pod.userns.gids[0].length > _TTY
