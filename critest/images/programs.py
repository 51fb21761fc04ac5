"""The programs in the images: a static busybox built from Debian's source, two small C programs, Debian's nginx.

What is built is kept in ``$CRI_PY_CACHE`` (default ``~/.cache/cri_py``), by version or by the hash of its source.
Debian's busybox-static won't do for critest: it lacks pgrep and ipcs, and its shell runs applets without looking at
PATH, which defeats the specs of masked paths.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).with_name("src")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NGINX: Final = "/usr/sbin/nginx"


class MissingProgram(Exception):
    """Something that the images are made of isn't on this machine; the text says what to install."""


def cache() -> Path:
    place = Path(os.environ.get("CRI_PY_CACHE") or Path.home() / ".cache" / "cri_py")
    place.mkdir(parents=True, exist_ok=True)
    return place


@functools.cache
def compiled(name: str) -> bytes:
    """``src/NAME.c`` as a small static program."""
    source = SOURCES / f"{name}.c"
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:16]

    def build(target: Path) -> None:
        _run("gcc", "-Os", "-Wall", "-static", "-s", "-o", target, source)

    return _cached(f"{name}-{key}", build).read_bytes()


@functools.cache
def busybox() -> Path:
    """A static busybox with upstream's default applets; building it takes about a minute."""
    site, codename = _debian()
    version = _output("apt-cache", "show", "--no-all-versions", "busybox").partition("Version: ")[2].split("\n")[0]
    return _cached(f"busybox-{version or codename}".replace(":", "_"), lambda target: _build(target, site, codename))


def debian_busybox() -> Path:
    """That of Debian's busybox-static, where there is no time to build one."""
    program = Path("/bin/busybox")
    if not program.exists() or b"/ld-linux" in program.read_bytes():
        raise MissingProgram(f"{program} is missing or not static; install busybox-static")
    return program


def applets(program: Path) -> list[str]:
    return [name for name in _output(program, "--list").split() if name != "busybox"]


def nginx_files() -> Iterator[tuple[str, bytes]]:
    """Debian's nginx and the libraries that its loader needs, by path."""
    if not Path(_NGINX).exists():
        raise MissingProgram(f"{_NGINX} is missing; install nginx-light, whose service need not run")
    yield _NGINX, Path(_NGINX).read_bytes()
    for line in _output("ldd", _NGINX).splitlines():
        path = next((word for word in line.split() if word.startswith("/")), "")
        if path:
            yield path, Path(path).read_bytes()


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    kept = cache() / name
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as directory:
            made = Path(directory) / name
            build(made)
            made.chmod(0o755)
            made.rename(kept)
    return kept


def _debian() -> tuple[str, str]:
    """The mirror that this machine's apt uses, and its release."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    sites = _output(
        *("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"),
        *(f"Codename: {codename}", "Component: main"),
    ).split()
    if not sites:
        raise MissingProgram(f"apt knows no mirror of Debian {codename}; busybox is built from Debian's source")
    return sites[0], codename


def _build(target: Path, site: str, codename: str) -> None:
    work = target.parent
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    (work / "sources.list").write_text(f"deb-src [signed-by={_KEYRING}] {site} {codename} main\n")
    places = {
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",  # the directory is ours alone
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in places.items())]
    _run(*apt, "update", cwd=work)
    _run(*apt, "source", "--download-only", "busybox", cwd=work)
    archive = next(work.glob("busybox_*.orig.tar.*"))
    _run("tar", "xf", archive, cwd=work)
    tree = next(path for path in work.glob("busybox-*") if path.is_dir())
    _run("make", "defconfig", cwd=tree)
    config = tree / ".config"
    config.write_text(config.read_text().replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y"))
    _run("make", f"-j{os.cpu_count()}", cwd=tree)
    shutil.copy(tree / "busybox", target)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    """Quiet unless it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MissingProgram(f"{command[0]} is missing; install gcc, make and libc6-dev") from None
    if done.returncode:
        raise MissingProgram(f"{' '.join(map(str, command))} failed:\n{(done.stdout + done.stderr)[-3000:]}")
