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
from cri_py.model import SelinuxOption

CATEGORIES: Final = 1024  # c0 to c1023, as policies have them
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
    """The policy's labels for containers (``contexts/lxc_contexts``), without categories."""

    process: Label
    file: Label
    privileged: str = "spc_t"  # the type of processes that are not confined


@dataclass(frozen=True, slots=True)
class Labels:
    """Of a container: its processes' and its files'. The empty string: none."""

    process: str = ""
    file: str = ""


def contexts(text: str) -> Contexts:
    """Read an lxc_contexts file. Raises InvalidArgument."""
    found = dict(re.findall(r'^\s*(\w+)\s*=\s*"([^"]*)"', text, re.MULTILINE))
    if not {"process", "file"} <= found.keys():
        raise InvalidArgument("lxc_contexts names no process and file label", hint="install container-selinux")
    return Contexts(Label.of(found["process"]), Label.of(found["file"]))


def check(asked: SelinuxOption | None, *, enabled: bool) -> None:
    """Raises for a label that is none, or that would not be enforced. ``enabled``: whether the kernel has SELinux."""
    if asked is None or asked == SelinuxOption():
        return
    for field, word in (("user", asked.user), ("role", asked.role), ("type", asked.type)):
        if word and not _WORD.fullmatch(word):
            raise InvalidArgument(f"selinux_options.{field} is {word!r}", hint="use letters, digits and _")
    if asked.level and not _LEVEL.fullmatch(asked.level):
        raise InvalidArgument(f"selinux_options.level is {asked.level!r}", hint="a level reads like s0:c1,c2")
    if not enabled:
        raise FailedPrecondition(
            "selinux_options are asked for, but this kernel has no SELinux", hint="boot with SELinux, or leave them out"
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

    ``level``: its pod's. ``unconfined``: it is privileged or shares the node's pids or IPC, which no confined type may
    reach. A user, role or type that is asked for is the process's; files keep the policy's, at the process's level.
    """
    wanted = asked or SelinuxOption()
    process = replace(policy.process, level=wanted.level or level)
    if unconfined and not wanted.type:
        process = replace(process, type=policy.privileged, level=wanted.level or policy.process.level)
    process = replace(
        process,
        user=wanted.user or process.user,
        role=wanted.role or process.role,
        type=wanted.type or process.type,
    )
    return Labels(str(process), str(replace(policy.file, level=process.level)))


def mount_option(label: str) -> str:
    """The option by which a file system without labels of its own gets one (mount(8), "context")."""
    return f'context="{label}"'


def relabelled(path: str, protected: Mapping[str, str]) -> str:
    """The path if it may be given a container's label. Raises InvalidArgument for what the node needs as it is.

    ``protected``: reasons by path: a system whose /etc is a container's boots no more.
    """
    clean = "/" + "/".join(part for part in path.split("/") if part not in {"", "."})
    if reason := protected.get(clean):
        raise InvalidArgument(f"{clean} may not be relabelled: {reason}", hint="mount a directory below it")
    return clean


PROTECTED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("/", "/usr", "/etc", "/var", "/bin", "/sbin", "/lib", "/lib64"), "the whole node needs its label"),
    **dict.fromkeys(("/proc", "/sys", "/dev"), "it belongs to the kernel"),
    **dict.fromkeys(("/home", "/root", "/boot", "/run", "/opt", "/srv"), "all that lies in it would change"),
}
