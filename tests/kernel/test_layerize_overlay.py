"""What a container changes, as the kernel's overlayfs keeps it, becomes a layer that makes the same root again."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.images.layerize import layer_pieces
from cri_py.images.layers import unpack
from cri_py.kernel import syscalls
from cri_py.model import Digest
from cri_py.runtime.overlay import mount_root
from tests.kernel.test_runtime_mounts import apart
from tests.simulators.registry import sha256

pytestmark = pytest.mark.root

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep, as setcap writes it
_NOBODY = 0xFFFFFFFF  # an entry without an id
_ENTRIES = ((1, 7, _NOBODY), (2, 4, 7), (4, 5, _NOBODY), (16, 7, _NOBODY), (32, 5, _NOBODY))  # user 7 may read
ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in _ENTRIES)


@dataclass(frozen=True)
class Overlay:
    """A container's root: the tree ``lower``, changes in ``upper``, both together in ``root``."""

    place: Path

    @property
    def lower(self) -> Path:
        return self.place / "lower"

    @property
    def upper(self) -> Path:
        return self.place / "upper"

    @property
    def root(self) -> Path:
        return self.place / "root"

    def mount(self, *above: Path, upper: str = "upper") -> None:
        """``above``: layers between the lower tree and the upper one, the topmost first."""
        for name in (upper, f"{upper}-work"):
            (self.place / name).mkdir()
        lower = [str(each) for each in (*above, self.lower)]
        mount_root(
            {"lower": lower, "upper": str(self.place / upper), "work": str(self.place / f"{upper}-work")},
            str(self.root),
        )

    def layer(self) -> bytes:
        """The changes, read while the root is mounted: containers need not stop for that."""
        return b"".join(layer_pieces(str(self.upper), overlay=True))


def in_overlay(tmp_path: Path, body: Callable[[Overlay], None], *, mounted: bool = True) -> None:
    """Run ``body`` with a lower tree of a few files in a mount namespace that ends with it."""

    def inside() -> None:
        syscalls.mount("tmpfs", str(tmp_path), "tmpfs")  # upper and work must be on one that overlay takes
        overlay = Overlay(tmp_path)
        for path in (overlay.lower / "etc/deep/er", overlay.lower / "bin", overlay.lower / "srv/old", overlay.root):
            path.mkdir(parents=True)
        for name in ("etc/motd", "etc/deep/er/file", "bin/tool", "bin/same", "srv/old/a", "srv/old/b", "plain"):
            (overlay.lower / name).write_text(name)
        os.link(overlay.lower / "bin/same", overlay.lower / "bin/also")
        (overlay.lower / "to").symlink_to("etc")
        if mounted:
            overlay.mount()
        body(overlay)

    apart(inside)


def tree(root: Path) -> dict[str, object]:
    """All that a container sees of its root, but for what no layer keeps (access times, fractions of seconds)."""
    seen: dict[str, object] = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            found = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(found.st_mode) else b""
            seen[str(path.relative_to(root))] = (
                *(stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_rdev, int(found.st_mtime)),
                *(0 if stat.S_ISDIR(found.st_mode) else found.st_nlink, content),
                os.readlink(path) if path.is_symlink() else "",
                {
                    key: os.getxattr(path, key, follow_symlinks=False)
                    for key in os.listxattr(path, follow_symlinks=False)
                },
            )
    return seen


