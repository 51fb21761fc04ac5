"""Images without a registry: ``cri-py image import | export | build | commit`` beside skopeo and umoci."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.simulators.busybox import BUSYBOX, PROGRAM
from tests.simulators.kubelet import Kubelet, Pod
from tests.simulators.registry import RegistrySimulator
from tests.system.daemon import Daemon
from tests.system.test_pulls import check

Command = Callable[..., subprocess.CompletedProcess[str]]
NAME = "example.test/exchanged:1"


@pytest.fixture
def command(daemon: Daemon, kubelet: Kubelet, registry: RegistrySimulator) -> Iterator[Command]:
    """Runs ``cri-py image …`` for the daemon's directories; images of the test are removed afterwards."""

    def run(verb: str, *arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = cri_py(daemon, verb, *arguments)
        assert done.returncode == status, done.stderr
        return done

    yield run
    for image in kubelet.ListImages().images:
        for tag in image.repo_tags:
            if tag.startswith("example.test/"):
                run("rm", tag)  # alone: CRI's call would take the image's other names along
        if not image.repo_tags:
            run("rm", image.id)
    kubelet.sweep()
    assert check(daemon) == "nothing is wrong\n"
    registry.hang_up()


def cri_py(daemon: Daemon, verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    places = ["--root", str(daemon.root), "--state", str(daemon.state), "--config", str(daemon.config_file)]
    line = [sys.executable, "-m", "cri_py", "image", verb, *places, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def tool(*line: str | Path) -> str:
    """Runs skopeo or umoci, which must succeed."""
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def id_of(command: Command, ref: str) -> str:
    return str(json.loads(command("inspect", ref).stdout)["id"])


def config_digest(place: str) -> str:
    """The image id as skopeo sees it."""
    return str(json.loads(tool("skopeo", "inspect", "--raw", place))["config"]["digest"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root directory that can be run."""
    root = tmp_path / "tree"
    for name in ("bin", "etc"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(PROGRAM.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    for applet in ("sh", "cat", "echo", "id"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/motd").write_text("from a tree\n")
    (root / "etc/owned").write_text("x")
    os.chown(root / "etc/owned", 1000, 1001)
    os.link(root / "etc/motd", root / "etc/linked")
    return root


@pytest.fixture
def layout(tmp_path: Path, tree: Path) -> Path:
    """What umoci makes of the tree: image ``1``."""
    path = tmp_path / "layout"
    tool("umoci", "init", "--layout", path)
    tool("umoci", "new", "--image", f"{path}:1")
    tool("umoci", "insert", "--image", f"{path}:1", tree, "/")
    tool("umoci", "config", "--image", f"{path}:1", "--config.cmd", "/bin/cat", "--config.cmd", "/etc/motd")
    return path


def run_it(kubelet: Kubelet, pod: Pod, image: str) -> str:
    """What the image's own command prints."""
    return kubelet.outcome(pod, image=image)[1]


# ---------------------------------------------------------------------- import


def test_a_layout_of_umoci_is_imported_and_runs(command: Command, kubelet: Kubelet, pod: Pod, layout: Path) -> None:
    command("import", layout, "--tag", NAME)
    assert id_of(command, NAME) == config_digest(f"oci:{layout}:1")
    assert "from a tree" in run_it(kubelet, pod, NAME)


def test_what_umoci_repacks_is_imported_with_its_whiteouts(command: Command, layout: Path, tmp_path: Path) -> None:
    tool("umoci", "unpack", "--image", f"{layout}:1", tmp_path / "bundle")
    (tmp_path / "bundle/rootfs/etc/motd").unlink()
    (tmp_path / "bundle/rootfs/etc/new").write_text("new")
    tool("umoci", "repack", "--image", f"{layout}:2", tmp_path / "bundle")
    tool("skopeo", "copy", f"oci:{layout}:2", f"oci-archive:{tmp_path / 'two.tar'}:{NAME}")
    command("import", tmp_path / "two.tar")
    assert id_of(command, NAME) == config_digest(f"oci:{layout}:2")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "oci"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_skopeo_writes_is_imported(
    command: Command, layout: Path, tmp_path: Path, kind: str, packed: bool
) -> None:
    written = tmp_path / "written"
    tool("skopeo", "copy", f"oci:{layout}:1", f"{kind}:{written}:{NAME}")
    if packed and kind != "oci":
        written.write_bytes(gzip.compress(written.read_bytes(), 1))
    elif packed:
        tool("tar", "--create", "--zstd", "--file", tmp_path / "packed", "--directory", written, ".")
        written = tmp_path / "packed"
    assert NAME in command("import", written).stdout
    assert id_of(command, NAME) == config_digest(f"oci:{layout}:1")


def test_an_archive_that_lacks_a_blob_leaves_nothing(command: Command, layout: Path) -> None:
    before = command("ls", "--json").stdout
    blobs = sorted((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    blobs[-1].write_bytes(blobs[-1].read_bytes()[:-1])
    assert "sha256:" in command("import", layout, "--tag", NAME, status=1).stderr
    blobs[-1].unlink()
    assert "no file" in command("import", layout, "--tag", NAME, status=1).stderr
    assert command("ls", "--json").stdout == before


def test_a_link_to_a_file_of_the_machine_is_not_followed(command: Command, layout: Path, tmp_path: Path) -> None:
    for blob in (layout / "blobs/sha256").iterdir():
        blob.rename(tmp_path / blob.name)
        blob.symlink_to(tmp_path / blob.name)
    assert "no file" in command("import", layout, "--tag", NAME, status=1).stderr


def test_an_archive_is_imported_without_a_daemon_and_is_there_once_it_runs(fresh_daemon: Daemon, layout: Path) -> None:
    fresh_daemon.stop()
    done = cri_py(fresh_daemon, "import", layout, "--tag", NAME)
    assert done.returncode == 0, done.stderr
    assert NAME in done.stdout
    fresh_daemon.start()
    image = fresh_daemon.kubelet.ImageStatus(image={"image": NAME}).image
    assert list(image.repo_tags) == [NAME]
    pod = fresh_daemon.kubelet.run_pod()
    assert "from a tree" in run_it(fresh_daemon.kubelet, pod, NAME)


def test_the_daemon_that_is_named_by_its_socket_alone_is_the_one_that_imports(
    command: Command, daemon: Daemon, layout: Path
) -> None:
    """It has its own root; the default one is somebody else's, or nobody's."""
    line = [sys.executable, "-m", "cri_py", "image", "import", str(layout), "--tag", NAME, "--config", os.devnull]
    done = subprocess.run([*line, "--state", daemon.state], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(command("inspect", NAME).stdout)["id"] in done.stdout


# ---------------------------------------------------------------------- export


def test_what_is_exported_skopeo_and_umoci_read(command: Command, tmp_path: Path) -> None:
    archive, layout = tmp_path / "out.tar", tmp_path / "out"
    command("tag", BUSYBOX, NAME)
    command("export", NAME, "-o", archive)
    command("export", NAME, "--layout", "-o", layout)
    image_id = id_of(command, NAME)
    assert config_digest(f"oci-archive:{archive}:{NAME}") == image_id
    assert config_digest(f"oci:{layout}:{NAME}") == image_id
    assert config_digest(f"docker-archive:{archive}:{NAME}") == image_id
    tool("umoci", "unpack", "--image", f"{layout}:{NAME}", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/bin/busybox").read_bytes() == PROGRAM.read_bytes()
    tool("skopeo", "copy", f"docker-archive:{archive}:{NAME}", f"oci:{tmp_path / 'copied'}:x")


def test_several_images_go_through_one_file_and_are_the_same(command: Command, tmp_path: Path) -> None:
    command("tag", BUSYBOX, NAME)
    command("tag", "registry.test/custom:1", "example.test/other:2")
    ids = [id_of(command, name) for name in (NAME, "example.test/other:2")]
    command("export", NAME, "example.test/other:2", "-o", tmp_path / "both.tar")
    command("rm", NAME, "example.test/other:2")
    imported = command("import", tmp_path / "both.tar").stdout
    assert [line.split()[0] for line in imported.splitlines()] == ids
    assert [id_of(command, name) for name in (NAME, "example.test/other:2")] == ids


def test_an_export_that_fails_leaves_no_file(command: Command, tmp_path: Path) -> None:
    assert "cri-py image ls" in command("export", "no.test/such:1", "-o", tmp_path / "out.tar", status=1).stderr
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------ build and commit


def test_a_tree_becomes_an_image_that_runs_as_wished(
    command: Command, kubelet: Kubelet, pod: Pod, tree: Path, tmp_path: Path
) -> None:
    wishes = ["--entrypoint", '["/bin/sh", "-c"]', "--cmd", '["id -u; echo $GREETING; cat /etc/linked"]']
    wishes += ["--env", "GREETING=hello", "--user", "1000", "--label", "k=v", "--expose", "80"]
    built = command("build", tree, "--tag", NAME, *wishes).stdout.strip()
    assert run_it(kubelet, pod, NAME) == "1000\nhello\nfrom a tree\n"
    assert command("build", tree, "--tag", "example.test/again:1", *wishes).stdout.strip() == built
    command("export", NAME, "--layout", "-o", tmp_path / "out")
    tool("umoci", "unpack", "--image", f"{tmp_path / 'out'}:{NAME}", tmp_path / "bundle")
    owned = os.stat(tmp_path / "bundle/rootfs/etc/owned")
    assert (owned.st_uid, owned.st_gid) == (1000, 1001)
    assert json.loads(tool("skopeo", "inspect", f"oci:{tmp_path / 'out'}:{NAME}"))["Labels"] == {"k": "v"}


def test_a_container_s_changes_become_a_layer(command: Command, kubelet: Kubelet, pod: Pod, tmp_path: Path) -> None:
    container_id = kubelet.run(pod, "sleep", "1000")
    kubelet.shell(
        container_id, "rm /etc/group; rm -r /home; mkdir /home; echo new > /home/new; ln /home/new /home/also"
    )
    command("commit", container_id[:13], "--tag", NAME)
    command("export", NAME, "--layout", "-o", tmp_path / "out")
    tool("umoci", "unpack", "--image", f"{tmp_path / 'out'}:{NAME}", tmp_path / "bundle")
    root = tmp_path / "bundle/rootfs"
    assert not (root / "etc/group").exists()
    assert (root / "etc/passwd").exists()
    assert sorted(os.listdir(root / "home")) == ["also", "new"], "what lay below the new directory is hidden"
    assert os.stat(root / "home/also").st_ino == os.stat(root / "home/new").st_ino
    assert kubelet.outcome(pod, "cat", "/home/also", name="again", image=NAME)[1] == "new\n"


def test_a_commit_of_nothing_says_so(command: Command) -> None:
    assert "container" in command("commit", "no-such-container", "--tag", NAME, status=1).stderr
