"""Profiles compiled by libseccomp, asked call by call, and loaded into a forked child for real."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from cri_py.errors import FailedPrecondition, InvalidArgument
from cri_py.kernel import seccomp
from cri_py.kernel.constants import PR_SET_NO_NEW_PRIVS
from cri_py.kernel.syscalls import prctl
from cri_py.pods.seccomp_default import default_profile
from tests.leaks import open_descriptors
from tests.simulators.seccomp_machine import ALLOW, ERRNO, I386, verdict

REFUSED = ERRNO | errno.EPERM
NOT_THERE = ERRNO | errno.ENOSYS
# x86-64 numbers
CLONE, UNSHARE, MOUNT, SOCKET, PERSONALITY, KEYCTL, BPF, IO_URING_SETUP, CLONE3, PTRACE, READ = (
    *(56, 272, 165, 41, 135, 250, 321, 425, 435, 101, 0),
)


def compiled(*capabilities: str) -> bytes:
    return seccomp.compile_profile(default_profile(frozenset(capabilities), "x86_64"))


def errno_in_filtered_child(bpf: bytes, attempt: Callable[[], object]) -> int:
    """The errno of ``attempt`` in a child under the filter, 0 if it succeeded."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            seccomp.load_filter(bpf)
            attempt()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def raw_syscall(number: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)) < 0:
        raise OSError(ctypes.get_errno(), "refused")


# ------------------------------------------------------ loaded for real


def test_a_loaded_filter_refuses_new_namespaces_key_rings_and_vsock() -> None:
    bpf = compiled()
    assert errno_in_filtered_child(bpf, lambda: raw_syscall(UNSHARE, 0x20000)) == errno.EPERM
    assert errno_in_filtered_child(bpf, lambda: raw_syscall(KEYCTL, 0, -3, 0)) == errno.EPERM
    assert errno_in_filtered_child(bpf, lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)) == errno.EPERM
    assert errno_in_filtered_child(bpf, lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)) == errno.EPERM


def test_a_loaded_filter_lets_a_program_fork_and_work() -> None:
    def work() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        with open("/proc/self/status") as status:
            assert "Seccomp:\t2\n" in status.read()

    assert errno_in_filtered_child(compiled(), work) == 0


def test_sys_admin_may_make_namespaces() -> None:
    assert errno_in_filtered_child(compiled("CAP_SYS_ADMIN"), lambda: raw_syscall(UNSHARE, 0x4000000)) == 0


def test_a_call_that_no_list_can_know_yet_is_missing_rather_than_forbidden() -> None:
    assert errno_in_filtered_child(compiled(), lambda: raw_syscall(1000)) == errno.ENOSYS


def test_a_program_that_is_no_filter_is_an_error_that_names_the_call() -> None:
    with pytest.raises(OSError, match="seccomp"):
        seccomp.load_filter(b"\xff" * 8)


# -------------------------------------------------- asked call by call


def test_clone_makes_threads_and_processes_but_no_namespaces() -> None:
    bpf = compiled()
    assert verdict(bpf, CLONE, 0x3D0F00) == ALLOW  # pthread_create
    assert verdict(bpf, CLONE, 17) == ALLOW  # fork
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(bpf, CLONE, flag | 17) == REFUSED
        assert verdict(bpf, 120, flag | 17, arch=I386) == REFUSED
        assert verdict(compiled("CAP_SYS_ADMIN"), CLONE, flag | 17) == ALLOW


def test_clone3_is_missing_until_sys_admin_makes_its_flags_irrelevant() -> None:
    assert verdict(compiled(), CLONE3) == NOT_THERE
    assert verdict(compiled("CAP_SYS_ADMIN"), CLONE3) == ALLOW


@pytest.mark.parametrize(
    ("capability", "number"),
    [
        ("CAP_SYS_ADMIN", MOUNT),
        ("CAP_BPF", BPF),
        ("CAP_SYS_CHROOT", 161),
        ("CAP_SYS_MODULE", 313),
        ("CAP_SYS_TIME", 227),
        ("CAP_SYSLOG", 103),
        ("CAP_DAC_READ_SEARCH", 304),
        ("CAP_PERFMON", 298),
    ],
)
def test_a_capability_opens_its_calls_and_nothing_else_does(capability: str, number: int) -> None:
    others = frozenset(default for default in ("CAP_CHOWN", "CAP_NET_ADMIN", "CAP_KILL"))
    assert verdict(compiled(*others), number) == REFUSED
    assert verdict(compiled(capability), number) == ALLOW


def test_no_capability_opens_key_rings_or_io_uring() -> None:
    from cri_py.kernel.capabilities import NAMES

    bpf = compiled(*NAMES)
    for number in (KEYCTL, 248, 249, IO_URING_SETUP, 426, 427):
        assert verdict(bpf, number) == REFUSED


def test_sockets_of_listed_domains_only_also_for_32_bit_programs() -> None:
    bpf = compiled()
    for domain in (1, 2, 10, 16, 17):
        assert verdict(bpf, SOCKET, domain) == ALLOW
        assert verdict(bpf, 359, domain, arch=I386) == ALLOW
    for domain in (38, 40, 9, 12, 45):
        assert verdict(bpf, SOCKET, domain) == REFUSED
        assert verdict(bpf, 359, domain, arch=I386) == REFUSED


def test_the_32_bit_socketcall_is_no_way_around() -> None:
    assert verdict(compiled(), 102, 1, arch=I386) == NOT_THERE  # socketcall(SYS_SOCKET, pointer)
    assert verdict(compiled(), 102) == ALLOW  # in the 64-bit ABI this number is getuid


