from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri_py.errors import CriError, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from cri_py.images import manifest as m
from cri_py.model import Digest

DIGEST = "sha256:" + "a" * 64
AMD64 = m.Platform("linux", "amd64")


def described(**more: Any) -> dict[str, Any]:
    return {"mediaType": m.OCI_CONFIG, "digest": DIGEST, "size": 7, **more}


def entry(platform: str, digit: str = "b") -> dict[str, Any]:
    os, architecture, variant = [*platform.split("/"), ""][:3]
    named = {"os": os, "architecture": architecture, "variant": variant}
    return {"mediaType": m.OCI_MANIFEST, "digest": "sha256:" + digit * 64, "size": 9, "platform": named}


def parsed(document: Any, content_type: str = "") -> m.Index | m.Manifest:
    return m.parse_manifest(json.dumps(document).encode(), content_type, "the ref")


def index(*entries: dict[str, Any]) -> m.Index:
    found = parsed({"schemaVersion": 2, "manifests": list(entries)})
    assert isinstance(found, m.Index)
    return found


@pytest.mark.parametrize("media_type", [m.OCI_MANIFEST, m.DOCKER_MANIFEST, ""])
def test_images_of_both_families_are_read(media_type: str) -> None:
    found = parsed({"schemaVersion": 2, "mediaType": media_type, "config": described(), "layers": [described()]})
    descriptor = m.Descriptor(m.OCI_CONFIG, Digest(DIGEST), 7)
    assert found == m.Manifest(descriptor, (descriptor,))


@pytest.mark.parametrize("media_type", [m.OCI_INDEX, f"{m.DOCKER_LIST}; charset=utf-8"])
def test_indexes_of_both_families_are_read(media_type: str) -> None:
    assert isinstance(parsed({"schemaVersion": 2, "manifests": []}, media_type), m.Index)


def test_schema_1_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidArgument, match=r"schema 1.*push it again"):
        parsed({"schemaVersion": 1, "fsLayers": []})


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"schemaVersion": 2, "config": described()},
        {"schemaVersion": 2, "manifests": [], "layers": []},
        {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "config": described(), "layers": []},
        {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "manifests": []},
        {"schemaVersion": 2, "config": described(size=-1), "layers": []},
        {"schemaVersion": 2, "config": described(digest="sha256:../../etc"), "layers": []},
        {"schemaVersion": 2, "config": described(size="7"), "layers": []},
    ],
)
def test_what_is_no_manifest_is_refused(document: Any) -> None:
    with pytest.raises(DataLoss, match="the ref"):
        parsed(document)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_manifest_or_a_plain_refusal(content: bytes) -> None:
    with pytest.raises(CriError):
        m.parse_manifest(content, "", "the ref")


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["windows/amd64", "linux/arm64", "linux/amd64"], 2),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], 1),
        ("linux/arm64/v8", ["linux/arm64"], 0),
        ("linux/arm64", ["linux/arm64/v8"], 0),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v6"], 1),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
        ("linux/amd64", ["linux/arm", "linux/386"], 1),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/arm64/v8", ["linux/arm/v6", "linux/arm/v7"], 1),
    ],
)
def test_the_nearest_platform_that_runs_here_is_chosen(wanted: str, offered: list[str], chosen: int) -> None:
    entries = [entry(platform, "0123456789"[position]) for position, platform in enumerate(offered)]
    platform = m.Platform(*wanted.split("/"))
    assert m.fitting(index(*entries), platform, "r")[0].digest == entries[chosen]["digest"]


def test_a_missing_platform_is_an_error_that_lists_what_is_there() -> None:
    with pytest.raises(NotFound, match=r"linux/amd64.*linux/arm64/v8, windows/amd64"):
        m.fitting(index(entry("linux/arm64/v8"), entry("windows/amd64")), AMD64, "r")


