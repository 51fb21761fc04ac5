"""SELinux labels of a container's processes and files, decided from what is asked and from the node's policy. Pure.

A label is USER:ROLE:TYPE:LEVEL. With MCS, which container policies use, the level is a sensitivity and two categories:
``s0:c12,c740``. Containers of a pod share a pair, so they share files; no other pod has it, so nobody else does.
Sources: selinux(8), container_selinux(8), libselinux's lxc_contexts(5).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.model import ContainerConfig, NamespaceMode, Sandbox, SelinuxOption

CATEGORIES: Final = 1024  # c0 to c1023, as policies have them
_USUAL_POLICY: Final = "targeted"
_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_CATEGORY: Final = r"c\d{1,4}"
_LEVEL = re.compile(rf"s\d{{1,2}}(-s\d{{1,2}})?(:{_CATEGORY}([.,]{_CATEGORY})*)?")


@dataclass(frozen=True, slots=True)
class Label:
    user: str
    role: str
    type: str
    level: str = ""

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a label. Raises InvalidArgument."""
        words = text.split(":", 3)
        if len(words) < 3 or not all(_WORD.fullmatch(word) for word in words[:3]):
            raise InvalidArgument(f"{text!r} is no SELinux label", hint="a label reads like user:role:type:level")
        return cls(*words)

    def __str__(self) -> str:
        return ":".join(filter(None, (self.user, self.role, self.type, self.level)))


@dataclass(frozen=True, slots=True)
class Contexts:
    """The policy's labels for containers (``contexts/lxc_contexts``), without categories.

    A policy without MLS has no levels: both labels are without one then.
    """

    process: Label
    file: Label
    privileged: str = "spc_t"  # the type of processes that are not confined

    @property
    def has_levels(self) -> bool:
        return bool(self.process.level)


@dataclass(frozen=True, slots=True)
class Labels:
    """Of a container: its processes' and its files'."""

    process: str
    file: str


def contexts(text: str, *, levels: bool = True) -> Contexts:
    """Read an lxc_contexts file; ``levels``: whether the policy has any. Raises InvalidArgument."""
    found = dict(re.findall(r'^\s*(\w+)\s*=\s*"([^"]*)"', text, re.MULTILINE))
    if not {"process", "file"} <= found.keys():
        raise InvalidArgument("lxc_contexts names no process and file label", hint="install container-selinux")
    process, file = Label.of(found["process"]), Label.of(found["file"])
    if not (levels and process.level and file.level):
        process, file = replace(process, level=""), replace(file, level="")
    return Contexts(process, file)


def policy_of(config: str) -> str:
    """The name of the policy that selinux_config(5) text asks for."""
    found = re.search(r"^\s*SELINUXTYPE\s*=\s*(\S+)\s*$", config, re.MULTILINE)
    return found[1] if found else _USUAL_POLICY


def check(asked: SelinuxOption | None, policy: Contexts | None) -> None:
    """Raises for a label that is none, or that would not be enforced. ``policy``: None where the node labels none."""
    if asked is None or asked == SelinuxOption():
        return
    for field, word in (("user", asked.user), ("role", asked.role), ("type", asked.type)):
        if word and not _WORD.fullmatch(word):
            raise InvalidArgument(f"selinux_options.{field} is {word!r}", hint="use letters, digits and _")
    if asked.level and not _LEVEL.fullmatch(asked.level):
        raise InvalidArgument(f"selinux_options.level is {asked.level!r}", hint="a level reads like s0:c1,c2")
    if policy is None:
        raise FailedPrecondition(
            "selinux_options are asked for, but this node labels no containers",
            hint="it takes a kernel with SELinux, container-selinux and runtime.selinux = true; or leave them out",
        )
    if asked.level and not policy.has_levels:
        raise FailedPrecondition(
            f"selinux_options.level is {asked.level!r}, but this node's policy has no levels", hint="leave it out"
        )


def pod_level(sandbox_id: str, asked: SelinuxOption | None, taken: Collection[str]) -> str:
    """The level of a pod: the one that is asked for, or a pair of categories that no level in ``taken`` has.

    From the id by a hash, so that it is found again without being kept. Raises FailedPrecondition if all are taken.
    """
    if asked is not None and asked.level:
        return asked.level
    pairs = CATEGORIES * (CATEGORIES - 1) // 2
    start = int.from_bytes(hashlib.sha256(sandbox_id.encode()).digest()[:8])
    for step in range(min(pairs, len(taken) + 1)):
        level = _pair((start + step) % pairs)
        if level not in taken:
            return level
    raise FailedPrecondition("every pair of SELinux categories belongs to a pod", hint="remove pods")


def _pair(number: int) -> str:
    """The pair of that number among (0,1), (0,2), (1,2), (0,3) …"""
    high = int((1 + (1 + 8 * number) ** 0.5) / 2)
    while high * (high - 1) // 2 > number:
        high -= 1
    return f"s0:c{number - high * (high - 1) // 2},c{high}"


def labels(policy: Contexts, level: str, asked: SelinuxOption | None, *, unconfined: bool) -> Labels:
    """What a container's processes and files are labelled with.

    ``level``: its pod's, "" for one that was made before the node labelled any. ``unconfined``: it is privileged or
    shares the node's pids or IPC, which no confined type may reach. A user, role or type that is asked for is the
    process's; files keep the policy's, at the level that is asked for or the pod's.
    """
    wanted = asked or SelinuxOption()
    own = (wanted.level or level or policy.process.level) if policy.has_levels else ""
    process = replace(
        policy.process,
        user=wanted.user or policy.process.user,
        role=wanted.role or policy.process.role,
        type=wanted.type or policy.process.type,
        level=own,
    )
    if unconfined and not wanted.type:
        process = replace(process, type=policy.privileged, level=wanted.level or policy.process.level)
    return Labels(str(process), str(replace(policy.file, level=own)))


def container_labels(policy: Contexts, sandbox: Sandbox, config: ContainerConfig) -> Labels:
    """Of a container: what it leaves out of its selinux_options is as its pod's has it."""
    asked, pod = config.security.selinux or SelinuxOption(), sandbox.config.selinux or SelinuxOption()
    merged = SelinuxOption(
        asked.user or pod.user, asked.role or pod.role, asked.type or pod.type, asked.level or pod.level
    )
    namespaces = sandbox.config.namespaces
    shares = NamespaceMode.NODE in {namespaces.pid, namespaces.ipc}
    return labels(policy, sandbox.selinux_level, merged, unconfined=shares or config.security.privileged)


def pod_file_label(policy: Contexts | None, sandbox: Sandbox) -> str:
    """Of what all containers of a pod share: its /dev/shm and its files below /etc. "" for none."""
    if policy is None:
        return ""
    return labels(policy, sandbox.selinux_level, sandbox.config.selinux, unconfined=False).file


def check_relabelled(path: str) -> None:
    """Raises InvalidArgument for what the node needs with the label that it has: else it boots no more."""
    clean = "/" + "/".join(part for part in path.split("/") if part not in {"", "."})
    if reason := _PROTECTED.get(clean):
        raise InvalidArgument(
            f"selinux_relabel: {clean} may not be relabelled: {reason}", hint="mount a directory below it"
        )


_PROTECTED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("/", "/usr", "/etc", "/var", "/bin", "/sbin", "/lib", "/lib64"), "the whole node needs its label"),
    **dict.fromkeys(("/proc", "/sys", "/dev"), "it belongs to the kernel"),
    **dict.fromkeys(("/home", "/root", "/boot", "/run", "/opt", "/srv"), "all that lies in it would change"),
}
