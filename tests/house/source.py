"""The project's own Python, parsed once for all house tests."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Module:
    name: str  # cri_py.kernel.syscalls
    path: str  # relative to the project
    text: str
    tree: ast.Module


@functools.cache
def modules() -> tuple[Module, ...]:
    """Every module of the package, generated ones left out."""
    found = []
    for path in sorted((ROOT / "cri_py").rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[:3] == ("cri_py", "rpc", "gen"):
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text()
        found.append(Module(name, str(relative), text, ast.parse(text, str(path))))
    return tuple(found)


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """What ``module`` imports, anywhere in it and also for types only: full names, submodules spelled out; the line."""
    ours = {other.name for other in modules()}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: write the whole name"
            source = node.module or ""
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield (submodule if submodule in ours else source), node.lineno


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
