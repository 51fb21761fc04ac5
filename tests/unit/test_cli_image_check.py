"""``cri-py image check`` on a store whose daemon does not run, and beside one that does."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from pathlib import Path

import pytest

from cri_py.cli import run
from cri_py.images.service import Images
from cri_py.model import Nanos
from cri_py.state.claim import claimed
from cri_py.state.store import Store
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


def test_a_root_without_images_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "check", "--config", os.devnull, "--root", str(tmp_path)], io.StringIO()) == 1
    assert f"{tmp_path} holds no image store" in capsys.readouterr().err
