"""Masked and read-only paths of a root that somebody else changes meanwhile, each test in its own namespace."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.kernel import syscalls
from cri_py.runtime import paths
from cri_py.runtime.mounts import Root
from tests.kernel.test_runtime_mounts import apart

pytestmark = pytest.mark.root


def in_root(tmp_path: Path, body: Callable[[Path, Root], None]) -> None:
    """In a root on a tmpfs with /dev/null, some files and directories; the host's /proc is still there."""
    place = tmp_path / "root"
    place.mkdir()

    def all_of_it() -> None:
        syscalls.mount("tmpfs", str(place), "tmpfs")
        (place / "dev").mkdir()
        os.mknod(place / "dev" / "null", 0o20666, os.makedev(1, 3))
        for name in ("one", "two"):
            (place / name / "below").mkdir(parents=True)
            (place / name / "secret").write_text("secret")
        (place / "file").write_text("secret")
        (place / "link").symlink_to("/one")
        (place / "nowhere").symlink_to("missing")
        body(place, Root(str(place)))

    apart(all_of_it)


def test_masked_paths_are_empty_and_cannot_be_written(tmp_path: Path) -> None:
    def body(place: Path, root: Root) -> None:
        paths.mask(["/one", "/two", "/file", "/missing", "/file/below", "/nowhere"], root)
        for name in ("one", "two"):
            assert os.listdir(place / name) == []
            with pytest.raises(OSError, match="Read-only"):
                (place / name / "x").mkdir()
        assert (place / "file").read_bytes() == b""

    in_root(tmp_path, body)


def test_a_link_to_a_masked_directory_masks_the_directory_inside(tmp_path: Path) -> None:
    def body(place: Path, root: Root) -> None:
        paths.mask(["/link"], root)
        assert os.listdir(place / "one") == []
        assert not os.path.exists("/one")

    in_root(tmp_path, body)


@pytest.mark.parametrize("null", ["a link", "a file", "missing"])
def test_nothing_but_the_device_hides_a_masked_file(tmp_path: Path, null: str) -> None:
    """A volume at /dev brings what it likes; a link back to the secret would leave it in sight (CVE-2025-31133)."""

    def body(place: Path, root: Root) -> None:
        (place / "dev" / "null").unlink()
        if null == "a link":
            (place / "dev" / "null").symlink_to("/file")
        elif null == "a file":
            (place / "dev" / "null").touch()
        with pytest.raises(FailedPrecondition, match="/dev/null is not the device"):
            paths.mask(["/file"], root)

    in_root(tmp_path, body)


def swapping(place: Path, name: str, at: str) -> None:
    """Before the next system call ``at`` put a link to /two where ``name`` was: another container with the volume."""

    def swap(syscall: str, _subject: str) -> None:
        if syscall == at:
            syscalls.failpoint = None
            (place / name).rename(place / "moved")
            (place / name).symlink_to("/two")

    syscalls.failpoint = swap


@pytest.mark.parametrize("name", ["one", "file"])
def test_what_is_looked_at_is_what_is_masked(tmp_path: Path, name: str) -> None:
    def body(place: Path, root: Root) -> None:
        swapping(place, name, "mount")
        paths.mask([f"/{name}"], root)
        moved = place / "moved"
        assert os.listdir(moved) == [] if name == "one" else moved.read_bytes() == b""
        assert (place / "two" / "secret").read_text() == "secret"

    in_root(tmp_path, body)


def test_a_directory_that_is_swapped_is_not_taken_for_the_empty_one(tmp_path: Path) -> None:
    def body(place: Path, root: Root) -> None:
        swapping(place, "one", "mount")
        paths.mask(["/one", "/dev"], root)
        assert os.listdir(place / "dev") == []

    in_root(tmp_path, body)


@pytest.mark.parametrize("at", ["open_tree", "mount_setattr", "move_mount"])
def test_what_is_looked_at_is_what_becomes_read_only(tmp_path: Path, at: str) -> None:
    def body(place: Path, root: Root) -> None:
        swapping(place, "one", at)
        paths.make_readonly(["/one"], root)
        with pytest.raises(OSError, match="Read-only"):
            (place / "moved" / "x").touch()
        (place / "two" / "x").touch()

    in_root(tmp_path, body)


def test_readonly_paths_can_be_read_and_not_written(tmp_path: Path) -> None:
    def body(place: Path, root: Root) -> None:
        paths.make_readonly(["/one", "/file", "/missing"], root)
        assert (place / "one" / "secret").read_text() == (place / "file").read_text() == "secret"
        for path in (place / "one" / "secret", place / "file"):
            with pytest.raises(OSError) as refusal:
                os.open(path, os.O_WRONLY)
            assert refusal.value.errno == errno.EROFS
        (place / "two" / "secret").write_text("still writable")

    in_root(tmp_path, body)


def test_nothing_mounted_below_a_readonly_path_can_be_written(tmp_path: Path) -> None:
    def body(place: Path, root: Root) -> None:
        syscalls.mount("tmpfs", str(place / "one" / "below"), "tmpfs")
        paths.make_readonly(["/one"], root)
        with pytest.raises(OSError, match="Read-only"):
            (place / "one" / "below" / "x").touch()

    in_root(tmp_path, body)
