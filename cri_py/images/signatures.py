"""Which images a node takes: policy.json, and programs that verify.

containers-policy.json(5) of https://github.com/containers/image, and containerd's image verifiers
(https://github.com/containerd/containerd/blob/main/docs/image-verification.md). No signature is checked here: where the
policy demands one, the image is refused, for to take it unchecked would be to ignore the policy. What checks
signatures is a verifier, a program of whoever sets up the node. Pure but for ``Verifiers``, which runs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from cri_py.errors import ConfigError, SignatureValidationFailed
from cri_py.images.programs import run
from cri_py.images.reference import ImageRef
from cri_py.images.registry import FetchedManifest

TRANSPORT: Final = "docker"  # policy.json's word for registries
ACCEPT: Final = "insecureAcceptAnything"
REJECT: Final = "reject"
_TYPES: Final = (ACCEPT, REJECT, "signedBy", "signedBaseLayer", "sigstoreSigned")
_DESCRIPTOR: Final = "application/vnd.oci.descriptor.v1+json"
_SAID_MOST: Final = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """What each scope requires, by the types of requirements; all of them have to be met."""

    file: str
    default: tuple[str, ...]
    scopes: Mapping[str, tuple[str, ...]]

    def admit(self, ref: ImageRef) -> None:
        """Raise SignatureValidationFailed unless images of ``ref`` are taken unsigned."""
        scope, required = self._required(ref)
        for requirement in required:
            if requirement == ACCEPT:
                continue
            where = f"{self.file} ({scope or 'default'})"
            if requirement == REJECT:
                raise SignatureValidationFailed(f"{where} rejects {ref}", hint="name the image's scope there")
            hint = f"require {ACCEPT} there, and let a program in images.image_verifiers check it"
            raise SignatureValidationFailed(f"{where} wants {ref} {requirement}, which is not checked here", hint=hint)

    def _required(self, ref: ImageRef) -> tuple[str, tuple[str, ...]]:
        """The most specific scope of ``ref``, and its requirements."""
        for scope in _scopes(ref):
            if scope in self.scopes:
                return scope, self.scopes[scope]
        return "", self.default


def _scopes(ref: ImageRef) -> Iterator[str]:
    """The image itself, its repository, what is above that, wildcards of its host's domains, all registries."""
    if ref.digest is not None:
        yield ref.at(ref.digest)
    if ref.tag:
        yield f"{ref.name}:{ref.tag}"
    parts = ref.name.split("/")
    yield from ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    domain = ref.host
    while "." in domain:
        domain = domain.partition(".")[2]
        yield f"*.{domain}"
    yield ""


class _RequirementJson(msgspec.Struct):
    type: str


class _PolicyJson(msgspec.Struct, forbid_unknown_fields=True):
    default: list[_RequirementJson]
    transports: dict[str, dict[str, list[_RequirementJson]]] = {}


def parse_policy(content: bytes, file: str) -> Policy:
    """Raises ConfigError that names the file: a policy that is only understood in part would let too much in."""
    try:
        document = msgspec.json.decode(content, type=_PolicyJson)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file}: {error}", hint="see containers-policy.json(5)") from error
    scopes = document.transports.get(TRANSPORT, {})
    return Policy(
        file,
        _types(document.default, "default", file),
        {scope: _types(required, f"transports.{TRANSPORT}.{scope}", file) for scope, required in scopes.items()},
    )


def _types(required: Sequence[_RequirementJson], place: str, file: str) -> tuple[str, ...]:
    if not required:
        raise ConfigError(f"{file}: {place} requires nothing", hint=f'write [{{"type": "{ACCEPT}"}}] to allow all')
    for each in required:
        if each.type not in _TYPES:
            raise ConfigError(f"{file}: {place}: the type {each.type[:80]!r} is unknown", hint=", ".join(_TYPES))
    return tuple(each.type for each in required)


class Verifiers:
    """All programs in ``directory``, run before an image is taken; each may refuse it. Blocking."""

    def __init__(self, directory: str, environment: Mapping[str, str], timeout_s: float) -> None:
        self._directory = directory
        self._environment = environment
        self._timeout_s = timeout_s

    def programs(self) -> list[str]:
        """Their paths, in the order in which they are asked. Raises ConfigError."""
        try:
            names = sorted(os.listdir(self._directory)) if self._directory else []
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise ConfigError(f"{self._directory} can't be read: {error.strerror}") from error
        return [os.path.join(self._directory, name) for name in names]

    def admit(self, ref: ImageRef, manifest: FetchedManifest) -> None:
        """Ask all of them about what ``ref`` names.

        Raises SignatureValidationFailed if one exits with another status than 0, Unavailable if it can't be run,
        DeadlineExceeded.
        """
        media_type = manifest.media_type[:_SAID_MOST]  # a stranger's header
        described = {"mediaType": media_type, "digest": manifest.digest, "size": len(manifest.content)}
        for program in self.programs():
            arguments = ["-name", str(ref), "-digest", manifest.digest, "-stdin-media-type", _DESCRIPTOR]
            stdin = msgspec.json.encode(described)
            ended = run([program, *arguments], stdin, self._environment, self._timeout_s)
            if ended.status != 0:
                said = " ".join(ended.output.decode(errors="replace").split())[:_SAID_MOST]
                raise SignatureValidationFailed(
                    f"{program} refuses {ref} ({ended.status}): {said or 'it says nothing'}"
                )
