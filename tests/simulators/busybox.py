"""Two small images made from Debian's static busybox, for tests that run containers.

``busybox`` has every applet, a few users and groups, and no wishes. ``custom`` is a second layer on it, with a user,
an entrypoint, a working directory, a stop signal and an environment.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from tests.simulators.registry import File, Pushed, RegistrySimulator, directory, symlink, tar_layer

PROGRAM: Final = Path("/bin/busybox")  # of Debian's busybox-static
HOST: Final = "registry.test"
BUSYBOX: Final = f"{HOST}/busybox:1"
CUSTOM: Final = f"{HOST}/custom:1"

PASSWD: Final = b"""root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
alice:x:1000:1000:Alice:/home/alice:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP: Final = b"""root:x:0:
audio:x:29:alice
www-data:x:33:
video:x:44:alice
alice:x:1000:
nogroup:x:65534:
"""


def busybox_layer() -> bytes:
    applets = subprocess.run([PROGRAM, "--list"], check=True, capture_output=True, text=True).stdout.split()
    links = [symlink(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"]
    return tar_layer(
        directory("bin"),
        File("bin/busybox", PROGRAM.read_bytes(), mode=0o755),
        *links,
        directory("etc"),
        File("etc/passwd", PASSWD),
        File("etc/group", GROUP),
        File("etc/not-executable", b"#!/bin/sh\n"),
        directory("root", mode=0o700),
        directory("home"),
        directory("home/alice", uid=1000, gid=1000),
        directory("tmp", mode=0o1777),
    )


def push_images(registry: RegistrySimulator) -> dict[str, Pushed]:
    """By image ref."""
    base = busybox_layer()
    own = tar_layer(directory("srv"), directory("srv/work", uid=1000), File("srv/work/notes", b"from the image\n"))
    plain = registry.push("busybox", "1", [base], config={"Env": ["PATH=/bin"], "Cmd": ["sh"]})
    custom = registry.push(
        "custom",
        "1",
        [base, own],
        config={
            "User": "alice",
            "Entrypoint": ["/bin/echo", "entrypoint"],
            "Cmd": ["cmd"],
            "WorkingDir": "/srv/work",
            "StopSignal": "SIGUSR1",
            "Env": ["PATH=/bin", "GREETING=from the image", "NAME=image"],
        },
    )
    return {BUSYBOX: plain, CUSTOM: custom}
