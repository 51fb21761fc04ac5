"""Mounts of a hostile root: nothing leads out of it. Each test in a forked child with a mount namespace of its own."""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.errors import FailedPrecondition, KernelError
from cri_py.kernel import syscalls
from cri_py.kernel.constants import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
)
from cri_py.runtime import mounts, overlay, trees
from cri_py.runtime.mounts import MountOp, Root
from tests.leaks import open_descriptors

pytestmark = pytest.mark.root


def apart(body: Callable[[], None], flags: int = CLONE_NEWNS) -> None:
    """Run ``body`` in a child with new namespaces; its failure is the test's."""
    read_end, write_end = os.pipe()
    pid = os.fork()  # not clone3: this process has threads, whose locks fork(3) sets right in the child
    if pid == 0:
        try:
            os.close(read_end)
            syscalls.unshare(flags)
            if flags & CLONE_NEWPID and (first := os.fork()):  # only a child is born into the namespace
                os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
            syscalls.mount("", "/", "", MS_REC | MS_PRIVATE)
            body()
            os._exit(0)
        except BaseException:
            os.write(write_end, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end) as report:
        text = report.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root beside a host that must not be touched."""
    (tmp_path / "host").mkdir()
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def host(root: Path) -> Path:
    return root.parent / "host"


@pytest.mark.parametrize(
    "path",
    [
        "/evil",
        "/evil/",
        "/evil/deep/er",
        "/up/up/up",
        "/../../../../evil",
        "/a/../evil",
        "/./evil",
        "/chain",
        "/chain/x",
    ],
)
def test_a_target_is_made_inside_whatever_the_links_say(root: Path, host: Path, path: str) -> None:
    (root / "evil").symlink_to(host)  # absolute, and there on the host
    (root / "up").symlink_to("../../../../../../" + str(host).lstrip("/"))
    (root / "chain").symlink_to("evil")

    def body() -> None:
        opened = Root(str(root))
        os.close(opened.target(path, directory=True))

    apart(body)
    assert list(host.iterdir()) == []
    assert all(found.is_relative_to(root) for found in root.rglob("*"))


def test_a_file_target_behind_a_link_is_made_inside(root: Path, host: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc" / "resolv.conf").symlink_to(f"{host}/resolv.conf")

    def body() -> None:
        os.close(Root(str(root)).target("/etc/resolv.conf", directory=False))

    apart(body)
    assert list(host.iterdir()) == []
    assert (root / str(host).lstrip("/") / "resolv.conf").is_file()


@pytest.mark.parametrize(("link", "goal"), [("/run", "run"), ("../run", "run"), ("new/run", "var/new/run")])
def test_a_link_that_leads_nowhere_yet_gets_its_goal_made(root: Path, link: str, goal: str) -> None:
    (root / "var").mkdir()
    (root / "var" / "run").symlink_to(link)

    def body() -> None:
        os.close(Root(str(root)).target("/var/run/secrets/token", directory=True))

    apart(body)
    assert (root / goal / "secrets" / "token").is_dir()


@pytest.mark.parametrize("directory", [True, False])
def test_links_in_a_circle_are_refused(root: Path, directory: bool) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")

    def body() -> None:
        with pytest.raises(KernelError) as refusal:
            Root(str(root)).target("/a/x", directory=directory)
        assert refusal.value.errno == errno.ELOOP

    apart(body)


def test_the_kernels_magic_links_are_refused(root: Path) -> None:
    """/proc/self/root of a proc that an image has mounted or faked is the host's root."""
    (root / "proc").mkdir()

    def body() -> None:
        syscalls.mount("proc", str(root / "proc"), "proc")
        opened = Root(str(root))
        for path in ("/proc/self/root/etc", "/proc/self/cwd", "/proc/self/fd/0"):
            with pytest.raises(KernelError) as refusal:
                opened.open(path)
            assert refusal.value.errno == errno.ELOOP, path

    apart(body)


