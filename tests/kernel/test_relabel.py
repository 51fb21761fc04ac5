"""Volumes get a label with all that is in them. Without SELinux the kernel keeps the attribute as it is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.kernel import syscalls
from cri_py.kernel.constants import MS_RDONLY
from cri_py.runtime import labels, mounts, overlay, paths, trees
from cri_py.runtime.mounts import MountOp, Progress, Root
from tests.kernel.test_runtime_mounts import apart

pytestmark = pytest.mark.root

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def label_of(path: Path) -> str:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False).decode()
    except OSError:
        return ""


def volume(source: Path, *, relabel: bool = True) -> MountOp:
    return MountOp("bind", str(source), "/volume", 0, 0, "", relabel=relabel)


def on_tmpfs(place: Path, body: Callable[[], None]) -> None:
    """In a mount namespace where ``place`` can have such attributes."""

    def inside() -> None:
        syscalls.mount("tmpfs", str(place), "tmpfs", 0, "")
        body()

    apart(inside)


def test_all_in_a_volume_gets_the_label_and_nothing_behind_its_links(tmp_path: Path) -> None:
    def body() -> None:
        deep = tmp_path / "volume/a/b"
        deep.mkdir(parents=True)
        (deep / "file").touch()
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/file").touch()
        (deep / "link").symlink_to(tmp_path / "outside")
        os.mkfifo(deep / "fifo")
        labels.relabel([volume(tmp_path / "volume")], LABEL, Progress("/a/b/c", []))
        found = [tmp_path / "volume", tmp_path / "volume/a", deep, *deep.iterdir()]
        assert [label_of(path) for path in found] == [LABEL] * 6
        assert (label_of(tmp_path / "outside"), label_of(tmp_path / "outside/file")) == ("", "")

    on_tmpfs(tmp_path, body)


def test_a_file_and_a_link_to_a_volume_are_volumes_too(tmp_path: Path) -> None:
    def body() -> None:
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to("file")
        labels.relabel([volume(tmp_path / "link")], LABEL, Progress("/a/b/c", []))
        assert label_of(tmp_path / "file") == LABEL
        assert label_of(tmp_path / "link") == ""

    on_tmpfs(tmp_path, body)


def test_who_asks_for_no_label_gets_none_and_who_has_it_keeps_it(tmp_path: Path) -> None:
    def body() -> None:
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
        labels.relabel(
            [volume(tmp_path / "one", relabel=False), volume(tmp_path / "other")], LABEL, Progress("/a/b/c", [])
        )
        assert (label_of(tmp_path / "one"), label_of(tmp_path / "other")) == ("", LABEL)
        before = (tmp_path / "other").stat().st_ctime_ns
        labels.relabel([volume(tmp_path / "other")], LABEL, Progress("/a/b/c", []))
        assert (tmp_path / "other").stat().st_ctime_ns == before

    on_tmpfs(tmp_path, body)


def test_what_can_t_be_labelled_is_told_by_name(tmp_path: Path) -> None:
    def body() -> None:
        (tmp_path / "volume").mkdir()
        syscalls.mount("tmpfs", str(tmp_path / "volume"), "tmpfs", MS_RDONLY, "")
        with pytest.raises(FailedPrecondition, match=r"at /volume can't be relabelled: .*Read-only"):
            labels.relabel([volume(tmp_path / "volume")], LABEL, Progress("/a/b/c", []))
        with pytest.raises(FailedPrecondition, match="No such file"):
            labels.relabel([volume(tmp_path / "none")], LABEL, Progress("/a/b/c", []))

    on_tmpfs(tmp_path, body)


def test_a_file_system_without_labels_is_left_as_it_is(tmp_path: Path) -> None:
    def body() -> None:
        syscalls.mount("ramfs", str(tmp_path), "ramfs", 0, "")
        (tmp_path / "volume").mkdir()
        labels.relabel([volume(tmp_path / "volume")], LABEL, Progress("/a/b/c", []))
        assert label_of(tmp_path / "volume") == ""

    apart(body)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel that knows contexts: it notes the options of what is mounted, and mounts it without them."""
    heard: list[str] = []
    real_mount, real_config = syscalls.mount, syscalls.fsconfig

    def mount(source: str, target: str, fstype: str, flags: int = 0, options: str = "") -> None:
        heard.append(options)
        real_mount(source, target, fstype, flags, options.replace(f',context="{LABEL}"', ""))

    def fsconfig(fd: int, command: int, key: str = "", value: str = "", aux: int = 0) -> None:
        if key == "context":
            heard.append(f"{key}={value}")
        else:
            real_config(fd, command, key, value, aux)

    monkeypatch.setattr(syscalls, "mount", mount)
    monkeypatch.setattr(syscalls, "fsconfig", fsconfig)
    return heard


def test_what_is_mounted_for_the_container_is_mounted_with_its_label(tmp_path: Path, asked: list[str]) -> None:
    def body() -> None:
        context = f'context="{LABEL}"'
        for name in ("layers/0", "layers/1", "upper", "work", "root", "place"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "layers/0/file").touch()
        lower = [str(tmp_path / "layers/1"), str(tmp_path / "layers/0")]
        rootfs = {"lower": lower, "upper": str(tmp_path / "upper"), "work": str(tmp_path / "work")}
        overlay.mount_root(rootfs, str(tmp_path / "root"), label=LABEL)
        assert asked.pop().endswith(f",{context}")
        root = Root(str(tmp_path / "root"))
        for number, kind in enumerate(("tmpfs", "devpts")):
            mounts.execute(MountOp(kind, kind, f"/{number}", 0, 0, "mode=755", label=LABEL), root)
            assert asked.pop() == f"mode=755,{context}"
        (tmp_path / "root/proc").mkdir()
        paths.mask(["/proc"], root, LABEL)
        assert context in asked.pop()
        trees.take_devices(0, 0, MountOp("tmpfs", "tmpfs", "/dev", 0, 0, "mode=755", label=LABEL))
        assert asked.pop() == f"context={LABEL}"

    on_tmpfs(tmp_path, body)


def test_an_image_of_one_layer_gets_a_mount_of_its_own_for_its_label(tmp_path: Path, asked: list[str]) -> None:
    def body() -> None:
        for name in ("layers/0", "place"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "layers/0/file").touch()
        tree = overlay.take_image((str(tmp_path / "layers/0"),), "", str(tmp_path / "place"), label=LABEL)
        assert f',context="{LABEL}"' in asked.pop()
        assert os.stat("file", dir_fd=tree)

    on_tmpfs(tmp_path, body)


def test_the_directory_of_queues_is_labelled_and_its_file_system_is_not(tmp_path: Path, asked: list[str]) -> None:
    def body() -> None:
        operation = MountOp("mqueue", "mqueue", "/queues", 0, 0, "", label=LABEL)
        mounts.execute(operation, Root(str(tmp_path)))
        assert asked.pop() == ""

    on_tmpfs(tmp_path, body)
