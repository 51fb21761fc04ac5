"""Debian's docker-registry on a free port of loopback, storing in a directory that is thrown away."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from critest.images.programs import MissingProgram

_START_S: Final = 15
_CONFIG: Final = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
  cache: {{blobdescriptor: inmemory}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{address}"}}
"""


@contextlib.contextmanager
def running(directory: Path) -> Iterator[str]:
    """The registry's HOST:PORT; it ends with the context. ``directory`` may hold what an earlier one stored."""
    program = shutil.which("docker-registry")
    if program is None:
        raise MissingProgram("docker-registry is missing; install Debian's package docker-registry")
    directory.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{_free_port()}"
    config = directory / "config.yml"
    config.write_text(_CONFIG.format(directory=directory / "store", address=address))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _await(process, address, directory / "log")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _await(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise MissingProgram(f"docker-registry did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)
