"""How the registries of the world are reached from this node: routes, credentials and connections for each pull."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import structlog

from cri_py import telemetry
from cri_py.config import ImagesConfig
from cri_py.images import endpoints as routes
from cri_py.images.auth import Credentials
from cri_py.images.credentials import AuthFiles
from cri_py.images.endpoints import SYSTEM_TRUST, Endpoint
from cri_py.images.flights import on_thread
from cri_py.images.hosts import CertsDirectories, by_hosts_file
from cri_py.images.reference import ImageRef, parse_ref, short_name
from cri_py.images.registries_conf import ConfFiles, by_registry
from cri_py.images.registry import FetchedManifest, Patience, Repository
from cri_py.images.signatures import Verifiers, parse_policy
from cri_py.images.tables import Fresh
from cri_py.images.tokens import Logins
from cri_py.images.transport import Pace, Transport
from cri_py.model import RegistryAuth

CREDENTIAL_THREADS: Final = 4

log = structlog.get_logger()


class Registries:
    """The one way out to registries, for all pulls. Files that configure it are read at every pull."""

    def __init__(
        self,
        config: ImagesConfig,
        *,
        environment: Mapping[str, str] = os.environ,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._certs = CertsDirectories(config.certs_d)
        self._conf = ConfFiles(config.registries_conf)
        self._auth_files = AuthFiles(config.auth_files, environment, config.credential_helper_timeout_s)
        # Of its own, and no thread of the disk's: a helper may take its whole time.
        self._threads = ThreadPoolExecutor(CREDENTIAL_THREADS, "credentials")
        self._transport = Transport(Pace(config.pull_progress_timeout_s, config.pull_minimum_bytes_per_s), environment)
        self._policy = Fresh(parse_policy)
        self._verifiers = Verifiers(config.image_verifiers, environment, config.image_verifier_timeout_s)
        self._logins = Logins(self._transport, self._credentials, clock_s)
        self._patience = Patience(config.pull_attempts, config.pull_retry_wait_s, chance, sleep)

    async def close(self) -> None:
        """End all connections, and wait for credential helpers that still run."""
        await self._transport.close()
        await asyncio.to_thread(self._threads.shutdown)

    def candidates(self, text: str) -> tuple[ImageRef, ...]:
        """What ``text`` may mean, the likeliest first: a short name may stand for several.

        Raises InvalidArgument, ConfigError that names file and line.
        """
        return self._conf.read().candidates(text) if short_name(text) else (parse_ref(text),)

    async def repository(self, ref: ImageRef, auth: RegistryAuth | None) -> Repository:
        """Where ``ref`` is pulled from, with the credentials ``auth`` that came with the request.

        Raises ConfigError that names file and line, FailedPrecondition for a blocked registry,
        SignatureValidationFailed for what the policy refuses.
        """
        policy = self._policy.get(self._config.signature_policy) if self._config.signature_policy else None
        if policy is not None:
            policy.admit(ref)
        found = [self._trusting(endpoint) for endpoint in self._routes(ref)]
        return Repository(
            ref, found, auth=auth, transport=self._transport, logins=self._logins, patience=self._patience
        )

    def verifies(self) -> bool:
        """Whether programs want to see what is pulled, also what is here already."""
        return bool(self._verifiers.programs())

    @telemetry.spanned("verify signatures")
    async def admit(self, ref: ImageRef, manifest: FetchedManifest) -> None:
        """Let them. Raises SignatureValidationFailed, or Unavailable or DeadlineExceeded if one can't tell."""
        if self.verifies():
            await on_thread(self._threads, self._verifiers.admit, ref, manifest)

    def _routes(self, ref: ImageRef) -> Sequence[Endpoint]:
        """The endpoints by the family that wins: our own, the host's hosts.toml, registries.conf, the default."""
        ours = self._config.registries.get(ref.host)
        hosts_file, conf = self._certs.hosts_file(ref.host), self._conf.read()
        registry = conf.registry_for(ref)
        families = {
            f'[images.registries."{ref.host}"] of cri_py': ours,
            hosts_file.file if hosts_file is not None else "": hosts_file,
            registry.place if registry is not None else "": registry,
        }
        there = [name for name, family in families.items() if family is not None]
        if len(there) > 1:
            log.warning("a registry is configured twice", registry=ref.host, used=there[0], ignored=there[1:])
        if hosts_file is None and registry is None:
            hosts_file = self._certs.default_file()
        if unknown := [*conf.unknown, *(hosts_file.unknown if hosts_file is not None else ())]:
            log.warning("the configuration of registries has keys that mean nothing", keys=unknown)
        if registry is not None and registry.blocked:  # whoever else knows the way
            return by_registry(ref, registry)
        if ours is not None:
            return routes.by_our_config(ref, ours)
        if hosts_file is not None:
            return by_hosts_file(ref, hosts_file)
        if registry is not None:
            return by_registry(ref, registry)
        return routes.by_default(ref, self._certs.certificates(ref.host))

    def _trusting(self, endpoint: Endpoint) -> Endpoint:
        """With the certificates that lie in the directory of the endpoint's host, where its route names none."""
        if endpoint.trust != SYSTEM_TRUST or not endpoint.secured:
            return endpoint
        return replace(endpoint, trust=self._certs.certificates(endpoint.name))

    async def _credentials(self, endpoint: Endpoint) -> Credentials | None:
        """The node's own for an endpoint."""
        keychains = self._conf.read().keychains or ()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._auth_files.find, endpoint.host, endpoint.repository, keychains
        )
