"""Layers as real programs write them: GNU tar's sparse formats, compressed bombs, and images of very many layers."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.config import ImagesConfig
from cri_py.errors import CriError, DataLoss, ResourceExhausted
from cri_py.images import layers
from cri_py.images.layers import Unpacked, measure, unpack
from cri_py.images.service import Images
from cri_py.model import Digest, Nanos
from cri_py.state.store import Store
from tests.simulators.registry import File, RegistrySimulator, directory, sha256, tar_layer

pytestmark = pytest.mark.root

zstd = importlib.import_module("backports.zstd")
ROOT = Path(__file__).resolve().parents[2]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}
MIB = 1 << 20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.mkdir()
    return path


def place(content: bytes, target: Path, packed: bytes | None = None) -> Unpacked:
    blob = packed if packed is not None else content
    return unpack(
        io.BytesIO(blob),
        str(target),
        size=len(blob),
        diff_id=Digest(sha256(content)),
        lowest=True,
        subject="layer 1",
        watch=lambda _: None,
    )


# ------------------------------------------------------------------- sparse


SPARSE = {
    "gnu": ("--format=gnu",),
    "pax 0.0": ("--format=posix", "--sparse-version=0.0"),
    "pax 0.1": ("--format=posix", "--sparse-version=0.1"),
    "pax 1.0": ("--format=posix", "--sparse-version=1.0"),
}


def sparse_archive(tmp_path: Path, form: str, stretches: int) -> tuple[bytes, bytes]:
    """An archive by GNU tar with a sparse file between two plain ones; and what the sparse file holds."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"before")
    with open(source / "holes", "wb") as file:
        for number in range(stretches):
            file.seek((2 * number + 1) * 65536)
            file.write(bytes([number % 255 + 1]) * 4096)
        file.truncate((2 * stretches + 3) * 65536)
    (source / "z").write_bytes(b"after")
    command = ["tar", "--create", "--sparse", *SPARSE[form], "--directory", str(source), "a", "holes", "z"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=250)
    return done.stdout, (source / "holes").read_bytes()


@pytest.mark.parametrize("stretches", [0, 1, 3, 60])
@pytest.mark.parametrize("form", SPARSE)
def test_sparse_files_of_every_form_keep_their_holes(target: Path, form: str, stretches: int) -> None:
    archive, content = sparse_archive(target.parent, form, stretches)
    unpacked = place(archive, target)
    assert (target / "holes").read_bytes() == content
    assert ((target / "a").read_bytes(), (target / "z").read_bytes()) == (b"before", b"after")
    assert (target / "holes").stat().st_blocks * 512 <= (stretches + 1) * 8192
    assert measure(str(target)) == (unpacked.inodes, unpacked.file_bytes)


@pytest.mark.parametrize("form", SPARSE)
def test_a_damaged_map_is_refused_or_stays_inside(target: Path, form: str) -> None:
    archive, _ = sparse_archive(target.parent, form, 3)
    for position in range(0, min(len(archive), 6000), 37):
        damaged = bytearray(archive)
        damaged[position] ^= 0x05
        try:
            place(bytes(damaged), target)
        except CriError:
            continue
    assert set(os.listdir(target.parent)) == {"layer", "source"}


@pytest.mark.parametrize(
    "words",
    [
        {"map": "0,5", "size": "4"},  # beyond the end
        {"map": "4,1,0,4", "size": "9"},  # backwards
        {"map": "0,3,2,2", "size": "9"},  # one over the other
        {"map": "0,3", "size": "9"},  # less than is stored
        {"map": "0", "size": "9"},
        {"map": "0,-5", "size": "9"},
        {"map": "0,5"},
        {"map": "0,5", "size": str(1 << 60)},
        {"major": "1", "minor": "0", "realsize": "9"},
    ],
)
def test_a_wicked_map_is_refused(target: Path, words: dict[str, str]) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo("sparse")
        header.size = 5
        header.pax_headers = {f"GNU.sparse.{key}": text for key, text in words.items()}
        archive.addfile(header, io.BytesIO(b"12345"))
    with pytest.raises(DataLoss, match="sparse"):
        place(raw.getvalue(), target)


# -------------------------------------------------------------------- bombs


@pytest.mark.parametrize("packer", PACKERS)
def test_a_bomb_is_refused_before_it_fills_the_disk(target: Path, monkeypatch: pytest.MonkeyPatch, packer: str) -> None:
    monkeypatch.setattr(layers, "BOMB_FLOOR", MIB)
    content = tar_layer(File("zeros", bytes(64 * MIB)))
    with pytest.raises(ResourceExhausted, match="compression bomb"):
        place(content, target, PACKERS[packer](content))
    assert sum(path.stat().st_size for path in target.iterdir()) < 16 * MIB


@pytest.mark.parametrize("packer", PACKERS)
def test_very_many_members_are_read_in_time(target: Path, packer: str) -> None:
    content = tar_layer(File("f", b"x" * 50_000))
    place(content, target, b"".join(PACKERS[packer](content[at : at + 5]) for at in range(0, len(content), 5)))
    assert (target / "f").stat().st_size == 50_000


