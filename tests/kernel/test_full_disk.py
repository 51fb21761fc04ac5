"""Disks that fill up in the middle of a pull: at every inode, and at every few kilobytes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cri_py.config import ImagesConfig
from cri_py.errors import CriError
from cri_py.images.service import Images
from cri_py.kernel import syscalls
from cri_py.kernel.constants import MS_REMOUNT
from cri_py.model import Nanos
from cri_py.state.store import Store
from tests.simulators.registry import File, RegistrySimulator, directory, tar_layer

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[2]
STEP_BYTES = 48 << 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scarce", ["nr_inodes", "size"])
def test_a_disk_that_fills_up_at_any_step_is_told_and_keeps_nothing(tmp_path: Path, scarce: str) -> None:
    layers = [
        tar_layer(directory("etc"), File("etc/a", random.Random(1).randbytes(200_000)), File("opt/b")),
        tar_layer(File("etc/c", b"c" * 9000), File("etc/d", b"d")),
    ]
    with RegistrySimulator() as registry:
        registry.push("app", "1", layers)
        script = f'mount -t tmpfs tmpfs "$0" && exec "$1" -m {__spec__.name} "$0" {scarce} {registry.host}/app:1'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(tmp_path), sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["pulled"]
    assert len(told["refusals"]) >= 5
    for kind, message, left in told["refusals"]:
        full = kind == "ResourceExhausted" or "images.db could not be written" in message
        assert full, f"{kind}: {message}"
        assert left == [], message


async def fill(disk: str, scarce: str, ref: str) -> dict[str, object]:
    """Pull with ever more room, from none, until it suffices."""
    store = Store(f"{disk}/images.db", durable=True)
    config = ImagesConfig(certs_d=(), registries_conf="", auth_files=(), pull_attempts=1)
    images = Images(f"{disk}/images", config, store, lambda: (), lambda: Nanos(1))
    await images.start()
    refusals: list[tuple[str, str, list[str]]] = []
    try:
        for step in range(200):
            resize(disk, scarce, step)
            try:
                image = await images.pull(ref, None)
            except CriError as error:
                refusals.append((type(error).__name__, str(error), leftovers(disk)))
            else:
                return {"refusals": refusals, "pulled": images.list() == [image] and not await images.check(deep=True)}
    finally:
        await images.close()
        store.close()
    return {"refusals": refusals, "pulled": False}


def resize(disk: str, scarce: str, step: int) -> None:
    """Leave room for so many steps beyond what is taken."""
    taken = os.statvfs(disk)
    if scarce == "nr_inodes":
        options = f"nr_inodes={taken.f_files - taken.f_ffree + step}"
    else:
        options = f"size={(taken.f_blocks - taken.f_bfree) * taken.f_frsize + step * STEP_BYTES}"
    syscalls.mount("tmpfs", disk, "tmpfs", MS_REMOUNT, options)


def leftovers(disk: str) -> list[str]:
    """But for what has come of blobs, which the next pull goes on with."""
    places = ("layers", "blobs/sha256")
    return [f"{place}/{name}" for place in places for name in os.listdir(f"{disk}/images/{place}")]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(fill(*sys.argv[1:]))))
