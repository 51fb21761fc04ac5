"""What a node's policy and its verifying programs let in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cri_py.errors import ConfigError, DeadlineExceeded, SignatureValidationFailed, Unavailable
from cri_py.images.reference import parse_ref
from cri_py.images.signatures import Policy, parse_policy
from tests.simulators.registry import OCI_INDEX, File, RegistrySimulator, tar_layer
from tests.unit.images.conftest import OpenImages

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
DIGEST = f"sha256:{'0' * 64}"
LAYER = tar_layer(File("etc/a", b"a"))


def policy(default: Any, **scopes: Any) -> Policy:
    return parse_policy(json.dumps({"default": default, "transports": {"docker": scopes}}).encode(), "/p.json")


def admits(found: Policy, ref: str) -> bool:
    try:
        found.admit(parse_ref(ref))
    except SignatureValidationFailed:
        return False
    return True


@pytest.mark.parametrize(
    ("scope", "fits", "others"),
    [
        ("r.io/team/app:1", ["r.io/team/app:1", f"r.io/team/app:1@{DIGEST}"], ["r.io/team/app:2", "r.io/team/app"]),
        (f"r.io/app@{DIGEST}", [f"r.io/app@{DIGEST}"], ["r.io/app:1"]),
        ("r.io/team/app", ["r.io/team/app:1", f"r.io/team/app@{DIGEST}"], ["r.io/team/apple:1", "r.io/team:1"]),
        ("r.io/team", ["r.io/team/app:1", "r.io/team/a/b"], ["r.io/teams/app", "r.io/x/team"]),
        ("r.io:5000", ["r.io:5000/x"], ["r.io/x", "a.r.io:5000/x"]),
        ("*.r.io", ["a.r.io/x", "a.b.r.io/x"], ["r.io/x", "ar.io/x"]),
        ("docker.io/library", ["busybox", "docker.io/library/x:1"], ["docker.io/team/x"]),
        ("", ["r.io/x", "busybox"], []),
    ],
)
def test_a_scope_is_for_what_it_names(scope: str, fits: list[str], others: list[str]) -> None:
    found = policy(REJECT, **{scope: ACCEPT})
    assert [ref for ref in [*fits, *others] if admits(found, ref)] == fits


def test_the_most_specific_scope_decides_alone() -> None:
    found = policy(REJECT, **{"": REJECT, "r.io": ACCEPT, "r.io/team": REJECT, "r.io/team/app": ACCEPT})
    refs = ["r.io/x", "r.io/team/x", "r.io/team/app:1", "q.io/x"]
    assert [admits(found, ref) for ref in refs] == [True, False, True, False]


@pytest.mark.parametrize("demanded", ["signedBy", "sigstoreSigned", "signedBaseLayer"])
def test_what_has_to_be_signed_is_refused_with_the_way_out(demanded: str) -> None:
    found = policy(ACCEPT, **{"r.io": [*ACCEPT, {"type": demanded, "keyPath": "/key.pub"}]})
    with pytest.raises(
        SignatureValidationFailed, match=rf"^SignatureValidationFailed: /p\.json \(r\.io\) wants r\.io/x:1 {demanded}"
    ) as raised:
        found.admit(parse_ref("r.io/x:1"))
    assert raised.value.code == "UNKNOWN", "the kubelet reads the reason of that status only"
    assert "images.image_verifiers" in raised.value.hint


@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"{", b"[]", b"{}", b"\xff", b"[" * 5000, b'{"default": []}', b'{"default": [{}]}'),
        b'{"default": [{"type": "accept"}]}',
        b'{"default": [{"type": "reject"}], "transport": {}}',
        b'{"default": [{"type": "reject"}], "transports": {"docker": {"r.io": []}}}',
    ],
)
def test_a_policy_that_is_not_understood_is_an_error_that_names_it(document: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^/p\.json: "):
        parse_policy(document, "/p.json")


def test_other_transports_are_not_ours() -> None:
    document = {"default": ACCEPT, "transports": {"docker-daemon": {"": REJECT}, "oci": {"/x": REJECT}}}
    assert admits(parse_policy(json.dumps(document).encode(), "/p"), "busybox")


async def test_a_policy_counts_at_the_next_pull_for_what_is_here_too(
    open_images: OpenImages, registry: RegistrySimulator, tmp_path: Path
) -> None:
    registry.push("app", "1", [LAYER])
    file, ref = tmp_path / "policy.json", f"{registry.host}/app:1"
    async with open_images(signature_policy=str(file)) as images:
        file.write_text(json.dumps({"default": REJECT}))
        with pytest.raises(SignatureValidationFailed, match=f"{file} .default. rejects {ref}"):
            await images.pull(ref, None)
        assert registry.asked == []
        file.write_text(json.dumps({"default": REJECT, "transports": {"docker": {registry.host: ACCEPT}}}))
        image = await images.pull(ref, None)
        file.write_text("{")
        with pytest.raises(ConfigError, match=str(file)):
            await images.pull(ref, None)
        file.unlink()
        assert await images.pull(ref, None) == image


@pytest.fixture
def verifiers(tmp_path: Path) -> Path:
    path = tmp_path / "verifiers"
    path.mkdir()
    return path


def install(directory: Path, name: str, script: str, mode: int = 0o755) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(mode)


async def test_programs_see_what_is_pulled_and_let_it_in(
    open_images: OpenImages, registry: RegistrySimulator, verifiers: Path, tmp_path: Path
) -> None:
    pushed = registry.push("app", "1", [LAYER])
    for name in ("1", "2"):
        install(verifiers, name, f'echo "$@" > {tmp_path}/{name}-told; cat > {tmp_path}/{name}-read')
    async with open_images(image_verifiers=str(verifiers)) as images:
        await images.pull(f"{registry.host}/app:1", None)
    size = len(registry.manifests["app", pushed.index][0])
    for name in ("1", "2"):
        told = (tmp_path / f"{name}-told").read_text().split()
        assert told[:4] == ["-name", f"{registry.host}/app:1", "-digest", pushed.index]
        assert told[4:] == ["-stdin-media-type", "application/vnd.oci.descriptor.v1+json"]
        read = json.loads((tmp_path / f"{name}-read").read_bytes())
        assert read == {"mediaType": OCI_INDEX, "digest": pushed.index, "size": size}


async def test_a_program_refuses_what_is_new_and_what_is_here(
    open_images: OpenImages, registry: RegistrySimulator, verifiers: Path
) -> None:
    pushed = registry.push("app", "1", [LAYER])
    ref = f"{registry.host}/app:1"
    async with open_images(image_verifiers=str(verifiers)) as images:
        install(verifiers, "no", "printf 'no signature\\nby us'; exit 1")
        with pytest.raises(SignatureValidationFailed, match=rf"{verifiers}/no refuses .* \(1\): no signature by us"):
            await images.pull(ref, None)
        assert (images.list(), registry.count("/blobs/")) == ([], 0)
        (verifiers / "no").unlink()
        assert (await images.pull(ref, None)).id == pushed.config
        install(verifiers, "no", "exit 1")
        with pytest.raises(SignatureValidationFailed, match="it says nothing"):
            await images.pull(ref, None)


@pytest.mark.parametrize(("mode", "kind"), [(0o755, DeadlineExceeded), (0o644, Unavailable)])
async def test_a_program_that_hangs_or_is_none_lets_nothing_in(
    open_images: OpenImages, registry: RegistrySimulator, verifiers: Path, mode: int, kind: type[Exception]
) -> None:
    registry.push("app", "1", [LAYER])
    install(verifiers, "it", "exec sleep 100", mode)
    async with open_images(image_verifiers=str(verifiers), image_verifier_timeout_s=0.3) as images:
        with pytest.raises(kind, match=f"{verifiers}/it"):
            await images.pull(f"{registry.host}/app:1", None)
        assert images.list() == []
