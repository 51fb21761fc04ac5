"""Device rules: the lines of v1, and the program of v2 run by a small interpreter of BPF."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.cgroups.devices import v1_lines, v2_program
from cri_py.errors import InvalidArgument

DENY_ALL = {"allow": False, "access": "rwm"}
NULL = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
READ, WRITE, MKNOD = 2, 4, 1


def run(program: bytes | None, kind: str, major: int, minor: int, access: int) -> int:
    """What the kernel would answer: the instructions of the classes that device programs use, on 64-bit registers."""
    if program is None:
        return 1
    context = struct.pack("<3I", access << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 11
    registers[1] = 0  # the context's address
    at = 0
    while True:
        opcode, pair, offset, immediate = struct.unpack_from("<BBhi", program, at * 8)
        target, source = pair & 15, pair >> 4
        at += 1
        match opcode:
            case 0x61:
                registers[target] = struct.unpack_from("<I", context, registers[source] + offset)[0]
            case 0x54:
                registers[target] = registers[target] & immediate & 0xFFFFFFFF
            case 0x74:
                registers[target] = (registers[target] & 0xFFFFFFFF) >> immediate
            case 0xB4:
                registers[target] = immediate & 0xFFFFFFFF
            case 0xBC:
                registers[target] = registers[source] & 0xFFFFFFFF
            case 0x15:
                at += offset if registers[target] == immediate else 0
            case 0x55:
                at += offset if registers[target] != immediate else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"opcode {opcode:#x} at {at - 1}")


def meant(rules: list[dict[str, Any]], kind: str, major: int, minor: int, access: int) -> int:
    """The rules in plain Python: for each kind of access the last rule that matches decides."""
    for bit, letter in ((MKNOD, "m"), (READ, "r"), (WRITE, "w")):
        if access & bit:
            allowed = False
            for rule in rules:
                matches = rule.get("type", "a") in ("a", kind) and letter in rule.get("access", "rwm")
                matches = matches and rule.get("major", -1) in (-1, major) and rule.get("minor", -1) in (-1, minor)
                allowed = rule["allow"] if matches else allowed
            if not allowed:
                return 0
    return 1


RULES = st.lists(
    st.fixed_dictionaries(
        {
            "allow": st.booleans(),
            "type": st.sampled_from("abc"),
            "major": st.sampled_from([-1, 1, 5]),
            "minor": st.sampled_from([-1, 3, 4]),
            "access": st.sampled_from(["rwm", "rw", "r", "w", "m", "rm"]),
        }
    ),
    min_size=1,
    max_size=8,
)


@given(RULES)
def test_the_program_answers_what_the_rules_say(rules: list[dict[str, Any]]) -> None:
    program = v2_program(rules)
    for kind, major, minor, access in itertools.product("bc", (1, 5, 9), (3, 4, 9), range(1, 8)):
        assert run(program, kind, major, minor, access) == meant(rules, kind, major, minor, access)


@given(RULES)
def test_every_instruction_can_be_reached(rules: list[dict[str, Any]]) -> None:
    program = v2_program(rules) or b""
    count, reached, open_ends = len(program) // 8, set(), [0] if program else []
    while open_ends:
        at = open_ends.pop()
        if at in reached:
            continue
        reached.add(at)
        opcode, _, offset, _ = struct.unpack_from("<BBhi", program, at * 8)
        open_ends += {0x95: [], 0x15: [at + 1, at + 1 + offset], 0x55: [at + 1, at + 1 + offset]}.get(opcode, [at + 1])
    assert reached == set(range(count))


def test_one_device_has_this_golden_program() -> None:
    program = v2_program([DENY_ALL, NULL])
    assert program is not None
    assert program.hex(" ", 8).split() == [
        "6112000000000000",  # w2 = access << 16 | type
        "bc23000000000000",  # w3 = w2
        "54030000ffff0000",  # w3 &= 0xffff: the type
        "7402000010000000",  # w2 >>= 16: the access
        "6114040000000000",  # w4 = major
        "6115080000000000",  # w5 = minor
        "5503040002000000",  # unless w3 == 2 (a character device) skip the rule
        "5504030001000000",  # unless major == 1
        "5505020003000000",  # unless minor == 3
        "b400000001000000",  # allowed
        "9500000000000000",
        "b400000000000000",  # denied
        "9500000000000000",
    ]


def test_no_program_is_needed_where_all_is_allowed() -> None:
    assert v2_program([]) is None
    assert v2_program([DENY_ALL, {"allow": True, "access": "rwm"}]) is None


def test_a_device_is_denied_that_no_rule_names() -> None:
    assert run(v2_program([NULL]), "c", 1, 5, READ) == 0


def test_v1_lines_keep_the_order_and_say_any_as_a_star() -> None:
    rules = [
        DENY_ALL,
        NULL,
        {"allow": True, "type": "b", "major": 8, "access": "mr"},
        {"allow": False, "type": "u", "major": -1, "minor": 7, "access": "w"},
    ]
    assert list(v1_lines(rules)) == [
        ("deny", "a"),
        ("allow", "c 1:3 rwm"),
        ("allow", "b 8:* rm"),
        ("deny", "c *:7 w"),
    ]


def test_v1_says_any_type_with_a_number_once_for_each_type() -> None:
    """The kernel takes an ``a`` for everything, whatever follows it."""
    assert list(v1_lines([{"allow": False, "type": "a", "major": 4, "access": "w"}])) == [
        ("deny", "b 4:* w"),
        ("deny", "c 4:* w"),
    ]


@pytest.mark.parametrize("rule", [{"allow": True, "type": "p"}, {"allow": True, "type": "c", "access": "rx"}])
def test_a_rule_that_is_none_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="device rule"):
        v2_program([rule])
    with pytest.raises(InvalidArgument, match="device rule"):
        list(v1_lines([rule]))
