"""Code that a process runs moved together, so that a fork of that process copies fewer pages.

A call counts a reference in its code object (PEP 523's frame holds one) and takes it back at the end: nothing has
changed, and a page of 4 KiB has been copied. Code objects lie where the import has put them, one that a monitor runs
among ten that it never will. Their copies, made one after the other, lie side by side.

A copy does what its original does, but for what the interpreter has learned of it (PEP 659), so this comes before the
rounds in which it learns. A short one gets instructions behind its end, which are never reached: objects of up to 512
bytes come from pools of one size each, on some thirty pages; longer ones come from malloc, where all sizes mix.
"""

from __future__ import annotations

import gc
import opcode
import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, FunctionType
from typing import Final

_POOLED_MOST: Final = 512  # bytes of an object that pymalloc serves (Objects/obmalloc.c)
_NOP: Final = bytes((opcode.opmap["NOP"], 0))


def code_that_runs(play: Callable[[], object]) -> list[CodeType]:
    """All that ``play`` calls in this process, in the order of first calls."""
    found: dict[int, CodeType] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found[id(frame.f_code)] = frame.f_code

    sys.setprofile(note)
    try:
        play()
    finally:
        sys.setprofile(None)
    return list(found.values())


def pack(codes: Iterable[CodeType]) -> None:
    """Give each function that has one of ``codes`` a copy of it; the copies are made one after the other.

    The largest first: what no hole takes is put at the heap's end, and fewer holes take those.
    """
    wanted = {id(code): code for code in codes}
    copies: dict[int, CodeType] = {}
    for code in sorted(wanted.values(), key=sys.getsizeof, reverse=True):
        _copy(code, wanted, copies)
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and id(function.__code__) in wanted:
            function.__code__ = copies[id(function.__code__)]


def _copy(code: CodeType, wanted: dict[int, CodeType], copies: dict[int, CodeType]) -> CodeType:
    """With the code of inner functions, which lies among a code's constants."""
    if id(code) not in copies:
        constants = tuple(
            _copy(each, wanted, copies) if isinstance(each, CodeType) and id(each) in wanted else each
            for each in code.co_consts
        )
        lacking = max(0, _POOLED_MOST + 1 - sys.getsizeof(code))
        behind = _NOP * -(-lacking // len(_NOP))
        copies[id(code)] = code.replace(co_consts=constants, co_code=code.co_code + behind)
    return copies[id(code)]