def test_personality_may_not_switch_off_address_randomisation() -> None:
    bpf = compiled()
    assert verdict(bpf, PERSONALITY, 0x0040000) == REFUSED
    assert verdict(bpf, PERSONALITY, 0xFFFFFFFF) == ALLOW


def test_the_x32_abi_reaches_nothing() -> None:
    assert verdict(compiled(), 0x40000000 | READ) not in {ALLOW, NOT_THERE}
    assert verdict(compiled(), READ) == ALLOW


def test_ptrace_is_allowed_because_kernels_since_4_8_filter_what_the_tracer_changes() -> None:
    assert verdict(compiled(), PTRACE) == ALLOW


# ------------------------------------------------------------ profiles


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def rule(name: str, *arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ERRNO", "args": list(arguments), **more}


def test_arguments_must_all_match() -> None:
    one = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}
    two = {"index": 1, "value": 5, "op": "SCMP_CMP_GT"}
    bpf = seccomp.compile_profile(profile(rule("read", one, two)))
    assert verdict(bpf, READ, 1, 6) == REFUSED
    assert verdict(bpf, READ, 1, 5) == ALLOW
    assert verdict(bpf, READ, 2, 6) == ALLOW


def test_comparisons_of_one_argument_are_alternatives() -> None:
    either = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (3, 4)]
    bpf = seccomp.compile_profile(profile(rule("read", *either)))
    assert [verdict(bpf, READ, value) for value in (2, 3, 4)] == [ALLOW, REFUSED, REFUSED]


def test_arguments_are_compared_in_all_64_bits() -> None:
    bpf = seccomp.compile_profile(profile(rule("read", {"index": 2, "value": 1 << 40, "op": "SCMP_CMP_EQ"})))
    assert verdict(bpf, READ, 0, 0, 1 << 40) == REFUSED
    assert verdict(bpf, READ, 0, 0, 0) == ALLOW


def test_a_rule_brings_its_own_errno() -> None:
    bpf = seccomp.compile_profile(profile(rule("read", errnoRet=errno.EACCES)))
    assert verdict(bpf, READ) == ERRNO | errno.EACCES


def test_names_that_no_kernel_has_are_skipped_where_the_default_refuses_them() -> None:
    allowed = {"names": ["no_such_call", "read"], "action": "SCMP_ACT_ALLOW"}
    bpf = seccomp.compile_profile(profile(allowed, default="SCMP_ACT_ERRNO"))
    assert verdict(bpf, READ) == ALLOW


def test_a_call_that_is_to_be_blocked_and_can_t_be_named_is_no_reason_to_let_it_pass() -> None:
    with pytest.raises(InvalidArgument, match="block 'no_such_call'"):
        seccomp.compile_profile(profile(rule("no_such_call"), rule("read")))


@pytest.mark.parametrize(("name", "number"), [("memfd_secret", 447), ("mseal", 462), ("file_setattr", 469)])
def test_a_call_younger_than_libseccomp_is_blocked_by_its_number(name: str, number: int) -> None:
    architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    bpf = seccomp.compile_profile(profile(rule(name, errnoRet=errno.EACCES), architectures=architectures))
    assert verdict(bpf, number) == ERRNO | errno.EACCES
    assert verdict(bpf, number, arch=I386) == ERRNO | errno.EACCES
    assert verdict(bpf, number + 10) == verdict(bpf, READ) == ALLOW


def test_a_profile_that_allows_by_default_leaves_new_calls_alone() -> None:
    assert verdict(seccomp.compile_profile(profile(rule("read"))), 1000) == ALLOW


def test_a_rule_that_repeats_the_default_changes_nothing() -> None:
    bpf = seccomp.compile_profile(profile(rule("read"), default="SCMP_ACT_ERRNO"))
    assert verdict(bpf, READ) == REFUSED


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (profile(default="SCMP_ACT_MAYBE"), "SCMP_ACT_MAYBE"),
        (profile({"names": ["read"], "action": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
        (profile(rule("read", {"index": 0, "value": 1, "op": "SCMP_CMP_ALMOST"})), "SCMP_CMP_ALMOST"),
        (profile(architectures=["SCMP_ARCH_PDP11"]), "SCMP_ARCH_PDP11"),
        (profile(rule("read", includes={"caps": ["CAP_BPF"]})), "includes"),
    ],
)
def test_what_a_profile_says_and_nobody_understands_is_refused_by_name(broken: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidArgument, match=word):
        seccomp.compile_profile(broken)


def test_flags_become_the_kernels_bits() -> None:
    assert seccomp.filter_flags({"flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}) == 6
    with pytest.raises(InvalidArgument, match="WAIT_KILLABLE"):
        seccomp.filter_flags({"flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]})


def test_without_libseccomp_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_LIBRARY", "libseccomp.so.missing")
    with pytest.raises(FailedPrecondition, match="apt install libseccomp2"):
        compiled()


def test_equal_profiles_have_one_key() -> None:
    first, second = {"a": 1, "b": [2]}, {"b": [2], "a": 1}
    assert seccomp.profile_key(first) == seccomp.profile_key(second)
    assert seccomp.profile_key(first) != seccomp.profile_key({"a": 1, "b": [3]})


def test_compiling_leaves_no_descriptor_open() -> None:
    before = len(open_descriptors())
    compiled()
    assert len(open_descriptors()) == before
