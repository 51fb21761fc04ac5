"""OCI device rules as lines for the devices controller of v1, and as a BPF program for v2. Pure.

A rule is ``{"allow": bool, "type": "a"|"c"|"b"|"u", "major": int, "minor": int, "access": "rwm"}``, where a missing
number or -1 means any (OCI runtime-spec, config-linux.md, "Allowed Device list"). Of the rules that match, the last one
decides, for reading, writing and mknod each; where none does the answer is no.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from cri_py.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

# struct bpf_cgroup_dev_ctx, in linux/bpf.h: access_type (access << 16 | type), major, minor; each 32 bits
_ACCESS = {"m": 1, "r": 2, "w": 4}
_ALL = 7
_TYPES = {"b": 1, "c": 2}

# linux/bpf_common.h and bpf.h: class | width or operation | source
_LOAD_WORD = 0x61  # BPF_LDX | BPF_MEM | BPF_W
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT_RIGHT = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_MOVE = 0xB4  # BPF_ALU | BPF_MOV | BPF_K
_COPY = 0xBC  # BPF_ALU | BPF_MOV | BPF_X
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_UNEQUAL = 0x55  # BPF_JMP | BPF_JNE | BPF_K
_EXIT = 0x95  # BPF_JMP | BPF_EXIT

_RESULT, _CONTEXT, _ASKED, _TYPE, _MAJOR, _MINOR, _SCRATCH = 0, 1, 2, 3, 4, 5, 6  # registers


class _Rule(NamedTuple):
    allow: bool
    type: str  # a, b or c
    major: int  # -1: any
    minor: int
    access: int

    @property
    def decides_all(self) -> bool:
        """Whether no earlier rule can have a say."""
        return (self.type, self.major, self.minor, self.access) == ("a", -1, -1, _ALL)


def _rule(rule: Mapping[str, Any]) -> _Rule:
    kind, access = rule.get("type") or "a", rule.get("access") or "rwm"
    kind = "c" if kind == "u" else kind  # an unbuffered character device is a character device
    if kind not in ("a", "b", "c") or not set(access) <= set(_ACCESS):
        raise InvalidArgument(
            f"device rule type {rule.get('type')!r} access {access!r} is none", hint="type a, b or c; access of r, w, m"
        )
    numbers = (rule.get("major"), rule.get("minor"))
    major, minor = (-1 if number is None or number < 0 else number for number in numbers)
    return _Rule(bool(rule.get("allow")), kind, major, minor, sum(_ACCESS[letter] for letter in set(access)))


def v1_lines(rules: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """``(allow|deny, "c 1:3 rwm")`` for devices.allow and .deny, in order (admin-guide/cgroup-v1/devices.rst)."""
    for rule in map(_rule, rules):
        file = "allow" if rule.allow else "deny"
        if rule.decides_all:
            yield file, "a"
            continue
        numbers = ":".join("*" if number < 0 else str(number) for number in (rule.major, rule.minor))
        access = "".join(letter for letter in "rwm" if rule.access & _ACCESS[letter])
        # To the kernel "a" is everything, whatever numbers and access follow it.
        for kind in "bc" if rule.type == "a" else rule.type:
            yield file, f"{kind} {numbers} {access}"


def v2_program(rules: Iterable[Mapping[str, Any]]) -> bytes | None:
    """The program that answers 1 (allowed) or 0; None where everything is allowed and none is needed."""
    backwards = [_rule(rule) for rule in rules][::-1]
    if not backwards or (backwards[0].allow and backwards[0].decides_all):
        return None
    code = [
        _instruction(_LOAD_WORD, _ASKED, _CONTEXT, 0),
        _instruction(_COPY, _TYPE, _ASKED),
        _instruction(_AND, _TYPE, immediate=0xFFFF),
        _instruction(_SHIFT_RIGHT, _ASKED, immediate=16),
        _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for rule in backwards:
        code += _block(rule)
        if rule.decides_all:  # the verifier refuses instructions that can't be reached
            return b"".join(code)
    return b"".join(code + _answer(0))


def _instruction(opcode: int, target: int, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", opcode, source << 4 | target, offset, immediate)


def _answer(value: int) -> list[bytes]:
    return [_instruction(_MOVE, _RESULT, immediate=value), _instruction(_EXIT, 0)]


def _block(rule: _Rule) -> list[bytes]:
    """The code of one rule. ``_ASKED`` holds what no later rule has granted yet."""
    wanted = [(_TYPE, _TYPES.get(rule.type, -1)), (_MAJOR, rule.major), (_MINOR, rule.minor)]
    wanted = [(register, value) for register, value in wanted if value >= 0]
    decision = _answer(int(rule.allow))
    if rule.access != _ALL and rule.allow:
        keep = _instruction(_AND, _ASKED, immediate=_ALL & ~rule.access)
        decision = [keep, _instruction(_JUMP_UNEQUAL, _ASKED, offset=2), *decision]
    elif rule.access != _ALL:
        touched = [
            _instruction(_COPY, _SCRATCH, _ASKED),
            _instruction(_AND, _SCRATCH, immediate=rule.access),
            _instruction(_JUMP_EQUAL, _SCRATCH, offset=2),
        ]
        decision = [*touched, *decision]
    block = []
    for position, (register, value) in enumerate(wanted):
        beyond = len(wanted) - position - 1 + len(decision)
        block.append(_instruction(_JUMP_UNEQUAL, register, offset=beyond, immediate=value))
    return block + decision
