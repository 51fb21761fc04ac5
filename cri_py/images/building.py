"""The documents of images that are made here: config and manifest for a layer of files. Pure.

OCI image-spec config.md and manifest.md. Nothing tells the time or the machine, so that equal files and wishes are the
same image, with the same id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cri_py.errors import DataLoss, FailedPrecondition, InvalidArgument
from cri_py.images.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    Platform,
    parse_config,
    parse_manifest,
)
from cri_py.images.resolving import LAYERS_MAX, Resolved
from cri_py.model import Digest

OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_PORT: Final = re.compile(r"(\d{1,5})(?:/(tcp|udp|sctp))?")
_PLATFORM: Final = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9.]+))?")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an image says of itself beside its files; ``platform`` is OS/ARCHITECTURE[/VARIANT], "" the node's own."""

    platform: str = ""
    entrypoint: Sequence[str] = ()
    cmd: Sequence[str] = ()
    env: Sequence[str] = ()  # NAME=VALUE
    working_dir: str = ""
    user: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    exposed_ports: Sequence[str] = ()  # 80, 53/udp
    volumes: Sequence[str] = ()
    stop_signal: str = ""


def build(layer: Digest, size: int, wishes: Wishes, node: Platform) -> Resolved:
    """The image of one plain layer (so ``layer`` is its diff id, too). Raises InvalidArgument that names the wish."""
    platform = _platform(wishes.platform) if wishes.platform else node
    config = _known(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            "variant": platform.variant,
            "config": _container(wishes),
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created_by": "cri-py image build"}],
        }
    )
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [_describe(OCI_LAYER, layer, size)]}
    return _resolved(config, manifest, OCI_CONFIG)


def extend(below: Resolved, layer: Digest, size: int, created_by: str) -> Resolved:
    """The image ``below`` with one plain layer more; what it says of itself stays, in its own media types.

    Raises FailedPrecondition for an artifact, and where overlayfs stacks no further layer.
    """
    if below.config is None:
        raise FailedPrecondition(f"an artifact ({below.manifest.artifact_type}) has no layers to put another on")
    if len(below.manifest.layers) >= LAYERS_MAX:
        hint = "export it, flatten it by another tool, and import that"
        raise FailedPrecondition(f"the image has {LAYERS_MAX} layers, and overlayfs stacks no more", hint=hint)
    config = _loaded(below, below.manifest.config.digest)
    manifest = _loaded(below, below.digest)
    docker = manifest.get("mediaType") == DOCKER_MANIFEST
    history = config.get("history")
    config["rootfs"] = {"type": "layers", "diff_ids": [*below.config.diff_ids, layer]}
    config["history"] = [*(history if isinstance(history, list) else ()), {"created_by": created_by}]
    config.pop("created", None)
    manifest.pop("subject", None)  # what refers to another image in the old one's name
    manifest["layers"].append(_describe(DOCKER_LAYER if docker else OCI_LAYER, layer, size))
    manifest.pop("annotations", None)
    return _resolved(config, manifest, DOCKER_CONFIG if docker else OCI_CONFIG)


def _loaded(below: Resolved, digest: Digest) -> dict[str, Any]:
    """One of its documents, with the fields that nobody here knows. Parsed once already, but by a laxer reader."""
    try:
        document: dict[str, Any] = json.loads(below.documents[digest])
    except (ValueError, RecursionError) as error:
        raise DataLoss(f"{digest} can't be read: {error}") from error
    return document


def _resolved(config: Mapping[str, Any], manifest: dict[str, Any], config_type: str) -> Resolved:
    configured = _bytes(config)
    manifest["config"] = _describe(config_type, digest_of(configured), len(configured))
    content = _bytes(manifest)
    digest, what = digest_of(content), "the image that is made"
    parsed = parse_manifest(content, OCI_MANIFEST, what)
    assert isinstance(parsed, Manifest)
    documents = {digest: content, parsed.config.digest: configured}
    return Resolved(digest, documents, parsed, parse_config(configured, what))


def _container(wishes: Wishes) -> dict[str, Any]:
    for variable in wishes.env:
        if not variable.partition("=")[0] or "=" not in variable:
            raise InvalidArgument(f"{variable!r} is no variable", hint="give --env NAME=VALUE")
    for path in (*wishes.volumes, *((wishes.working_dir,) if wishes.working_dir else ())):
        if not path.startswith("/"):
            raise InvalidArgument(f"{path!r} is no absolute path", hint="--workdir and --volume take paths from /")
    return _known(
        {
            "User": wishes.user,
            "ExposedPorts": {_port(port): {} for port in wishes.exposed_ports},
            "Env": [*wishes.env],
            "Entrypoint": [*wishes.entrypoint],
            "Cmd": [*wishes.cmd],
            "Volumes": {path: {} for path in wishes.volumes},
            "WorkingDir": wishes.working_dir,
            "Labels": {**wishes.labels},
            "StopSignal": wishes.stop_signal,
        }
    )


def _port(text: str) -> str:
    found = _PORT.fullmatch(text)
    if found is None or not 0 < int(found[1]) <= 65535:
        raise InvalidArgument(f"{text!r} is no port", hint="give --expose 80 or --expose 53/udp")
    return f"{found[1]}/{found[2] or 'tcp'}"


def _platform(text: str) -> Platform:
    found = _PLATFORM.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"{text!r} is no platform", hint="give --platform linux/amd64 or linux/arm/v7")
    return Platform(found[1], found[2], found[3] or "")


def _known(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is not said."""
    return {key: value for key, value in document.items() if value}


def _describe(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _bytes(document: Mapping[str, Any]) -> bytes:
    """One form for one content."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def digest_of(content: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")


def described(found: Resolved) -> Descriptor:
    """An image's own manifest, as an index names it."""
    content = found.documents[found.digest]
    media_type = json.loads(content).get("mediaType") or OCI_MANIFEST
    return Descriptor(media_type, found.digest, len(content))
