"""Code that runs is moved together and does what it did."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from types import CodeType, ModuleType

import pytest

from cri_py.monitor.packing import code_that_runs, pack

_SOURCE = '''
class Counter:
    """Counts."""

    def __init__(self, step):
        self.step = step

    def adder(self):
        """A function in a function."""
        return lambda value: value + self.step


def run(*, times=3):
    add, value = Counter(2).adder(), 0
    for _ in range(times):
        value = add(value)
    return value


def idle():
    return "never called"
'''


@pytest.fixture
def module() -> ModuleType:
    made = ModuleType("packed")
    exec(compile(_SOURCE, "packed.py", "exec"), made.__dict__)
    return made


def names(play: Callable[[], object]) -> list[str]:
    return [code.co_name for code in code_that_runs(play) if code.co_filename == "packed.py"]


def test_what_runs_is_found_once_and_in_order(module: ModuleType) -> None:
    assert names(module.run) == ["run", "__init__", "adder", "<lambda>"]
    assert sys.getprofile() is None


def test_what_fails_while_it_is_watched_is_not_watched_any_more() -> None:
    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        code_that_runs(fail)
    assert sys.getprofile() is None


def test_packed_code_is_a_copy_that_does_the_same(module: ModuleType) -> None:
    before, idle, inner = module.run.__code__, module.idle.__code__, module.Counter.adder.__code__
    pack(code_that_runs(module.run))
    assert module.run() == 6
    assert module.run(times=1) == 2
    assert module.run.__code__ is not before
    assert module.run.__code__.co_consts == before.co_consts
    assert module.idle.__code__ is idle, "what is never called stays where it is"
    lambdas = [
        next(each for each in code.co_consts if isinstance(each, CodeType))
        for code in (inner, module.Counter.adder.__code__)
    ]
    assert lambdas[0] is not lambdas[1], "a function's inner functions run from copies too"
    assert lambdas[1].co_code.startswith(lambdas[0].co_code)


def test_a_packed_function_that_fails_tells_the_same_lines(module: ModuleType) -> None:
    def lines() -> list[int | None]:
        with pytest.raises(TypeError) as caught:
            module.run(times="many")
        return [each.lineno for each in traceback.extract_tb(caught.value.__traceback__)][1:]

    before = lines()
    pack(code_that_runs(module.run))
    assert lines() == before
    assert len(before) == 1
