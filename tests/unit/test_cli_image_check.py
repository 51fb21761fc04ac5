"""``cri-py image check`` on a store whose daemon does not run, and beside one that does."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from cri_py.cli import run
from cri_py.images.records import IMAGE
from cri_py.images.service import Images
from cri_py.model import Nanos
from cri_py.state.claim import claimed
from cri_py.state.store import Put, Store
from tests.simulators.registry import File, RegistrySimulator, tar_layer
from tests.unit.images.nodes import HERMETIC


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """The layers of a store with one image, below ``tmp_path``."""
    with RegistrySimulator() as registry:
        registry.push("app", "1", [tar_layer(File("etc/base", b"base")), tar_layer(File("etc/top", b"top"))])

        async def fill() -> None:
            store = Store(f"{tmp_path}/images.db", durable=True)
            images = Images(f"{tmp_path}/images", HERMETIC, store, lambda: (), lambda: Nanos(1))
            await images.start()
            await images.pull(f"{registry.host}/app:1", None)
            await images.close()
            store.close()

        asyncio.run(fill())
    return tmp_path / "images/layers"


def check(layers: Path, *flags: str) -> tuple[int, str]:
    out = io.StringIO()
    root = str(layers.parent.parent)
    return run(["image", "check", "--config", os.devnull, "--root", root, *flags], out), out.getvalue()


def test_a_sound_store_is_told_so(layers: Path) -> None:
    assert check(layers, "--deep") == (0, "nothing is wrong\n")


def test_damage_is_told_then_mended(layers: Path) -> None:
    shutil.rmtree(min(layers.iterdir()))
    (layers / "zz").mkdir()
    status, said = check(layers)
    assert (status, said.count("missing"), said.count("orphaned")) == (1, 1, 1)
    assert check(layers, "--repair", "--dry-run")[0] == 1
    assert check(layers)[1] == said, "a dry run changes nothing"
    status, said = check(layers, "--repair")
    assert (status, said.splitlines()[-1]) == (0, "2 found, 2 repaired")
    assert check(layers, "--deep") == (0, "nothing is wrong\n")


def test_beside_a_running_daemon_it_looks_and_does_not_touch(layers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(min(layers.iterdir()))
    (layers / "zz").mkdir()
    with claimed(str(layers.parent.parent)):
        status, said = check(layers)
        assert (status, "missing" in said, "orphaned" in said) == (1, True, False)
        assert check(layers, "--repair", "--state", str(layers.parent))[0] == 1
    assert "no daemon answers" in capsys.readouterr().err
    assert (layers / "zz").exists()


def recorded(layers: Path, body: bytes) -> None:
    """A container's record, as the daemon has left it."""

    async def write() -> None:
        store = Store(f"{layers.parent.parent}/pods.db", durable=False)
        await store.commit(Put("container", "c" * 64, body))
        store.close()

    asyncio.run(write())


def container(**changes: object) -> bytes:
    body: dict[str, object] = {"sandbox_id": "s", "image_id": "sha256:0", "image_ref": "app:1", "created_at": 1}
    body |= {"state": {"is": "Created"}, "log_path": "", "cgroup": "/c", "user": None, "stop_signal": "SIGTERM"}
    return json.dumps(body | changes).encode()


@pytest.mark.parametrize("way", ["its own image", "an image volume"])
def test_without_a_daemon_no_layer_goes_from_under_a_container(layers: Path, way: str) -> None:
    store = Store(f"{layers.parent.parent}/images.db", durable=True)
    image_id = store.load(IMAGE)[0].key
    store.close()
    recorded(
        layers, container(image_id=image_id) if way == "its own image" else container(volume_images={"/v": image_id})
    )
    damaged = next(path for path in layers.iterdir() if (path / "etc/base").exists())
    (damaged / "etc/base").write_bytes(b"cut")
    inode = damaged.stat().st_ino
    status, said = check(layers, "--repair")
    assert (status, said.splitlines()[-1]) == (1, "1 found, 0 repaired, 1 left")
    assert damaged.stat().st_ino == inode
    recorded(layers, container())
    assert check(layers, "--repair")[0] == 0


def test_without_a_daemon_a_container_whose_record_is_damaged_stops_a_repair(
    layers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(layers, container(image_id=7))
    (layers / "zz").mkdir()
    assert check(layers, "--repair")[0] == 1
    assert f"the record of the container {'c' * 64}" in capsys.readouterr().err
    assert (layers / "zz").exists()


def test_a_root_without_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "check", "--config", os.devnull, "--root", str(tmp_path)], io.StringIO()) == 1
    assert f"{tmp_path} holds no image store" in capsys.readouterr().err
