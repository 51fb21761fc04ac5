"""Archives of images: what they hold, what they must not be believed, and what is written."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from cri_py.errors import CriError, DataLoss, InvalidArgument
from cri_py.images.archive import DOCKER_LAYER, FULL_NAME, NAME, Archive, Exported, write_archive
from cri_py.images.manifest import DOCKER_MANIFEST, MANIFEST_LIMIT, Descriptor, Manifest, parse_manifest
from cri_py.model import Digest
from tests.simulators.registry import OCI_CONFIG, OCI_MANIFEST, File, directory, hard_link, sha256, symlink, tar_layer

LAYER = tar_layer(File("etc/motd", b"hello"))
CONFIG = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha256(LAYER)]}}).encode()


def described(content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(content), "size": len(content), **more}


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(CONFIG, OCI_CONFIG),
        "layers": [described(LAYER, "application/vnd.oci.image.layer.v1.tar")],
    }
).encode()


def blob(content: bytes) -> File:
    return File(f"blobs/{sha256(content).replace(':', '/')}", content)


def index(*entries: Mapping[str, Any]) -> File:
    return File("index.json", json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode())


def entry(**annotations: str) -> dict[str, Any]:
    return described(MANIFEST, OCI_MANIFEST, annotations=annotations)


def saved(*entries: Mapping[str, Any]) -> File:
    return File("manifest.json", json.dumps(list(entries)).encode())


def archive(*members: File) -> Archive:
    return Archive(io.BytesIO(tar_layer(*members)), "images.tar")


# ------------------------------------------------------------------------ read


def test_an_oci_layout_tells_its_images_and_gives_their_blobs() -> None:
    found = archive(
        File("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        index(entry(**{NAME: "registry.test/app:1"}), entry(**{FULL_NAME: "registry.test/app:2"}), entry()),
        directory("blobs/sha256"),
        *(blob(each) for each in (MANIFEST, CONFIG, LAYER)),
    )
    assert [image.names for image in found.images] == [("registry.test/app:1",), ("registry.test/app:2",), ()]
    assert {image.digest for image in found.images} == {sha256(MANIFEST)}
    assert found.document(Digest(sha256(MANIFEST)), MANIFEST_LIMIT) == MANIFEST
    assert found.blob(Digest(sha256(LAYER))).read(1 << 20) == LAYER


@pytest.mark.parametrize(
    ("name", "full", "expected"),
    [
        ("1", "registry.test/app:1", "registry.test/app:1"),  # containerd and docker
        ("registry.test/app:1", "registry.test/app:1", "registry.test/app:1"),
        ("registry.test/app:1", "", "registry.test/app:1"),  # skopeo
        ("re", "registry.test/app:1", "re"),  # umoci repack of what containerd wrote
    ],
)
def test_a_name_counts_where_it_is_the_image_s_own(name: str, full: str, expected: str) -> None:
    annotations = {NAME: name} | ({FULL_NAME: full} if full else {})
    found = archive(index(entry(**annotations)), blob(MANIFEST))
    assert found.images[0].names == (expected,)


def test_what_docker_saves_becomes_manifests_that_name_its_layers() -> None:
    found = archive(
        File("config.json", CONFIG),
        File("aaaa/layer.tar", LAYER),
        symlink("bbbb/layer.tar", "../aaaa/layer.tar"),
        hard_link("cccc/layer.tar", "bbbb/layer.tar"),
        saved(
            {"Config": "config.json", "RepoTags": ["app:1", "app:2"], "Layers": ["aaaa/layer.tar", "cccc/layer.tar"]},
            {"Config": "config.json", "RepoTags": None, "Layers": ["bbbb/layer.tar"]},
        ),
    )
    first, second = found.images
    assert (first.names, first.media_type, second.names) == (("app:1", "app:2"), DOCKER_MANIFEST, ())
    manifest = parse_manifest(found.document(first.digest, MANIFEST_LIMIT), first.media_type, "app")
    assert isinstance(manifest, Manifest)
    assert manifest.config.digest == sha256(CONFIG)
    assert manifest.layers == (Descriptor(DOCKER_LAYER, Digest(sha256(LAYER)), len(LAYER)),) * 2
    assert found.blob(manifest.layers[0].digest).read(1 << 20) == LAYER
    assert found.document(manifest.config.digest, 1 << 20) == CONFIG


def test_names_with_a_dot_in_front_are_the_same() -> None:
    found = archive(
        File("./index.json", index(entry()).content), File(f"./{blob(MANIFEST).name}", MANIFEST), directory(".")
    )
    assert found.document(found.images[0].digest, MANIFEST_LIMIT) == MANIFEST


# ---------------------------------------------------------------------- wicked


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((), "is empty"),
        ((File("etc/motd", b"hi"),), "neither index.json nor manifest.json"),
        ((File("index.json", b"{"),), "index.json"),
        ((File("index.json", b"[]"),), "index.json"),
        ((File("index.json", b'{"manifests": 7}'),), "index.json"),
        ((File("index.json", b"[" * 100_000),), "index.json"),
        ((File("index.json", MANIFEST),), "no index"),
        ((index(described(MANIFEST, OCI_MANIFEST) | {"digest": "sha256:../../../etc/passwd"}),), "no digest"),
        ((File("index.json", b" " * (MANIFEST_LIMIT + 1)),), "more than"),
        ((symlink("index.json", "/etc/hostname"),), "no file index.json"),
        ((symlink("index.json", "../index.json"),), "no file index.json"),
        ((symlink("index.json", "index.json"),), "no file index.json"),
        ((directory("index.json"),), "no file index.json"),
        ((File("../index.json", b"{}"), File("../other")), "leads out"),
        ((File("/index.json", b"{}"),), "leads out"),
        ((File("manifest.json", b'[{"Config": 7}]'),), "manifest.json"),
        ((saved({"Config": "/etc/passwd", "Layers": []}),), "no file /etc/passwd"),
        ((saved({"Config": "../../etc/passwd", "Layers": []}),), "no file ../../etc/passwd"),
        ((saved({"Config": "c.json", "Layers": ["gone.tar"]}), File("c.json", CONFIG)), "no file gone.tar"),
    ],
)
def test_a_wicked_archive_is_refused_by_an_error_that_names_the_place(members: tuple[File, ...], said: str) -> None:
    with pytest.raises((DataLoss, InvalidArgument), match=r"images\.tar") as refused:
        archive(*members)
    assert said in str(refused.value)


@pytest.mark.parametrize("another", [File("index.json", b"another"), blob(MANIFEST), directory("index.json")])
def test_a_name_that_comes_twice_is_refused(another: File) -> None:
    members = (index(entry()), blob(MANIFEST), another)
    with pytest.raises(DataLoss, match=another.name):
        archive(*members)


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("member")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, b"?"])
@pytest.mark.parametrize("size", [-1024, 100 << 30, 1 << 80])
def test_a_size_that_lies_is_refused_before_any_memory_is_taken(kind: bytes, size: int) -> None:
    with pytest.raises(CriError, match=r"images\.tar"):
        Archive(io.BytesIO(header(kind, size) + bytes(4096)), "images.tar")


def test_headers_that_would_fill_the_memory_are_refused() -> None:
    pax = header(tarfile.XHDTYPE, 64 << 20) + bytes(64 << 20)
    nested = (header(tarfile.GNUTYPE_LONGNAME, 1) + b"n".ljust(512, b"\0")) * 3000
    names = tar_layer(*(File(f"{number}{'n' * 500_000}") for number in range(40)))
    repeated = header(tarfile.DIRTYPE, 0) * 100_001
    for content, said in ((pax, "extended"), (nested, "is empty"), (names, "too long"), (repeated, "too many")):
        with pytest.raises(CriError, match=said):
            Archive(io.BytesIO(content), "images.tar")


def test_a_file_with_its_holes_left_out_is_refused() -> None:
    with pytest.raises(DataLoss, match=r"index\.json.*holes"):
        Archive(io.BytesIO(gnu_sparse("index.json")), "images.tar")


def gnu_sparse(name: str) -> bytes:
    """A file of 1 MiB in GNU's old sparse format, of which one block is stored."""
    member = tarfile.TarInfo(name)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % (1 << 20)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512 + 1024)


