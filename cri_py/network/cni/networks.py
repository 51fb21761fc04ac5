"""The network that a directory of configurations names, kept up to date as files and plugins come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Final

import structlog

from cri_py.errors import ConfigError, CriError, FailedPrecondition
from cri_py.network.cni import chain
from cri_py.network.cni.configs import Loaded, Network, added, candidates, parse
from cri_py.network.cni.plugins import Plugins
from cri_py.network.cni.versions import negotiate
from cri_py.network.cni.watch import Watch

log = structlog.get_logger()
_LARGEST_BYTES: Final = 1 << 20
_SETTLE_S: Final = 0.05  # who writes a file seldom does it at once
_POLL_S: Final = 5.0  # where no watch is: the directory is missing, or on a filesystem that tells nothing
_POLL_FAULTY_S: Final = 1.0


Signature = tuple[tuple[str, int, int, int], ...]


class Networks:
    """One directory's network: the first by name. All methods belong to one event loop."""

    def __init__(self, directory: str, plugins: Plugins, status_period_s: float) -> None:
        self._directory = directory
        self._plugins = plugins
        self._status_period_s = status_period_s
        self._signature: Signature | None = None
        self._loaded: Loaded | None = None
        self._fault = f"{directory} is not read yet"
        self._asked_at = 0.0

    @property
    def fault(self) -> str:
        """Why no pod can be attached, "" if one can."""
        return self._fault

    @property
    def loaded(self) -> Loaded | None:
        """The network as far as it could be loaded, also while its plugins say that they are not ready."""
        return self._loaded

    def current(self) -> Loaded:
        """The network for a new pod. Raises FailedPrecondition, with the reason."""
        if self._loaded is None or self._fault:
            raise FailedPrecondition(f"the CNI network is not ready: {self._fault}")
        return self._loaded

    async def follow(self) -> None:
        """Keep it up to date until cancelled."""
        watch = Watch(self._directory)
        try:
            while True:
                watch.arm()
                await self.refresh()
                with contextlib.suppress(TimeoutError):
                    await watch.wait(_POLL_FAULTY_S if self._fault else _POLL_S)
                    await asyncio.sleep(_SETTLE_S)
        finally:
            watch.close()

    async def refresh(self) -> None:
        """Read the directory if it changed, and ask the plugins for their STATUS when it is time."""
        before = self._fault
        signature = await asyncio.to_thread(_signature, self._directory)
        if signature != self._signature or self._loaded is None:
            await self._load()
            self._signature = signature
        elif time.monotonic() - self._asked_at >= self._status_period_s or self._fault:
            await self._ask(self._loaded)
        if self._fault != before:
            if self._fault:
                log.warning("the CNI network is not ready", reason=self._fault)
            elif self._loaded is not None:
                log.info("CNI network", name=self._loaded.network.name, version=self._loaded.version)

    async def _load(self) -> None:
        try:
            network = await asyncio.to_thread(_first, self._directory)
            supported = {plugin.type: await self._plugins.versions(plugin.type) for plugin in network.plugins}
            loaded = Loaded(network, negotiate(network.name, network.offered, supported))
        except (CriError, OSError) as error:  # a plugin that goes while it is looked at, too
            self._loaded, self._fault = None, str(error)
        else:
            self._loaded = loaded
            await self._ask(loaded)

    async def _ask(self, loaded: Loaded) -> None:
        try:
            for plugin in loaded.network.plugins:
                self._plugins.find(plugin.type)
            await chain.status(self._plugins, loaded)
        except (CriError, OSError) as error:
            self._fault = str(error)
        else:
            self._fault = ""
        self._asked_at = time.monotonic()


def _signature(directory: str) -> Signature | None:
    """What changes with every change of a configuration; None if the directory can't be read."""
    try:
        with os.scandir(directory) as entries:
            entered = list(entries)
        names = candidates(entry.name for entry in entered)
        for entry in entered:
            if entry.is_dir():
                names += [f"{entry.name}/{name}" for name in added(os.listdir(entry.path))]
        found = [(name, os.stat(f"{directory}/{name}")) for name in names]
    except OSError:
        return None
    return tuple((name, at.st_mtime_ns, at.st_size, at.st_ino) for name, at in found)


def _first(directory: str) -> Network:
    """The network of the directory's first file. A broken one hides those behind it: pods must not come into another
    network than the node is meant to have. Raises ConfigError."""
    try:
        names = candidates(os.listdir(directory))
    except OSError as error:
        raise ConfigError(
            f"no CNI network: {directory} can't be read: {error.strerror}", hint="a network add-on writes it"
        ) from error
    if not names:
        raise ConfigError(
            f"no CNI network: {directory} has no .conf, .conflist or .json file", hint="a network add-on writes one"
        )
    path = f"{directory}/{names[0]}"
    return parse(path, _content(path), lambda name: _added(f"{directory}/{name}"))


def _added(directory: str) -> list[tuple[str, bytes]]:
    """The files that add plugins to a network; none if it has no directory."""
    try:
        paths = [f"{directory}/{name}" for name in added(os.listdir(directory))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(path, _content(path)) for path in paths]


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            content = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > _LARGEST_BYTES:
        raise ConfigError(f"{path} has more than {_LARGEST_BYTES} bytes", hint="this is no CNI configuration")
    return content


def _without_waiting(path: str, flags: int) -> int:
    """For a fifo, which else is opened when somebody writes."""
    return os.open(path, flags | os.O_NONBLOCK)
