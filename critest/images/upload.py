"""Pushes images to a registry over plain HTTP: the few calls of distribution-spec 1.1 that a push needs."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from typing import Any, Final

from critest.images.layers import ARCHITECTURE, Image, Packed, digest_of, encode

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_CREATED: Final = "2024-01-01T00:00:00Z"
_TIMEOUT_S: Final = 120


class UploadError(Exception):
    """The registry refused something; the text says what and how."""


class Registry:
    """``address`` is HOST:PORT."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)

    def close(self) -> None:
        self._connection.close()

    def push(self, image: Image) -> int:
        """Push a single-platform image behind an index, under each of its names; returns its compressed size."""
        layers = [layer.pack() for layer in image.layers]
        config = _config(image.config, layers)
        for name in image.names:
            repository, _, tag = name.rpartition(":")
            manifest = encode(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": self._put_blob(repository, CONFIG, config),
                    "layers": [self._put_blob(repository, LAYER, layer.blob) for layer in layers],
                }
            )
            entry = self._put_manifest(repository, digest_of(manifest), MANIFEST, manifest)
            entry["platform"] = {"architecture": ARCHITECTURE, "os": "linux"}
            index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
            self._put_manifest(repository, tag, INDEX, index)
        return sum(len(layer.blob) for layer in layers)

    def _put_blob(self, repository: str, media_type: str, content: bytes) -> dict[str, Any]:
        digest = digest_of(content)
        if self._call("HEAD", f"/v2/{repository}/blobs/{digest}")[0] != 200:
            self._upload(repository, digest, content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _upload(self, repository: str, digest: str, content: bytes) -> None:
        status, location, text = self._call("POST", f"/v2/{repository}/blobs/uploads/")
        if status != 202:
            raise UploadError(f"{repository} takes no upload: {status} {text}")
        path = "/" + location.partition("//")[2].partition("/")[2] if "//" in location else location
        joint = "&" if "?" in path else "?"
        status, _, text = self._call(
            "PUT", f"{path}{joint}digest={digest}", content, {"Content-Type": "application/octet-stream"}
        )
        if status != 201:
            raise UploadError(f"blob {digest} of {repository} is refused: {status} {text}")

    def _put_manifest(self, repository: str, reference: str, media_type: str, content: bytes) -> dict[str, Any]:
        status, _, text = self._call(
            "PUT", f"/v2/{repository}/manifests/{reference}", content, {"Content-Type": media_type}
        )
        if status != 201:
            raise UploadError(f"manifest {repository}:{reference} is refused: {status} {text}")
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Status, Location, and the body's text."""
        self._connection.request(method, path, body, dict(headers or {}))
        reply = self._connection.getresponse()
        return reply.status, reply.headers.get("Location", ""), reply.read().decode(errors="replace")


def _config(config: Mapping[str, Any], layers: Sequence[Packed]) -> bytes:
    return encode(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "created": _CREATED,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": _CREATED, "created_by": "critest/images"}] * len(layers),
        }
    )