def test_a_bind_lands_inside_and_keeps_the_attributes_it_had(root: Path, host: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (root / "volume").symlink_to(host)

    def body() -> None:
        syscalls.mount("tmpfs", str(tmp_path / "source"), "tmpfs", 2 | 4)  # nosuid, nodev
        (tmp_path / "source" / "file").write_text("x")
        opened = Root(str(root))
        mounts.execute(
            MountOp("bind", str(tmp_path / "source"), "/volume", MS_BIND | MS_REC | MS_RDONLY, MS_PRIVATE | MS_REC, ""),
            opened,
        )
        inside = root / str(host).lstrip("/")
        assert (inside / "file").read_text() == "x"
        assert os.statvfs(inside).f_flag & 7 == 1 | 2 | 4  # read-only, nosuid, nodev
        assert not (host / "file").exists()
        (tmp_path / "source" / "writable").write_text("the source is not made read-only")

    apart(body)


def test_a_volume_that_is_not_there_is_told_by_name(root: Path) -> None:
    def body() -> None:
        with pytest.raises(FailedPrecondition, match="/no/such/place"):
            mounts.execute(MountOp("bind", "/no/such/place", "/v", MS_BIND, 0, ""), Root(str(root)))

    apart(body)


@pytest.mark.parametrize("name", ["proc", "sys"])
def test_proc_and_sys_are_mounted_through_no_link(root: Path, name: str) -> None:
    """Later they are looked up again by their path, to hide parts of them."""
    (root / "elsewhere").mkdir()
    (root / name).symlink_to("elsewhere")

    def body() -> None:
        opened = Root(str(root))
        with pytest.raises(FailedPrecondition, match=f"/{name} is no directory in the image"):
            mounts.execute(MountOp({"proc": "proc", "sys": "sysfs"}[name], name, f"/{name}", 0, 0, ""), opened)

    apart(body, CLONE_NEWNS | CLONE_NEWPID)


@pytest.mark.parametrize("way", ["a circle", "the kernel's magic", "a file", "a read-only volume"])
@pytest.mark.parametrize("directory", [True, False])
def test_a_volume_whose_place_can_not_be_made_is_told_by_name(
    root: Path, host: Path, way: str, directory: bool
) -> None:
    (host / "source").mkdir() if directory else (host / "source").touch()
    (root / "volume").mkdir()
    if way == "a circle":
        (root / "volume" / "link").symlink_to("link")
    elif way == "a file":
        (root / "volume" / "link").touch()
    else:
        (root / "volume" / "link").symlink_to("/proc/self/fd/0/x" if way == "the kernel's magic" else "nowhere")

    def body() -> None:
        opened = Root(str(root))
        if way == "the kernel's magic":
            (root / "proc").mkdir()
            syscalls.mount("proc", str(root / "proc"), "proc", 0, "")
        if way == "a read-only volume":
            syscalls.mount(str(root / "volume"), str(root / "volume"), "", MS_BIND)
            syscalls.mount("", str(root / "volume"), "", MS_BIND | MS_REMOUNT | MS_RDONLY)
            opened = Root(str(root))
        with pytest.raises(FailedPrecondition) as refusal:
            mounts.execute(MountOp("bind", str(host / "source"), "/volume/link/deep", MS_BIND, 0, ""), opened)
        assert str(host / "source") in refusal.value.message
        assert "/volume/link/deep" in refusal.value.message
        assert refusal.value.hint

    apart(body)


def test_a_directory_on_a_file_is_told_by_name(root: Path, host: Path) -> None:
    (root / "file").touch()

    def body() -> None:
        with pytest.raises(FailedPrecondition, match="can't be mounted on /file"):
            mounts.execute(MountOp("bind", str(host), "/file", MS_BIND, 0, ""), Root(str(root)))

    apart(body)


def test_a_bidirectional_volume_has_to_be_on_a_shared_mount(host: Path) -> None:
    operation = MountOp("bind", str(host), "/volume", MS_BIND | MS_REC, MS_SHARED | MS_REC, "")

    def body() -> None:  # all mounts are private here
        with pytest.raises(FailedPrecondition, match="/volume can't be bidirectional") as refusal:
            trees.take_shared([operation], mounts.Progress("/a/b/c", []))
        assert str(host) in refusal.value.message
        syscalls.mount(str(host), str(host), "", MS_BIND)
        syscalls.mount("", str(host), "", MS_SHARED)
        (tree,) = trees.take_shared([operation], mounts.Progress("/a/b/c", []))
        os.close(tree)

    apart(body)


def test_a_volume_that_is_to_hear_of_the_nodes_mounts_can_not_be_on_a_private_one(host: Path) -> None:
    operation = MountOp("bind", str(host), "/volume", MS_BIND | MS_REC, MS_SLAVE | MS_REC, "")
    progress = mounts.Progress("/a/b/c", [])

    def body() -> None:  # all mounts are private here
        with pytest.raises(FailedPrecondition, match=r"/volume can't be host to container: .* is on a private mount"):
            trees.take_shared([operation], progress)
        syscalls.mount(str(host), str(host), "", MS_BIND)
        syscalls.mount("", str(host), "", MS_SHARED)
        assert trees.take_shared([operation], progress) == [-1]
        syscalls.mount(str(host), str(host), "", MS_BIND)  # a peer, from which to be cut off
        syscalls.mount("", str(host), "", MS_SLAVE)
        assert trees.take_shared([operation], progress) == [-1]

    apart(body)


def test_a_mount_that_fails_names_source_and_destination(root: Path) -> None:
    def body() -> None:
        with pytest.raises(KernelError, match="nofs on /v"):
            mounts.execute(MountOp("nofs", "nofs", "/v", 0, 0, ""), Root(str(root)))

    apart(body)


def test_device_nodes_are_made_inside_with_their_rights(root: Path, host: Path) -> None:
    (root / "dev").symlink_to(host)
    device = {"path": "/dev/deep/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6}

    def body() -> None:
        os.umask(0)
        mounts.make_devices([device, device], Root(str(root)))

    apart(body)
    assert list(host.iterdir()) == []
    made = (root / str(host).lstrip("/") / "deep" / "null").stat()
    assert (made.st_rdev, made.st_mode & 0o777, made.st_uid, made.st_gid) == (os.makedev(1, 3), 0o640, 5, 6)


def test_after_the_pivot_nothing_of_the_host_is_mounted(root: Path) -> None:
    def body() -> None:
        syscalls.mount("tmpfs", str(root), "tmpfs")
        (root / "proc").mkdir()
        opened = Root(str(root))
        syscalls.mount("proc", str(root / "proc"), "proc")
        mounts.pivot(opened)
        os.close(opened.fd)
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        assert points == ["/", "/proc"]
        assert os.listdir("/") == ["proc"]
        assert os.getcwd() == "/"

    apart(body, CLONE_NEWNS | CLONE_NEWPID)


def in_new_root(root: Path, body: Callable[[], None]) -> None:
    """In a root on a tmpfs with /dev/null, some files and directories, after the pivot."""

    def all_of_it() -> None:
        syscalls.mount("tmpfs", str(root), "tmpfs")
        (root / "dev").mkdir()
        os.mknod(root / "dev" / "null", 0o20666, os.makedev(1, 3))
        for name in ("one", "two"):
            (root / name).mkdir()
            (root / name / "secret").write_text("secret")
        (root / "file").write_text("secret")
        (root / "link").symlink_to("one")
        (root / "nowhere").symlink_to("missing")
        mounts.pivot(Root(str(root)))
        body()

    apart(all_of_it)


def test_a_readonly_root_leaves_its_mounts_alone(root: Path) -> None:
    def body() -> None:
        syscalls.mount("tmpfs", "/one", "tmpfs")
        mounts.make_root_readonly()
        with pytest.raises(OSError, match="Read-only"):
            Path("/new").touch()
        Path("/one/new").touch()

    in_new_root(root, body)


@pytest.mark.parametrize("layers", [1, 2, 130])
def test_any_number_of_layers_is_mounted_the_last_on_top(tmp_path: Path, layers: int) -> None:
    deep = tmp_path / ("l" * 60)
    for number in range(layers):
        (deep / str(number)).mkdir(parents=True)
        (deep / str(number) / "who").write_text(str(number))
        (deep / str(number) / f"only-{number}").touch()
    for name in ("upper", "work", "target"):
        (tmp_path / name).mkdir()

    def body() -> None:
        syscalls.mount("tmpfs", str(tmp_path / "work"), "tmpfs")  # upper and work must be on one that overlay takes
        for name in ("u", "w"):
            (tmp_path / "work" / name).mkdir()
        rootfs = {
            "lower": [str(deep / str(number)) for number in reversed(range(layers))],
            "upper": str(tmp_path / "work" / "u"),
            "work": str(tmp_path / "work" / "w"),
        }
        overlay.mount_root(rootfs, str(tmp_path / "target"))
        target = tmp_path / "target"
        assert (target / "who").read_text() == str(layers - 1)
        assert len(list(target.iterdir())) == layers + 1
        (target / "new").touch()
        assert (tmp_path / "work" / "u" / "new").exists()

    apart(body)


def test_layers_that_can_not_be_mounted_leave_nothing_open(tmp_path: Path) -> None:
    missing = [str(tmp_path / "l" / f"{number:060}") for number in range(130)]
    (tmp_path / "l").mkdir()

    def body() -> None:
        before = open_descriptors()
        with pytest.raises(OSError, match="No such file"):
            overlay.mount_root({"lower": missing, "upper": "/u", "work": "/w"}, str(tmp_path))
        assert open_descriptors() == before

    apart(body)


def test_a_child_apart_fails_its_test() -> None:
    with pytest.raises(AssertionError, match="boom"):
        apart(lambda: (_ for _ in ()).throw(ValueError("boom")))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
