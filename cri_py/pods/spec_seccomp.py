"""Seccomp profiles of the node's files, in OCI's or Docker's JSON, reduced to what one container gets. Pure.

Docker's form says more than OCI's ``linux.seccomp``: rules that count only with or without a capability, on some
machines, or from a kernel on; and which architectures belong together. All of that is decided here, so that a compiler
sees plain rules. What would be read as less than its author meant is refused: unknown words, actions and comparisons.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import Any, Final

import msgspec

from cri_py.errors import InvalidArgument, Unimplemented

_ACTIONS: Final = frozenset(
    f"SCMP_ACT_{word}"
    for word in ("KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW", "NOTIFY")
)
_COMPARISONS: Final = frozenset(f"SCMP_CMP_{word}" for word in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))
_FLAGS: Final = frozenset(f"SECCOMP_FILTER_FLAG_{word}" for word in ("TSYNC", "LOG", "SPEC_ALLOW"))
_MAX_ERRNO: Final = 4095  # seccomp(2) cuts greater ones
_ARGUMENTS: Final = 6
# What profiles call a machine (Go's names), by what uname(2) calls it.
_MACHINES: Final = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A misspelled word would leave a rule out without a sound."""


class _Argument(_Strict, frozen=True):
    index: int
    op: str
    value: int = 0
    valueTwo: int = 0


class _Condition(_Strict, frozen=True):
    caps: tuple[str, ...] | None = None
    arches: tuple[str, ...] | None = None
    minKernel: str = ""


class _Rule(_Strict, frozen=True):
    action: str
    names: tuple[str, ...] | None = None
    name: str = ""
    args: tuple[_Argument, ...] | None = None
    errnoRet: int | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None
    comment: str = ""


class _Architectures(_Strict, frozen=True):
    architecture: str
    subArchitectures: tuple[str, ...] | None = None


class _Profile(_Strict, frozen=True):
    defaultAction: str
    defaultErrnoRet: int | None = None
    architectures: tuple[str, ...] | None = None
    archMap: tuple[_Architectures, ...] | None = None
    syscalls: tuple[_Rule, ...] | None = None
    flags: tuple[str, ...] | None = None
    listenerPath: str = ""
    listenerMetadata: str = ""
    comment: str = ""


def check_path(path: str) -> None:
    """Raises InvalidArgument unless ``localhost_ref`` is a plain absolute path, which CRI has it be."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/") or posixpath.normpath(path) == "/":
        raise InvalidArgument(
            f"the seccomp profile localhost/{path} is no absolute path of a file",
            hint="localhost_ref is the whole path, such as /var/lib/kubelet/seccomp/web.json",
        )


def reduce_profile(
    text: bytes, path: str, *, granted: Collection[str], arch: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """The file's profile as an OCI ``linux.seccomp`` object for a container with the capabilities ``granted``.

    ``granted``: full names, its bounding set. ``arch``: the machine as uname(2) has it. ``kernel``: (major, minor).
    ``path`` is for errors. Raises InvalidArgument with the place in the file, Unimplemented for SCMP_ACT_NOTIFY.
    """
    try:
        profile = msgspec.json.decode(text, type=_Profile)
        if profile.listenerPath or profile.listenerMetadata:
            raise _no_listener("listenerPath")
        machine, native = _MACHINES.get(arch, (arch, ""))
        reduced: dict[str, Any] = {
            "defaultAction": _action(profile.defaultAction),
            "architectures": _architectures(profile, native),
            "syscalls": [
                _plain(rule)
                for rule in profile.syscalls or ()
                if _counts(rule, granted=granted, machine=machine, kernel=kernel)
            ],
        }
        if profile.defaultErrnoRet is not None:
            reduced["defaultErrnoRet"] = _errno(profile.defaultErrnoRet)
        if profile.flags:
            reduced["flags"] = [_word(flag, _FLAGS, "flag") for flag in profile.flags]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the seccomp profile {path} can't be read: {error}") from error
    except (InvalidArgument, Unimplemented) as error:
        raise type(error)(f"the seccomp profile {path}: {error.message}", hint=error.hint) from None
    return reduced


def _counts(rule: _Rule, *, granted: Collection[str], machine: str, kernel: tuple[int, int]) -> bool:
    """Whether all that a rule includes is there, and nothing that it excludes."""
    wanted, unwanted = rule.includes or _Condition(), rule.excludes or _Condition()
    return not (
        any(name not in granted for name in wanted.caps or ())
        or (wanted.arches and machine not in wanted.arches)
        or (wanted.minKernel and kernel < _version(wanted.minKernel))
        or any(name in granted for name in unwanted.caps or ())
        or machine in (unwanted.arches or ())
        or (unwanted.minKernel and kernel >= _version(unwanted.minKernel))
    )


def _version(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", text)
    if found is None:
        raise InvalidArgument(f"minKernel {text!r} is no version", hint="a version reads like 4.8")
    return int(found[1]), int(found[2])


def _architectures(profile: _Profile, native: str) -> list[str]:
    """Those that the profile covers; none means the machine's own."""
    if profile.architectures and profile.archMap:
        raise InvalidArgument("architectures and archMap are both set", hint="use one of them")
    if profile.archMap is None:
        return list(profile.architectures or ())
    found = next((entry for entry in profile.archMap if entry.architecture == native), None)
    return [found.architecture, *(found.subArchitectures or ())] if found else []


def _plain(rule: _Rule) -> dict[str, Any]:
    if rule.names and rule.name:
        raise InvalidArgument(f"a rule has both names and name ({rule.name})", hint="use names")
    names = list(rule.names or ((rule.name,) if rule.name else ()))
    if not names:
        raise InvalidArgument(f"a rule with {rule.action} names no system call", hint="give it names")
    plain: dict[str, Any] = {"names": names, "action": _action(rule.action)}
    if rule.errnoRet is not None:
        plain["errnoRet"] = _errno(rule.errnoRet)
    if rule.args:
        plain["args"] = [_comparison(argument, names[0]) for argument in rule.args]
    return plain


def _comparison(argument: _Argument, name: str) -> dict[str, Any]:
    if not 0 <= argument.index < _ARGUMENTS:
        raise InvalidArgument(f"the rule for {name} compares argument {argument.index}", hint="they go from 0 to 5")
    for value in (argument.value, argument.valueTwo):
        if not 0 <= value < 1 << 64:
            raise InvalidArgument(f"the rule for {name} compares with {value}", hint="values have 64 bits, unsigned")
    return {
        "index": argument.index,
        "op": _word(argument.op, _COMPARISONS, "comparison"),
        "value": argument.value,
        "valueTwo": argument.valueTwo,
    }


def _action(word: str) -> str:
    if word == "SCMP_ACT_NOTIFY":
        raise _no_listener(word)
    return _word(word, _ACTIONS, "action")


def _no_listener(word: str) -> Unimplemented:
    return Unimplemented(
        f"{word} is not supported: there is no agent on this node that would decide about system calls",
        hint="use SCMP_ACT_ERRNO or SCMP_ACT_LOG",
    )


def _errno(number: int) -> int:
    if not 0 <= number <= _MAX_ERRNO:
        raise InvalidArgument(f"errnoRet {number} is none", hint=f"an errno goes from 0 to {_MAX_ERRNO}")
    return number


def _word(word: str, known: frozenset[str], kind: str) -> str:
    if word not in known:
        raise InvalidArgument(f"there is no {kind} {word!r}", hint=f"there are {', '.join(sorted(known))}")
    return word
