"""The leak fixture sees what it promises to see, and a skip as root fails the run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests import leaks

ROOT = Path(__file__).resolve().parents[2]


def left_over(before: leaks.Holdings, tmp_path: Path) -> list[str]:
    return leaks.left_over(before, lambda: leaks.take(False, tmp_path), settle_s=0)


def test_an_open_descriptor_is_a_leak(tmp_path: Path) -> None:
    before = leaks.take(False, tmp_path)
    with socket.socket():
        (line,) = left_over(before, tmp_path)
    assert line.startswith("descriptors: ")
    assert "socket:" in line
    assert left_over(before, tmp_path) == []


def test_a_child_that_goes_on_is_a_leak(tmp_path: Path) -> None:
    before = leaks.take(False, tmp_path)
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            lines = left_over(before, tmp_path)
        finally:
            child.kill()
    assert any(line.startswith(f"children: {child.pid}") for line in lines)


def test_a_process_of_the_machine_is_a_leak_when_nobody_else_uses_it(tmp_path: Path) -> None:
    before = leaks.take(True, tmp_path).processes.keys()
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.read(1)  # it runs, so its command line is there
        found = str(child.pid) in leaks.take(True, tmp_path).processes.keys() - before
        child.kill()
    assert found


def test_a_skip_as_root_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n\n@pytest.mark.skip\ndef test_it():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    as_root = sys.platform.startswith("linux") and os.geteuid() == 0
    assert done.returncode == (1 if as_root else 0), done.stdout
    assert ("test_it.py::test_it" in done.stdout) == as_root
