"""How the registries of the world are reached from this node: routes, credentials and connections for each pull."""

from __future__ import annotations

from cri_py.config import ImagesConfig
from cri_py.images.reference import ImageRef, parse_ref
from cri_py.images.registry import Repository, endpoints
from cri_py.images.transport import Transport
from cri_py.model import RegistryAuth


class Registries:
    """The one way out to registries, for all pulls. Files that configure it are read at every pull."""

    def __init__(self, config: ImagesConfig) -> None:
        self._config = config
        self._transport = Transport(config.pull_progress_timeout_s)

    async def close(self) -> None:
        """End all connections."""
        await self._transport.close()

    def candidates(self, text: str) -> tuple[ImageRef, ...]:
        """What ``text`` may mean, the likeliest first: a short name may stand for several. Raises InvalidArgument."""
        return (parse_ref(text),)

    async def repository(self, ref: ImageRef, auth: RegistryAuth | None) -> Repository:
        """Where ``ref`` is pulled from, with the credentials ``auth`` that came with the request.

        Raises ConfigError that names file and line, FailedPrecondition for a blocked registry.
        """
        return Repository(ref, endpoints(ref, self._config.registries, auth), self._transport)
