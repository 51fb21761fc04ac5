"""User namespaces and what is seen through them. Each test in a forked child with a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition
from cri_py.kernel import features, procfs, syscalls, userns
from cri_py.kernel.constants import (
    AT_EMPTY_PATH,
    MNT_DETACH,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
)
from cri_py.runtime import mounts, overlay, trees
from cri_py.runtime.mounts import MountOp
from tests.kernel.test_runtime_mounts import apart

pytestmark = pytest.mark.root

MAP = "0 200000 65536\n"
NONE = mounts.Progress("/a/b/c", [])


def bind(source: Path, **more: object) -> MountOp:
    return MountOp("bind", str(source), "/volume", MS_BIND | MS_REC, 0, "")._replace(**more)  # type: ignore[arg-type]


def take(operation: MountOp, place: Path, namespaces: trees.Namespaces | None = None) -> int:
    taken = [-1]
    trees.take_rest([operation], taken, namespaces or trees.Namespaces(), str(place), NONE)
    return taken[0]


def in_tree(tree: int, path: str) -> os.stat_result:
    return os.stat(path, dir_fd=tree)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """A directory of 130 layers, each with a file; upper, work, place beside it."""
    for number in range(130):
        layer = tmp_path / "layers" / str(number)
        layer.mkdir(parents=True)
        (layer / f"only-{number}").touch()
    os.chown(tmp_path / "layers" / "0" / "only-0", 1000, 1000)
    for name in ("upper", "work", "place"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_mappings_are_told_from_inside_to_outside() -> None:
    mappings = [{"containerID": 0, "hostID": 200000, "size": 10}, {"containerID": 20, "hostID": 5, "size": 1}]
    assert userns.text_of(mappings) == "0 200000 10\n20 5 1\n"
    assert [userns.outside(mappings, number) for number in (0, 9, 10, 20, 21)] == [200000, 200009, -1, 5, -1]
    assert userns.outside([], 7) == 7


def test_a_mapped_tree_shows_the_mapped_owners_and_no_process_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 1000, 1001)

    def body() -> None:
        tree = take(bind(tmp_path, uid_map=MAP, gid_map="0 300000 65536\n"), tmp_path)
        found = in_tree(tree, "file")
        assert (found.st_uid, found.st_gid) == (201000, 301001)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    apart(body)


def test_a_tree_that_can_not_be_mapped_is_refused_by_name(tmp_path: Path) -> None:
    def body() -> None:
        with pytest.raises(FailedPrecondition, match=r"/volume can't be id-mapped.*/proc/fs"):
            take(bind(Path("/proc/fs"), uid_map=MAP, gid_map=MAP), tmp_path)

    apart(body)


def test_the_pods_own_namespace_serves_its_mappings_without_another(tmp_path: Path) -> None:
    def body() -> None:
        own = userns.open_new(MAP, MAP)
        namespaces = trees.Namespaces(MAP, MAP, own)
        assert namespaces.fd_of(bind(tmp_path, uid_map=MAP, gid_map=MAP)) == own
        other = namespaces.fd_of(bind(tmp_path, uid_map="0 1 1\n", gid_map=MAP))
        assert other not in {own, -1}
        assert namespaces.fd_of(bind(tmp_path)) == -1

    apart(body)


@pytest.mark.parametrize("count", [2, 130])
def test_the_layers_are_mapped_by_one_mount_however_many_there_are(layers: Path, count: int) -> None:
    """Peers made a mount for each layer, and minutes passed where many pods started at once."""

    def body() -> None:
        owner = userns.open_new(MAP, MAP)
        before = len(procfs.mountinfo())
        lower = [str(layers / "layers" / str(number)) for number in reversed(range(count))]
        rootfs = {"lower": lower, "upper": str(layers / "upper"), "work": str(layers / "work")}
        overlay.mount_root(rootfs, str(layers / "place"), owner)
        assert len(procfs.mountinfo()) - before == 2
        assert (layers / "place" / "only-0").stat().st_uid == 201000
        assert (layers / "place" / f"only-{count - 1}").stat().st_uid == 200000

    apart(body)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("count", [1, 2, 130])
def test_an_image_is_taken_and_nothing_stays_mounted(layers: Path, count: int, mapped: bool) -> None:
    def body() -> None:
        owner = userns.open_new(MAP, MAP) if mapped else -1
        before = len(procfs.mountinfo())
        lower = tuple(str(layers / "layers" / str(number)) for number in reversed(range(count)))
        tree = overlay.take_image(lower, "", str(layers / "place"), owner)
        assert len(procfs.mountinfo()) == before
        assert in_tree(tree, "only-0").st_uid == (201000 if mapped else 1000)
        if count > 1:
            assert in_tree(tree, f"only-{count - 1}").st_uid == (200000 if mapped else 0)
        for missing in ("nothing", "only-0/x"):
            with pytest.raises(OSError, match=r"No such file|Not a directory"):
                overlay.take_image(lower, missing, str(layers / "place"), owner)
        assert len(procfs.mountinfo()) == before

    apart(body)


def test_an_image_file_can_be_taken_alone(layers: Path) -> None:
    def body() -> None:
        tree = overlay.take_image((str(layers / "layers" / "0"),), "only-0", str(layers / "place"))
        assert stat.S_ISREG(os.fstat(tree).st_mode)

    apart(body)


def test_what_is_mounted_below_is_restricted_with_the_rest(tmp_path: Path) -> None:
    """An "ro" bind is escaped by whoever finds a file system mounted below it."""
    (tmp_path / "below").mkdir()

    def body() -> None:
        syscalls.mount("tmpfs", str(tmp_path / "below"), "tmpfs")
        plain = take(bind(tmp_path, flags=MS_BIND | MS_REC | MS_RDONLY, below=MOUNT_ATTR_NOEXEC), tmp_path)
        os.close(os.open("below/x", os.O_CREAT | os.O_WRONLY, dir_fd=plain))
        recursive = take(bind(tmp_path, below=MOUNT_ATTR_RDONLY), tmp_path)
        for path in ("x", "below/y"):
            with pytest.raises(OSError) as refusal:
                os.open(path, os.O_CREAT | os.O_WRONLY, dir_fd=recursive)
            assert refusal.value.errno == errno.EROFS

    apart(body)


def test_a_taken_tree_is_a_slave_of_the_nodes_mount_or_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()

    def body() -> None:
        syscalls.mount(str(tmp_path), str(tmp_path), "", MS_BIND)
        syscalls.mount("", str(tmp_path), "", MS_SHARED)
        for propagation, tag in ((MS_SLAVE, "master:"), (MS_PRIVATE, "")):
            tree = take(bind(tmp_path, propagation=propagation | MS_REC, below=MOUNT_ATTR_NOEXEC), tmp_path)
            syscalls.mount("tmpfs", "/tmp", "tmpfs")  # in this namespace alone; not shared, to see what the tree is
            os.mkdir("/tmp/here")
            syscalls.move_mount(tree, "/tmp/here")
            (found,) = [mount for mount in procfs.mountinfo() if mount.path == "/tmp/here"]
            assert "".join(found.propagation)[: len(tag)] == tag
            assert not [each for each in found.propagation if each.startswith("shared:")]
            syscalls.umount2("/tmp", MNT_DETACH)

    apart(body)


def test_the_devices_of_a_user_namespace_are_usable_and_its_own(tmp_path: Path) -> None:
    def body() -> None:
        tree = trees.take_devices(200000, 300000, MountOp("tmpfs", "tmpfs", "/dev", 0, 0, "mode=755,size=65536k"))
        mounts.make_devices(
            [{"path": "/null", "type": "c", "major": 1, "minor": 3, "uid": 200000, "gid": 300000}],
            mounts.Root(fd=tree),
            "/",
        )
        assert (os.fstat(tree).st_uid, os.fstat(tree).st_gid) == (200000, 300000)
        found = in_tree(tree, "null")
        assert (found.st_uid, found.st_rdev, stat.S_ISCHR(found.st_mode)) == (200000, os.makedev(1, 3), True)
        with open(os.open("null", os.O_WRONLY, dir_fd=tree), "w") as null:
            null.write("x")
        assert os.readlink("stdin", dir_fd=tree) == "/proc/self/fd/0"

    apart(body)


# ----------------------------------------------------------------- features


def test_what_this_kernel_can_do_is_proved_and_nothing_is_left(tmp_path: Path) -> None:
    def body() -> None:
        assert features.probe(str(tmp_path / "not" / "there")) == ("", "")
        assert list(tmp_path.iterdir()) == []

    apart(body)


def test_a_file_system_that_can_not_be_mapped_is_told(layers: Path) -> None:
    """overlayfs is one."""

    def body() -> None:
        lower = [str(layers / "layers" / str(number)) for number in (1, 0)]
        rootfs = {"lower": lower, "upper": str(layers / "upper"), "work": str(layers / "work")}
        overlay.mount_root(rootfs, str(layers / "place"))
        below, users = features.probe(str(layers / "place"))
        assert below == ""
        assert "mount_setattr" in users

    apart(body)


def test_a_kernel_that_lacks_a_call_is_told(tmp_path: Path) -> None:
    def refuse(call: str, _: str) -> None:
        if call == "mount_setattr":
            raise OSError(errno.ENOSYS, "Function not implemented")

    def body() -> None:
        syscalls.failpoint = refuse
        below, users = features.probe(str(tmp_path))
        assert "not implemented" in below
        assert "not implemented" in users

    apart(body)


def test_a_place_where_nothing_can_be_made_is_told() -> None:
    def body() -> None:
        assert "/proc" in features.probe("/proc/nothing/here")[1]

    apart(body)


def test_an_idmap_is_not_silently_left_out(tmp_path: Path) -> None:
    """AT_EMPTY_PATH without a mapping would be a plain bind."""

    def body() -> None:
        tree = take(bind(tmp_path, uid_map=MAP, gid_map=MAP), tmp_path)
        with pytest.raises(OSError) as refusal:  # a mount can be mapped once only
            syscalls.mount_setattr(tree, "", AT_EMPTY_PATH, attr_set=0x100000, userns_fd=userns.open_new(MAP, MAP))
        assert refusal.value.errno == errno.EPERM

    apart(body)
