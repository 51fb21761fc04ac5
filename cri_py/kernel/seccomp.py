"""Seccomp filters: an OCI profile becomes BPF (libseccomp), BPF becomes the calling thread's filter (seccomp(2)).

libseccomp is opened only when a profile is compiled. Loading needs no library, and this module is in the process from
which every monitor is forked, so it imports little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Any

from cri_py.errors import FailedPrecondition, InvalidArgument, KernelError
from cri_py.kernel import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_LIBRARY = "libseccomp.so.2"
_SET_MODE_FILTER = 1

# Action words of OCI runtime-spec (config-linux.md, Seccomp) and libseccomp's numbers; those in _WITH_NUMBER carry one.
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_COMPARISONS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0x1,
    "SECCOMP_FILTER_FLAG_LOG": 0x2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 0x4,
}
_ATTRIBUTE_OPTIMIZE = 8  # value 2: a binary tree over the numbers instead of a list
_UNKNOWN_SYSCALL = -1
# The first number that means the same call on every architecture (Linux 5.1); later ones do too.
_FIRST_COMMON_NUMBER = 424
_X32_BIT = 0x40000000
_PERMISSIVE = (_ACTIONS["SCMP_ACT_ALLOW"], _ACTIONS["SCMP_ACT_LOG"])
# Calls since Linux 5.14, in the order of their numbers, which are the same on every architecture.
_FIRST_NEWER = 447
_NEWER_CALLS = """
memfd_secret process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2 map_shadow_stack futex_wake
futex_wait futex_requeue statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat
getxattrat listxattrat removexattrat open_tree_attr file_getattr file_setattr
"""
_NEWER = {name: number for number, name in enumerate(_NEWER_CALLS.split(), _FIRST_NEWER)}


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp of libseccomp."""

    _fields_ = (
        ("index", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog of the kernel."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def profile_key(profile: Mapping[str, Any]) -> str:
    """64 hex digits, equal for equal profiles: what a cache of compiled filters goes by."""
    # Only the daemon asks; OpenSSL and json don't belong into the process that monitors are forked from.
    import hashlib  # noqa: PLC0415
    import json  # noqa: PLC0415

    return hashlib.sha256(json.dumps(profile, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def compile_profile(profile: Mapping[str, Any]) -> bytes:
    """Compile a ``linux.seccomp`` object of an OCI document into BPF (an array of struct sock_filter).

    Calls that this libseccomp doesn't know are left out, as every OCI runtime does: the default action meets them. But
    where that is to allow them, and the rule is not, leaving out would be less than was asked for: such calls are met
    by their number, or the profile is refused. With SCMP_ACT_ERRNO as default, calls newer than all that the profile
    names get ENOSYS instead, because a C library falls back to an older call on that error only.

    Raises InvalidArgument that names the word which isn't understood, FailedPrecondition without libseccomp.
    """
    library = _library()
    default = _action(profile.get("defaultAction", ""), profile.get("defaultErrnoRet"))
    context = library.seccomp_init(default)
    if not context:
        raise InvalidArgument(f"libseccomp refuses the default action {profile.get('defaultAction')!r}")
    try:
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, 2)
        _set_architectures(library, context, profile.get("architectures") or ())
        newest, met = _FIRST_COMMON_NUMBER, b""
        for rule in profile.get("syscalls") or ():
            number, unknown = _add_rule(library, context, rule, default)
            newest = max(newest, number)
            met += _meet(unknown, rule, default)
        compiled = _export(library, context)
    finally:
        library.seccomp_release(context)
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        return met + compiled
    return (_HIDE_SOCKETCALL if _looks_into_socket(profile) else b"") + _refuse_newer_than(newest) + compiled


def filter_flags(profile: Mapping[str, Any]) -> int:
    """The ``flags`` of the profile as seccomp(2) takes them. Raises InvalidArgument for a flag that has no number."""
    bits = 0
    for flag in profile.get("flags") or ():
        if flag not in _FLAGS:
            raise InvalidArgument(f"the seccomp flag {flag!r} is not supported", hint=f"supported: {', '.join(_FLAGS)}")
        bits |= _FLAGS[flag]
    return bits


def load_filter(bpf: bytes, flags: int = 0) -> None:
    """Filter the calling thread's system calls from now on, and those of all that it forks and executes.

    Needs no_new_privs or CAP_SYS_ADMIN. Raises KernelError.
    """
    program = _Program(len(bpf) // 8, bpf)
    syscalls.seccomp(_SET_MODE_FILTER, flags, ctypes.byref(program), f"filter of {program.length} instructions")


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise FailedPrecondition(
            f"seccomp profiles can't be compiled: {error}",
            hint="apt install libseccomp2, or set runtime.seccomp = false and use unconfined containers",
        ) from error
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def _set_architectures(library: ctypes.CDLL, context: int, words: Sequence[str]) -> None:
    """Cover exactly ``words``; none means the machine's own."""
    tokens = set()
    for word in words:
        token = library.seccomp_arch_resolve_name(word.removeprefix("SCMP_ARCH_").lower().encode())
        if token == 0:
            raise InvalidArgument(f"the seccomp architecture {word!r} is unknown to libseccomp")
        tokens.add(token)
        _check(library.seccomp_arch_add(context, token), "seccomp_arch_add", word, ignore=errno.EEXIST)
    native = library.seccomp_arch_native()
    if tokens and native not in tokens:
        _check(library.seccomp_arch_remove(context, native), "seccomp_arch_remove", "native")


def _action(word: str, number: int | None) -> int:
    if word not in _ACTIONS:
        raise InvalidArgument(f"the seccomp action {word!r} is not supported", hint=f"supported: {', '.join(_ACTIONS)}")
    if word not in _WITH_NUMBER:
        return _ACTIONS[word]
    return _ACTIONS[word] | ((errno.EPERM if number is None else number) & 0xFFFF)


def _add_rule(library: ctypes.CDLL, context: int, rule: Mapping[str, Any], default: int) -> tuple[int, list[str]]:
    """Add one entry of ``syscalls``; returns the greatest number of a call that it names, and names without one."""
    for condition in ("includes", "excludes"):
        if rule.get(condition):
            raise InvalidArgument(
                f"the seccomp rule for {rule['names']} still has {condition}",
                hint="conditions on capabilities and kernels are decided before a profile is compiled",
            )
    action = _action(rule["action"], rule.get("errnoRet"))
    newest, unknown = _UNKNOWN_SYSCALL, []
    alternatives = list(_alternatives(rule.get("args") or ()))
    for name in rule["names"]:
        number = library.seccomp_syscall_resolve_name(name.encode())
        newest = max(newest, number)
        if number == _UNKNOWN_SYSCALL:
            unknown.append(name)
            continue
        if action == default:  # libseccomp refuses rules that change nothing
            continue
        for comparisons in alternatives:
            array = (_Comparison * len(comparisons))(*comparisons)
            result = library.seccomp_rule_add_array(context, action, number, len(comparisons), array)
            _check(result, "seccomp_rule_add", name, ignore=errno.EEXIST)
    return newest, unknown


def _meet(names: Sequence[str], rule: Mapping[str, Any], default: int) -> bytes:
    """Instructions that go in front, for calls that libseccomp can't name and that the default would let pass."""
    action = _action(rule["action"], rule.get("errnoRet"))
    if default not in _PERMISSIVE or action in _PERMISSIVE:
        return b""
    instructions = b""
    for name in names:
        if name not in _NEWER or rule.get("args"):
            raise InvalidArgument(
                f"the seccomp profile is to block {name!r}, which neither libseccomp nor this version can name",
                hint="is it misspelled? else leave it out, or install a newer libseccomp",
            )
        instructions += _instructions((_LOAD, 0, 0, 0), (_IF_EQUAL, 0, 1, _NEWER[name]), (_RETURN, 0, 0, action))
    return instructions


def _alternatives(arguments: Sequence[Mapping[str, Any]]) -> Iterator[list[_Comparison]]:
    """All comparisons must hold; but where one argument is compared twice, each comparison is a rule of its own.

    Such is the reading of runc and crun, because a rule of libseccomp may compare an argument only once.
    """
    comparisons = []
    for argument in arguments:
        if argument["op"] not in _COMPARISONS:
            raise InvalidArgument(f"the seccomp comparison {argument['op']!r} is unknown")
        operator = _COMPARISONS[argument["op"]]
        comparisons.append(_Comparison(argument["index"], operator, argument["value"], argument.get("valueTwo", 0)))
    if len({comparison.index for comparison in comparisons}) == len(comparisons):
        yield comparisons
    else:
        yield from ([comparison] for comparison in comparisons)


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(library.seccomp_export_bpf(context, fd), "seccomp_export_bpf", "memfd")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)


def _looks_into_socket(profile: Mapping[str, Any]) -> bool:
    """Whether the profile decides on the arguments of ``socket`` and doesn't name ``socketcall``."""
    rules = profile.get("syscalls") or ()
    return not any("socketcall" in rule["names"] for rule in rules) and any(
        "socket" in rule["names"] and rule.get("args") for rule in rules
    )


def _instructions(*rows: tuple[int, int, int, int]) -> bytes:
    """struct sock_filter: code, jump if true, jump if false, value."""
    return b"".join(struct.pack("=HBBI", *row) for row in rows)


_LOAD, _IF_EQUAL, _IF_GREATER, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NOT_THERE = _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
# Old 32-bit x86 programs make sockets by socketcall(2), whose arguments lie behind a pointer. For every rule on socket
# libseccomp opens it for all arguments, which would undo the rule; newer C libraries call socket itself.
_HIDE_SOCKETCALL = _instructions(
    (_LOAD, 0, 0, 4),  # the architecture, the second word of struct seccomp_data
    (_IF_EQUAL, 0, 3, 0x40000003),  # AUDIT_ARCH_I386
    (_LOAD, 0, 0, 0),  # the number
    (_IF_EQUAL, 0, 1, 102),
    (_RETURN, 0, 0, _NOT_THERE),
)


def _refuse_newer_than(number: int) -> bytes:
    """Instructions that go in front: ENOSYS for a call above ``number``, on every architecture the same one.

    Numbers with the x32 bit belong to another ABI and are left to the filter that follows.
    """
    return _instructions(
        (_LOAD, 0, 0, 0),
        (_IF_GREATER, 0, 2, number),
        (_IF_AT_LEAST, 1, 0, _X32_BIT),
        (_RETURN, 0, 0, _NOT_THERE),
    )


def _check(result: int, call: str, subject: str, *, ignore: int = 0) -> None:
    """libseccomp returns a negative errno."""
    if result < 0 and -result != ignore:
        raise KernelError(-result, os.strerror(-result), call, subject)
