from __future__ import annotations

import json
from typing import Any

import pytest

from cri_py.errors import InvalidArgument, Unimplemented
from cri_py.pods.spec_seccomp import check_path, reduce_profile

DEFAULT = {"defaultAction": "SCMP_ACT_ERRNO"}
ALLOW = {"action": "SCMP_ACT_ALLOW"}


def reduced(profile: dict[str, Any], *granted: str, arch: str = "x86_64", kernel: tuple[int, int] = (6, 1)) -> Any:
    return reduce_profile(json.dumps(profile).encode(), "/p.json", granted=granted, arch=arch, kernel=kernel)


def names(*rules: dict[str, Any], granted: tuple[str, ...] = (), **more: Any) -> list[str]:
    """Of the rules, those that count."""
    made = reduced({**DEFAULT, "syscalls": [{**ALLOW, **rule} for rule in rules]}, *granted, **more)
    return [name for rule in made["syscalls"] for name in rule["names"]]


# ------------------------------------------------------------ conditions


def test_a_rule_counts_only_with_all_capabilities_that_it_includes() -> None:
    rule = {"names": ["mount"], "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}}
    assert names(rule) == names(rule, granted=("CAP_CHOWN",)) == []
    assert names(rule, granted=("CAP_CHOWN", "CAP_SYS_ADMIN")) == ["mount"]


def test_a_rule_doesn_t_count_with_any_capability_that_it_excludes() -> None:
    rule = {"names": ["clone3"], "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}}
    assert names(rule) == ["clone3"]
    assert names(rule, granted=("CAP_CHOWN",)) == []


def test_rules_count_by_machine() -> None:
    rules = (
        {"names": ["arch_prctl"], "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["clone"], "excludes": {"arches": ["s390", "s390x"]}},
    )
    assert names(*rules) == ["arch_prctl", "clone"]
    assert names(*rules, arch="aarch64") == ["clone"]
    assert names(*rules, arch="s390x") == []


@pytest.mark.parametrize(
    ("kernel", "counted"), [((4, 7), ["old"]), ((4, 8), ["new"]), ((4, 10), ["new"]), ((5, 0), ["new"])]
)
def test_rules_count_by_kernel(kernel: tuple[int, int], counted: list[str]) -> None:
    new = {"names": ["new"], "includes": {"minKernel": "4.8"}}
    old = {"names": ["old"], "excludes": {"minKernel": "4.8"}}
    assert names(new, old, kernel=kernel) == counted


def test_a_kernel_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="minKernel 'soon'"):
        names({"names": ["x"], "includes": {"minKernel": "soon"}})


def test_nothing_of_the_conditions_is_left() -> None:
    rule = {"names": ["mount"], "includes": {}, "excludes": {}, "comment": "for all"}
    assert reduced({**DEFAULT, "syscalls": [{**ALLOW, **rule}]})["syscalls"] == [{**ALLOW, "names": ["mount"]}]


# --------------------------------------------------------- architectures


def test_architectures_are_the_profiles_or_follow_from_the_machine() -> None:
    given = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]
    assert reduced({**DEFAULT, "architectures": given})["architectures"] == given
    mapped = [
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ]
    assert reduced({**DEFAULT, "archMap": mapped})["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert reduced({**DEFAULT, "archMap": mapped}, arch="riscv64")["architectures"] == []
    with pytest.raises(InvalidArgument, match="archMap are both set"):
        reduced({**DEFAULT, "architectures": given, "archMap": mapped})


# ----------------------------------------------------------------- rules


def test_arguments_errno_and_flags_are_passed_on() -> None:
    compared = {"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 2**64 - 1, "valueTwo": 3}
    rule = {"names": ["socket", "bind"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": [compared]}
    profile = {**DEFAULT, "defaultErrnoRet": 1, "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [rule]}
    assert reduced(profile) == {**profile, "architectures": []}


def test_the_old_form_names_one_call_and_null_is_nothing() -> None:
    profile = {**DEFAULT, "syscalls": [{"name": "read", "args": None, **ALLOW}], "flags": None, "archMap": None}
    assert reduced(profile)["syscalls"] == [{"names": ["read"], **ALLOW}]
    assert reduced({**DEFAULT, "syscalls": None})["syscalls"] == []


@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_NOTIFY"},
        {**DEFAULT, "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]},
        {**DEFAULT, "listenerPath": "/run/agent.sock"},
    ],
)
def test_what_needs_an_agent_is_refused_as_such(profile: dict[str, Any]) -> None:
    with pytest.raises(Unimplemented, match=r"/p\.json.*no agent"):
        reduced(profile)


@pytest.mark.parametrize(
    ("profile", "word"),
    [
        ({}, "defaultAction"),
        ({"defaultAction": "DENY"}, "DENY"),
        ({**DEFAULT, "syscall": []}, "syscall"),
        ({**DEFAULT, "flags": ["FAST"]}, "FAST"),
        ({**DEFAULT, "defaultErrnoRet": 5000}, "5000"),
        ({**DEFAULT, "syscalls": [{"names": ["a"]}]}, "action"),
        ({**DEFAULT, "syscalls": [{"names": [], **ALLOW}]}, "names no system call"),
        ({**DEFAULT, "syscalls": [{"names": ["a"], "name": "b", **ALLOW}]}, "both"),
        ({**DEFAULT, "syscalls": [{"names": "a", **ALLOW}]}, r"\$.syscalls\[0\].names"),
        ({**DEFAULT, "syscalls": [{"names": ["a"], **ALLOW, "include": {}}]}, "include"),
        ({**DEFAULT, "syscalls": [{"names": ["a"], **ALLOW, "args": [{"index": 6, "op": "SCMP_CMP_EQ"}]}]}, "6"),
        ({**DEFAULT, "syscalls": [{"names": ["a"], **ALLOW, "args": [{"index": 0, "op": "IS"}]}]}, "IS"),
        (
            {
                **DEFAULT,
                "syscalls": [{"names": ["a"], **ALLOW, "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}]}],
            },
            "-1",
        ),
    ],
)
def test_what_is_not_understood_is_refused_with_file_and_word(profile: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"/p\.json.*{word}"):
        reduced(profile)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b'{"defaultAction": "\xff"}'])
def test_what_is_no_profile_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"/p\.json can't be read"):
        reduce_profile(text, "/p.json", granted=(), arch="x86_64", kernel=(6, 1))


@pytest.mark.parametrize("path", ["", "web.json", "/", "/profiles/../../etc/shadow", "/a\0b"])
def test_a_profile_is_named_by_an_absolute_path(path: str) -> None:
    with pytest.raises(InvalidArgument, match="no absolute path"):
        check_path(path)