def test_a_window_beyond_what_zstd_allows_by_default_is_refused(target: Path) -> None:
    content = tar_layer(File("f", os.urandom(100)))
    frame = struct.pack("<IBB", 0xFD2FB528, 0x00, (31 - 10) << 3)  # a window of 2 GiB (RFC 8878 §3.1.1.1.2)
    with pytest.raises(DataLoss, match="damaged"):
        place(content, target, frame + zstd.compress(content)[6:])


@pytest.mark.parametrize("headers", [1, 40])
def test_what_a_layer_says_of_all_its_entries_is_bounded(target: Path, headers: int) -> None:
    """Every entry has it applied, so it costs memory once and time a million times."""
    content = b"".join(universal(f"SCHILY.xattr.user.{n}", "x" * (32_000 // headers)) for n in range(headers))
    with pytest.raises(DataLoss, match="says more than 16 KiB of all its entries"):
        place(content + tar_layer(File("f")), target)
    place(universal("SCHILY.xattr.user.note", "hi") + universal("comment", "c" * 9000) + tar_layer(File("f")), target)
    assert os.getxattr(target / "f", "user.note") == b"hi"


def universal(key: str, text: str) -> bytes:
    """A PAX header for all that follows."""
    return tarfile.TarInfo.create_pax_global_header({key: text})


# --------------------------------------------------------------- many of a kind


def test_memory_does_not_grow_with_the_entries_of_a_layer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.entries", "--count", "20000", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["inodes"] == 20_000 - 1000 + 1, "hard links are no inodes"
    assert told["grown_kib"] < 2048, "an entry that is kept takes half a kilobyte"


def test_memory_does_not_grow_with_very_many_directories(tmp_path: Path) -> None:
    shape = ("--count", "20000", "--every", "1", "--most", "4096")
    command = [sys.executable, "-m", "tests.bench.entries", *shape, "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["inodes"] == 20_000 + 1
    assert told["grown_kib"] < 3000, "all of them take more than four thousand"


def test_counts_follow_what_is_replaced(target: Path) -> None:
    content = tar_layer(
        *(File("f", b"x" * 9000), File("f", b"y"), directory("d"), File("d/e/f", b"z" * 5000), File("d")),
        *(File("g", b"g" * 4097), File("h", kind=tarfile.LNKTYPE, link="g"), File("g", b"")),
        *(File("s", kind=tarfile.SYMTYPE, link="f"), directory("s"), File("s/t", b"t")),
    )
    unpacked = place(content, target)
    assert measure(str(target)) == (unpacked.inodes, unpacked.file_bytes)
    assert (unpacked.inodes, unpacked.file_bytes) == (7, 1 + 4097 + 1)


MOUNT = """
import json, os, sys
from cri_py.runtime.overlay import mount_root
lower, work = json.loads(sys.argv[1]), sys.argv[2]
for name in ("upper", "work", "target"):
    os.mkdir(f"{work}/{name}")
mount_root({"lower": lower, "upper": f"{work}/upper", "work": f"{work}/work"}, f"{work}/target")
print(*sorted(os.listdir(f"{work}/target")), open(f"{work}/target/who").read())
"""


@pytest.mark.parametrize("number", [200])
async def test_an_image_of_very_many_layers_is_pulled_and_mounted(tmp_path: Path, number: int) -> None:
    store = Store(str(tmp_path / "images.db"), durable=True)
    config = ImagesConfig(certs_d=(), registries_conf="", auth_files=())
    images = Images(str(tmp_path / "images"), config, store, lambda: (), lambda: Nanos(1))
    try:
        with RegistrySimulator() as registry:
            registry.push("deep", "1", [tar_layer(File(f"f{n:03}"), File("who", b"%d" % n)) for n in range(number)])
            await images.start()
            image = await images.pull(f"{registry.host}/deep:1", None)
        lower = images.lower_dirs(image.id)
        assert await images.check(deep=True) == []
    finally:
        await images.close()
        store.close()
    seen = _mounted(lower, tmp_path)
    assert seen.split() == [*(f"f{n:03}" for n in range(number)), "who", str(number - 1)]


def _mounted(lower: tuple[str, ...], tmp_path: Path) -> str:
    work = tmp_path / "mount"
    work.mkdir()
    # upper and work have to be on a filesystem that overlayfs takes, which the test's own need not be
    script = 'mount -t tmpfs tmpfs "$1" && exec "$2" -c "$3" "$4" "$1"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "-", work, sys.executable, MOUNT]
    done = subprocess.run([*command, json.dumps(lower)], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "members",
    [
        [File("d", kind=tarfile.CHRTYPE, device=(1 << 40, 1))],
        [File("f", xattrs={"user.a\0b": "x"})],
        [directory("d", xattrs={"user.a\0b": "x"})],
    ],
)
def test_what_no_filesystem_takes_is_refused(target: Path, members: list[File]) -> None:
    with pytest.raises(DataLoss, match="layer 1"):
        place(tar_layer(*members, form=tarfile.GNU_FORMAT if members[0].device[0] else tarfile.PAX_FORMAT), target)


@pytest.mark.parametrize(
    "layer", [[File("f", xattrs={"security.capability": "no"})], [directory("d", xattrs={"user.a": "x" * 70_000})]]
)
def test_an_attribute_that_no_file_can_have_is_the_layers_fault(target: Path, layer: list[File]) -> None:
    with pytest.raises(DataLoss, match=r"has the attribute b'(security\.capability|user\.a)', which no file can have"):
        place(tar_layer(*layer), target)