def test_a_layer_that_many_images_share_is_read_once() -> None:
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.taken += len(found)
            return found

    layer = bytes(1 << 20)
    images = [{"Config": "config.json", "Layers": ["layer.tar", "same.tar"] * 3} for _ in range(3)]
    members = (File("config.json", CONFIG), File("layer.tar", layer), hard_link("same.tar", "layer.tar"))
    file = Counted(tar_layer(*members, saved(*images)))
    Archive(file, "images.tar")
    assert file.taken < 2 * len(layer)


def test_more_layers_than_can_be_stacked_and_more_images_than_are_of_use_are_refused() -> None:
    members = (File("config.json", CONFIG), File("layer.tar", LAYER))
    with pytest.raises(DataLoss, match="501 layers"):
        archive(*members, saved({"Config": "config.json", "Layers": ["layer.tar"] * 501}))
    images = [{"Config": "config.json", "Layers": ["layer.tar"] * (500 - number)} for number in range(400)]
    with pytest.raises(InvalidArgument, match="too many images"):
        archive(*members, saved(*images))


def test_a_missing_and_a_damaged_blob_are_told() -> None:
    found = archive(index(entry()), File(blob(MANIFEST).name, b"something else"))
    with pytest.raises(DataLoss, match="damaged"):
        found.document(Digest(sha256(MANIFEST)), MANIFEST_LIMIT)
    with pytest.raises(DataLoss, match=sha256(LAYER).partition(":")[2]):
        found.blob(Digest(sha256(LAYER)))


