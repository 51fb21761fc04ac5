"""What a reader may count on: formatted, typed, short, named by the words of the house."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cri_py
from tests.house.source import ROOT, Module, modules

FUNCTION_LINES = 40
MODULE_LINES = 600
LONG_MODULES = {"cri_py.kernel.syscalls"}  # one thin function per call; to cut it would only scatter them
FORBIDDEN_NAMES = {"manager", "helper", "util", "utils", "common", "base", "data", "info", "misc", "helpers"}
# Words of the protocols that we speak: gRPC's status, the name in a certificate, CRI's method.
SPOKEN_BY_OTHERS = {"data_loss", "common_name", "image_fs_info"}

MARKS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def tracked(*suffixes: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = filter(None, listed.stdout.decode().split("\0"))
    return [ROOT / name for name in names if name.endswith(suffixes) and (ROOT / name).is_file()]


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_ruff_finds_nothing() -> None:
    run(program("ruff"), "check", "--no-cache", ".")


def test_the_code_is_formatted() -> None:
    run(program("ruff"), "format", "--check", "--no-cache", ".")


@pytest.mark.timeout(1200)  # without a cache, as in a fresh clone
def test_mypy_strict_finds_nothing() -> None:
    run(program("mypy"))


def test_functions_have_at_most_40_lines() -> None:
    """From def to the last line, without the docstring: that is what must be held in the head at once."""
    long = []
    for module in modules():
        for function in functions(module):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1 - _docstring_lines(function)
            if lines > FUNCTION_LINES:
                long.append(f"{module.path}:{function.lineno}: {function.name} has {lines} lines")
    assert long == []


def test_modules_have_at_most_600_lines() -> None:
    long = [
        f"{module.path} has {module.text.count(chr(10))} lines"
        for module in modules()
        if module.text.count("\n") > MODULE_LINES and module.name not in LONG_MODULES
    ]
    assert long == []


def test_names_say_what_a_thing_is() -> None:
    found = []
    for module in modules():
        if FORBIDDEN_NAMES.intersection(_words(module.name.rpartition(".")[2])):
            found.append(module.path)
        found += [
            f"{module.path}:{node.lineno}: {node.name}"
            for node in ast.walk(module.tree)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and FORBIDDEN_NAMES.intersection(_words(node.name))
            and not any(term in _snake(node.name) for term in SPOKEN_BY_OTHERS)
        ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module.path for module in modules() if module.text.strip() and not ast.get_docstring(module.tree)] == []


def test_nothing_is_left_to_do_in_a_comment() -> None:
    found = []
    for path in tracked(".py", ".md", ".toml", ".proto", ".sh", ".service", "run", "quickstart"):
        if path == Path(__file__) or "gen" in path.parts:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if MARKS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_the_changelog_has_the_version() -> None:
    assert f"## {cri_py.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    first = function.body[0]
    if ast.get_docstring(function) is None:
        return 0
    return (first.end_lineno or first.lineno) - first.lineno + 1


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_")


def _words(name: str) -> set[str]:
    return set(_snake(name).split("_"))


def test_no_script_has_the_name_of_a_standard_module() -> None:
    """Who runs one beside it would import that in place of Python's own."""
    scripts = {path.stem for path in (ROOT / "tests/bench").glob("*.py")}
    assert "cribench" in scripts
    assert not scripts & sys.stdlib_module_names