def test_an_error_lists_no_more_than_people_read() -> None:
    offered = [f"linux/arch{number}" for number in range(1000)] + [f"linux/{'x' * 100_000}"] * 2 + ["linux/arch1"] * 9
    with pytest.raises(NotFound, match="arch19 and 981 more") as raised:
        m.fitting(index(*map(entry, offered)), AMD64, "the ref")
    assert len(str(raised.value)) < 1000
    config = m.parse_config(json.dumps({"os": "linux", "architecture": "x" * 100_000}).encode(), "the ref")
    described_config = m.Manifest(m.Descriptor("", Digest(DIGEST), 7), ())
    with pytest.raises(FailedPrecondition) as refused:
        m.check_config(config, described_config, AMD64, "the ref")
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("where", ["config", "layer", "artifact", "manifest"])
@pytest.mark.parametrize("media_type", ["x" * 256, "text/\x1b[2J"])
def test_what_can_not_be_a_media_type_is_refused(where: str, media_type: str) -> None:
    wicked = {"config": m.OCI_CONFIG, "layer": "text/plain", "artifact": "text/plain", "manifest": m.OCI_MANIFEST}
    wicked[where] = media_type
    document = {
        "schemaVersion": 2,
        "mediaType": wicked["manifest"],
        "artifactType": wicked["artifact"],
        "config": described(mediaType=wicked["config"] if where != "artifact" else "application/vnd.oci.empty.v1+json"),
        "layers": [described(mediaType=wicked["layer"])],
    }
    with pytest.raises(DataLoss, match="which can't be one"):
        parsed(document)


def test_an_entry_without_a_platform_is_the_last_resort() -> None:
    bare = {"mediaType": m.OCI_INDEX, "digest": DIGEST, "size": 1}
    assert m.fitting(index(bare, entry("linux/amd64")), AMD64, "r")[0].digest != DIGEST
    assert m.fitting(index(bare, entry("linux/s390x")), AMD64, "r")[0].digest == DIGEST


def test_an_artifact_is_named_for_what_it_is() -> None:
    found = parsed({"config": described(mediaType="application/vnd.helm.config.v1+json"), "layers": []})
    assert isinstance(found, m.Manifest)
    assert found.artifact_type == "application/vnd.helm.config.v1+json"
    named = parsed(
        {
            "config": described(mediaType="application/vnd.oci.empty.v1+json"),
            "layers": [],
            "artifactType": "application/vnd.example",
        }
    )
    assert isinstance(named, m.Manifest)
    assert named.artifact_type == "application/vnd.example"


def test_a_container_image_is_no_artifact() -> None:
    found = parsed({"config": described(mediaType=m.OCI_CONFIG), "layers": []})
    assert isinstance(found, m.Manifest)
    assert found.artifact_type == ""


def test_a_config_gives_what_a_container_is_made_from() -> None:
    content = {
        "os": "linux",
        "architecture": "x86_64",
        "config": {"User": "1:2", "Env": ["A=b"], "Cmd": None, "StopSignal": "SIGQUIT", "Volumes": {"/v": {}},
                   "WorkingDir": "/w", "Labels": {"l": "m"}, "Entrypoint": ["/e"], "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "history": [{}],
    }  # fmt: skip
    found = m.parse_config(json.dumps(content).encode(), "r")
    config = found.config
    assert found.platform == AMD64
    assert found.diff_ids == (DIGEST,)
    assert (config.user, config.env, config.cmd, config.entrypoint) == ("1:2", ("A=b",), (), ("/e",))
    assert (config.working_dir, config.stop_signal, config.labels) == ("/w", "SIGQUIT", {"l": "m"})
    assert config.volumes == ("/v",)


def test_a_config_that_disagrees_with_its_manifest_is_refused() -> None:
    manifest = m.Manifest(m.Descriptor("", Digest(DIGEST), 1), (m.Descriptor("", Digest(DIGEST), 1),))
    with pytest.raises(DataLoss, match="names 0 layers, its manifest 1"):
        m.check_config(m.parse_config(b"{}", "r"), manifest, AMD64, "r")


def test_an_image_for_another_platform_is_refused() -> None:
    config = m.parse_config(b'{"os":"linux","architecture":"s390x"}', "r")
    with pytest.raises(FailedPrecondition, match=r"linux/s390x.*linux/amd64"):
        m.check_config(config, m.Manifest(m.Descriptor("", Digest(DIGEST), 1), ()), AMD64, "r")


@given(st.lists(st.from_regex(r"sha256:[a-f0-9]{64}", fullmatch=True).map(Digest), max_size=5))
def test_chain_ids_hash_the_stack_below(diff_ids: list[Digest]) -> None:
    chain = m.chain_ids(diff_ids)
    assert list(chain[:1]) == diff_ids[:1]
    for position in range(1, len(diff_ids)):
        text = f"{chain[position - 1]} {diff_ids[position]}"
        assert chain[position] == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
