"""The documents of images that are made here, from what others have made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cri_py.errors import DataLoss, FailedPrecondition
from cri_py.images.building import DOCKER_LAYER, OCI_LAYER, digest_of, extend
from cri_py.images.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    Manifest,
    parse_config,
    parse_manifest,
)
from cri_py.images.resolving import Resolved
from cri_py.model import Digest

LAYER = Digest("sha256:" + "a" * 64)
NEW = Digest("sha256:" + "b" * 64)


def image(
    config: bytes, layers: int = 0, *, docker: bool = False, config_type: str = OCI_CONFIG, **more: Any
) -> Resolved:
    """An image as a registry may serve it."""
    media_type, config_type = (DOCKER_MANIFEST, DOCKER_CONFIG) if docker else (OCI_MANIFEST, config_type)
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": config_type, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": OCI_LAYER, "digest": LAYER, "size": 3}] * layers,
        **more,
    }
    content = json.dumps(document).encode()
    manifest = parse_manifest(content, "", "app")
    assert isinstance(manifest, Manifest)
    documents = {digest_of(content): content, digest_of(config): config}
    parsed = None if manifest.artifact_type else parse_config(config, "app")
    return Resolved(digest_of(content), documents, manifest, parsed)


def configured(**fields: Any) -> bytes:
    return json.dumps({"os": "linux", "architecture": "amd64", **fields}).encode()


def extended(below: Resolved) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config, as written."""
    made = extend(below, NEW, 7, "commit")
    return json.loads(made.documents[made.digest]), json.loads(made.documents[made.manifest.config.digest])


def test_what_an_image_says_stays_and_what_is_not_so_any_more_goes() -> None:
    rootfs = {"type": "layers", "diff_ids": [LAYER]}
    config = configured(rootfs=rootfs, created="2020", history=[{"created_by": "a"}], config={"Cmd": ["x"]}, mine=[1])
    manifest, written = extended(image(config, 1, subject={"digest": LAYER}, annotations={"a": "b"}))
    assert [layer["digest"] for layer in manifest["layers"]] == [LAYER, NEW]
    assert written["rootfs"] == {"type": "layers", "diff_ids": [LAYER, NEW]}
    assert written["history"] == [{"created_by": "a"}, {"created_by": "commit"}]
    assert (written["config"], written["mine"]) == ({"Cmd": ["x"]}, [1])
    assert not {"subject", "annotations", "created"}.intersection((*manifest, *written))


@pytest.mark.parametrize("docker", [True, False])
def test_the_media_types_are_those_of_the_image(docker: bool) -> None:
    manifest, _ = extended(image(configured(), docker=docker))
    expected = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER) if docker else (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER)
    assert (manifest["mediaType"], manifest["config"]["mediaType"], manifest["layers"][0]["mediaType"]) == expected


@pytest.mark.parametrize("fields", [{}, {"rootfs": None}, {"rootfs": {}}, {"history": None}, {"history": {"a": 1}}])
def test_a_config_that_leaves_out_what_is_empty_gets_its_first_layer(fields: dict[str, Any]) -> None:
    _, written = extended(image(configured(**fields)))
    assert written["rootfs"] == {"type": "layers", "diff_ids": [NEW]}
    assert written["history"] == [{"created_by": "commit"}]


def test_an_artifact_gets_no_layer() -> None:
    with pytest.raises(FailedPrecondition, match="application/x"):
        extend(image(b"{}", config_type="application/x"), NEW, 7, "")


def test_no_more_layers_than_overlayfs_stacks() -> None:
    config = configured(rootfs={"diff_ids": [LAYER] * 500})
    with pytest.raises(FailedPrecondition, match="500 layers"):
        extend(image(config, 500), NEW, 7, "")


def test_a_config_that_only_a_lax_reader_takes_is_refused() -> None:
    with pytest.raises(DataLoss):
        extend(image(configured()[:-1] + b', "n": ' + b"1" * 5000 + b"}"), NEW, 7, "")