def read_all(content: bytes, digests: list[Digest]) -> None:
    found = Archive(io.BytesIO(content), "images.tar")
    for digest in digests:
        found.document(digest, 1 << 20)


def test_an_archive_that_was_cut_is_refused_wherever_it_was() -> None:
    whole = tar_layer(index(entry()), blob(MANIFEST), blob(CONFIG), blob(LAYER))
    digests = [Digest(sha256(each)) for each in (MANIFEST, CONFIG, LAYER)]
    end = len(whole.rstrip(b"\0"))
    for length in range(0, end - 512, 512):
        with pytest.raises(CriError):
            read_all(whole[:length], digests)


def test_what_is_no_tar_is_told() -> None:
    for content in (b"", b"no tar", b"x" * 4096):
        with pytest.raises(CriError, match=r"images\.tar"):
            Archive(io.BytesIO(content), "images.tar")


# --------------------------------------------------------------------- written


def exported(*names: str) -> Exported:
    root = Descriptor(OCI_MANIFEST, Digest(sha256(MANIFEST)), len(MANIFEST))
    blobs = tuple((Digest(sha256(each)), len(each)) for each in (MANIFEST, CONFIG, LAYER))
    return Exported(names, root, blobs[1][0], (blobs[2][0],), blobs)


def written(*images: Exported) -> bytes:
    contents = {sha256(each): each for each in (MANIFEST, CONFIG, LAYER)}
    return b"".join(write_archive(images, lambda digest: io.BytesIO(contents[digest])))


def test_what_is_written_is_read_again_byte_for_byte() -> None:
    found = Archive(io.BytesIO(written(exported("registry.test/app:1"), exported())), "images.tar")
    assert [image.names for image in found.images] == [("registry.test/app:1",), ()]
    for content in (MANIFEST, CONFIG, LAYER):
        assert found.document(Digest(sha256(content)), 1 << 20) == content


def test_the_same_images_are_the_same_bytes_and_each_blob_is_written_once() -> None:
    content = written(exported("registry.test/app:1", "registry.test/app:2"))
    assert content == written(exported("registry.test/app:1", "registry.test/app:2"))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()
        saved_form = json.load(tar.extractfile("manifest.json") or io.BytesIO())
    assert len(names) == len(set(names)) == 6
    assert saved_form[0]["RepoTags"] == ["registry.test/app:1", "registry.test/app:2"]
    assert saved_form[0]["Layers"] == [blob(LAYER).name]
    assert len(content) % 512 == 0
