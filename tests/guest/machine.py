"""The throw-away guest: made once from Debian packages, booted for each run, its disk forgotten.

A Debian 13 with cgroup v2, systemd, AppArmor and Python 3.13, from another interpreter and kernel than the host's.
Kept in ``$CRI_PY_CACHE`` (default ``~/.cache/cri_py``): the guest by the hash of the scripts that make it, the Python
packages by the hash of what the project asks for.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent
PYTHON: Final = "3.13"
# Of the extra "dev", what the tests import; the rest checks sources, which the host does.
_FOR_TESTS: Final = (
    "backports.zstd",
    "cryptography",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "hypothesis",
    "pyroute2",
)


class GuestError(Exception):
    """The guest could not be made or booted; the text has what the script said."""


def cache() -> Path:
    place = Path(os.environ.get("CRI_PY_CACHE") or Path.home() / ".cache" / "cri_py")
    place.mkdir(parents=True, exist_ok=True)
    return place


def machine() -> Path:
    """The guest's directory, made in half a minute if it is missing."""
    kept = cache() / f"guest-{_hash((HERE / 'make-guest').read_bytes(), (HERE / 'guest-run').read_bytes())}"
    if not kept.exists():
        _make(kept, lambda target: [HERE / "make-guest", target])
    return kept


def packages() -> Path:
    """The project's dependencies, unpacked for the guest's Python."""
    wanted = requirements(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    kept = cache() / f"python{PYTHON}-{_hash(*map(str.encode, wanted))}"
    if not kept.exists():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--implementation=cp")
        _make(kept, lambda target: [*pip, f"--python-version={PYTHON}", "--target", target, *wanted])
    return kept


def requirements(project: Mapping[str, Any]) -> list[str]:
    """What pip shall fetch, without markers: they would be judged by the host's interpreter."""
    listed = [*project["project"]["dependencies"]]
    listed += [line for line in project["project"]["optional-dependencies"]["dev"] if _name(line) in _FOR_TESTS]
    return [line.partition(";")[0].strip() for line in listed]


def boot(command: str, *, engine: str, share: Path, timeout_s: int) -> tuple[int, str]:
    """Run ``command`` by bash as root in ``share``, which the guest sees as /run/host; its status and output."""
    done = subprocess.run(
        [HERE / "run-in-guest", "--engine", engine, "--share", share, "--timeout", str(timeout_s), command],
        env={**os.environ, "GUEST_DIR": str(machine())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _name(requirement: str) -> str:
    return requirement.replace(";", " ").split()[0].partition(">")[0].partition("=")[0].partition("<")[0]


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _make(kept: Path, command: Callable[[Path], Sequence[str | Path]]) -> None:
    """Under another name first: what was begun and not finished is never taken for the thing itself."""
    begun = kept.with_name(f"{kept.name}.{os.getpid()}")
    done = subprocess.run(command(begun), capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        shutil.rmtree(begun, ignore_errors=True)
        raise GuestError(f"{kept.name} could not be made:\n{(done.stdout + done.stderr)[-4000:]}")
    begun.rename(kept)
