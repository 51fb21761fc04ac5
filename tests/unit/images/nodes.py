"""A node's way out to registries whose files and time a test moves, and a blob in memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cri_py.config import ImagesConfig
from cri_py.images.reference import parse_ref
from cri_py.images.registries import Registries
from cri_py.images.registry import Repository
from cri_py.model import RegistryAuth
from tests.simulators.registry import RegistrySimulator

# Reads nothing of the machine's, and doesn't wait between attempts.
HERMETIC = ImagesConfig(
    pull_progress_timeout_s=30.0,
    pull_retry_wait_s=0.0,
    certs_d=(),
    registries_conf="",
    auth_files=(),
    signature_policy="",
    image_verifiers="",
)
BLOB = bytes(range(256)) * 4000
AUTH = RegistryAuth("robot", "s3cr3t")


class Sink:
    """A blob in memory."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.algorithm = "sha256"
        self.written = 0

    @property
    def offset(self) -> int:
        return len(self.content)

    async def restart(self, algorithm: str) -> None:
        self.content, self.algorithm = b"", algorithm

    async def write(self, piece: bytes) -> None:
        self.content += piece
        self.written += len(piece)

    async def hexdigest(self) -> str:
        return hashlib.new(self.algorithm, self.content).hexdigest()


class Node:
    """The way out of a node whose time the test moves; ``waits`` are the rests between attempts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certs_d = directory / "certs.d"
        self.conf = directory / "registries.conf"
        self.auth_file = directory / "auth.json"
        self.environment: dict[str, str] = {}
        self.now_s = 1000.0
        self.waits: list[float] = []
        self.config: dict[str, Any] = {}

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Registries]:
        config = replace(
            HERMETIC,
            certs_d=(str(self.certs_d),),
            registries_conf=str(self.conf),
            auth_files=(str(self.auth_file),),
            pull_retry_wait_s=1.0,
            **self.config,
        )
        registries = Registries(
            config, environment=self.environment, clock_s=lambda: self.now_s, sleep=self.sleep, chance=lambda: 1.0
        )
        try:
            yield registries
        finally:
            await registries.close()

    @asynccontextmanager
    async def repository(self, ref: str, auth: RegistryAuth | None = None) -> AsyncIterator[Repository]:
        async with self.opened() as registries:
            yield await registries.repository(parse_ref(ref), auth)

    def hosts_toml(self, host: str, text: str) -> Path:
        directory = self.certs_d / host
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "hosts.toml").write_text(text)
        return directory / "hosts.toml"


def nobody() -> str:
    """A host where nobody listens."""
    return "127.0.0.1:1"


async def resolved(node: Node, ref: str, auth: RegistryAuth | None = None) -> str:
    """The digest that a tag has."""
    async with node.repository(ref, auth) as repository:
        return (await repository.manifest(ref.rpartition(":")[2], None)).digest


async def asked_for(registry: RegistrySimulator, part: str) -> None:
    """Once a request came whose path holds ``part``."""
    while not registry.count(part):  # noqa: ASYNC110 (the simulator runs on threads of its own)
        await asyncio.sleep(0.005)


def leftovers(root: Path) -> list[str]:
    """What lies in the store beside its database."""
    return sorted(os.listdir(root / "layers"))