def _attributes_of(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def members(layer: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return {member.name: member for member in tar}


# ------------------------------------------------------------ changes of a container


def remove(root: Path) -> None:
    (root / "plain").unlink()
    (root / "etc/deep/er/file").unlink()
    for path in ("srv/old/a", "srv/old/b"):
        (root / path).unlink()
    (root / "srv/old").rmdir()


def make_anew(root: Path) -> None:
    """A directory that was removed and made again is opaque: nothing of the old one may shine through."""
    remove(root)
    (root / "srv/old/inner").mkdir(parents=True)
    (root / "srv/old/c").write_text("c")


def replace(root: Path) -> None:
    """A file by a directory, a directory by a file, a link by a file."""
    (root / "plain").unlink()
    (root / "plain").mkdir(0o1777)
    (root / "plain/in").write_text("in")
    remove_tree(root / "etc/deep")
    (root / "etc/deep").write_text("now a file")
    (root / "to").unlink()
    (root / "to").write_text("no link")


def remove_tree(path: Path) -> None:
    for directory, directories, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in directories:
            os.rmdir(os.path.join(directory, name))
    path.rmdir()


def add(root: Path) -> None:
    (root / "new/deep").mkdir(parents=True)
    (root / "new/file").write_bytes(os.urandom(3 << 20))
    os.link(root / "new/file", root / "new/deep/again")
    (root / "new/link").symlink_to("/etc/../nowhere")
    os.mkfifo(root / "new/pipe", 0o622)
    os.mknod(root / "new/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "new/loop", 0o660 | stat.S_IFBLK, os.makedev(7, 0))
    os.chown(root / "new/file", 4_000_000_000, 2_000_000_000)
    (root / os.fsdecode(b"new/\xff")).write_text("no text")


def touch_up(root: Path) -> None:
    """Changes of what was there: content, owner, mode, capability, time, and a rename."""
    with (root / "etc/motd").open("a") as motd:
        motd.write("more")
    os.chown(root / "bin/tool", 7, 8)
    (root / "bin/tool").chmod(0o4755)
    os.setxattr(root / "bin/tool", "security.capability", CAPABILITY)
    os.utime(root / "bin", (1, 1_500_000_000))
    (root / "etc/deep/er/file").rename(root / "moved")
    (root / "bin/same").write_text("two links")


@pytest.mark.parametrize("change", [remove, make_anew, replace, add, touch_up])
def test_a_layer_of_the_changes_makes_the_same_root(tmp_path: Path, change: Callable[[Path], None]) -> None:
    def body(overlay: Overlay) -> None:
        change(overlay.root)
        changed, layer = tree(overlay.root), overlay.layer()
        syscalls.umount2(str(overlay.root))
        again = overlay.place / "again"
        again.mkdir()
        unpack(
            io.BytesIO(layer),
            str(again),
            size=len(layer),
            diff_id=Digest(sha256(layer)),
            lowest=False,
            subject="layer 1",
            watch=lambda _: None,
        )
        overlay.mount(again, upper="other")
        assert tree(overlay.root) == changed

    in_overlay(tmp_path, body)


def test_what_is_hidden_is_told_as_a_layer_tells_it(tmp_path: Path) -> None:
    def body(overlay: Overlay) -> None:
        make_anew(overlay.root)
        found = members(overlay.layer())
        assert {name for name in found if ".wh." in name} == {
            ".wh.plain",
            "etc/deep/er/.wh.file",
            "srv/old/.wh..wh..opq",
        }
        assert all(found[name].isreg() and not found[name].size for name in found if ".wh." in name)
        assert list(found).index("srv/old/.wh..wh..opq") == list(found).index("srv/old") + 1, "before what it spares"

    in_overlay(tmp_path, body)


def test_a_root_without_changes_is_an_empty_layer_and_equal_changes_are_equal_bytes(tmp_path: Path) -> None:
    def body(overlay: Overlay) -> None:
        assert overlay.layer() == bytes(1024)
        touch_up(overlay.root)
        assert overlay.layer() == overlay.layer()

    in_overlay(tmp_path, body)


def test_what_is_overlayfs_s_or_the_host_s_own_stays_here(tmp_path: Path) -> None:
    def body(overlay: Overlay) -> None:
        touch_up(overlay.root)
        os.setxattr(overlay.root / "etc/motd", "system.posix_acl_access", ACL)
        os.setxattr(overlay.root / "etc/motd", "trusted.other", b"\0\xff")
        kept = os.listxattr(overlay.upper / "etc/motd")
        assert "trusted.overlay.origin" in kept or "trusted.overlay.impure" in os.listxattr(overlay.upper / "etc")
        headers = {name: sorted(member.pax_headers) for name, member in members(overlay.layer()).items()}
        assert [key for key in headers["etc/motd"] if "xattr" in key] == ["SCHILY.xattr.trusted.other"]
        assert not [key for keys in headers.values() for key in keys if "overlay" in key]

    in_overlay(tmp_path, body)


# ------------------------------------------------------------ what no layer can say


def test_an_attribute_whose_name_would_become_part_of_its_value_is_refused(tmp_path: Path) -> None:
    def body(overlay: Overlay) -> None:
        (overlay.root / "new").touch()
        os.setxattr(overlay.root / "new", "trusted.a=b", b"c")
        with pytest.raises(FailedPrecondition, match=r"trusted\.a=b"):
            overlay.layer()

    in_overlay(tmp_path, body)


def test_a_directory_that_was_renamed_by_redirection_is_refused(tmp_path: Path) -> None:
    def body(overlay: Overlay) -> None:
        for name in ("upper", "work"):
            (overlay.place / name).mkdir()
        options = f"lowerdir={overlay.lower},upperdir={overlay.upper},workdir={overlay.place}/work,redirect_dir=on"
        syscalls.mount("overlay", str(overlay.root), "overlay", 0, options)
        (overlay.root / "srv/old").rename(overlay.root / "srv/renamed")
        with pytest.raises(FailedPrecondition, match=r"srv/renamed.*redirect"):
            overlay.layer()

    in_overlay(tmp_path, body, mounted=False)


def test_a_file_of_which_only_the_attributes_are_here_is_refused(tmp_path: Path) -> None:
    def body(overlay: Overlay) -> None:
        for name in ("upper", "work"):
            (overlay.place / name).mkdir()
        options = f"lowerdir={overlay.lower},upperdir={overlay.upper},workdir={overlay.place}/work,metacopy=on"
        syscalls.mount("overlay", str(overlay.root), "overlay", 0, options)
        (overlay.root / "etc/motd").chmod(0o600)
        with pytest.raises(FailedPrecondition, match=r"etc/motd.*metacopy"):
            overlay.layer()

    in_overlay(tmp_path, body, mounted=False)
