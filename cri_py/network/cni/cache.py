"""What ADD was told and what it answered, a file per pod, so that DEL can be told the same after a restart or reboot.

A file is written before the first plugin runs: a daemon that dies meanwhile finds out whom to clean up after.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from cri_py.errors import ConfigError, CriError, Internal, NotFound
from cri_py.kernel.faults import trace
from cri_py.network.cni import results
from cri_py.network.cni.calls import Subject
from cri_py.network.cni.configs import Loaded, from_document
from cri_py.network.cni.versions import SUPPORTED

log = structlog.get_logger()
_SUFFIX: Final = ".json"


class Entry(msgspec.Struct, frozen=True):
    """One attachment. ``network`` is the chain as it was at ADD; ``result`` None: ADD has not come to its end."""

    container_id: str
    netns: str
    interface: str
    version: str
    network: dict[str, Any]
    arguments: list[tuple[str, str]]
    capabilities: dict[str, Any]
    result: dict[str, Any] | None = None

    def chain(self) -> Loaded:
        """The network, as it was at ADD. Raises ConfigError if the file was tampered with."""
        return Loaded(from_document(self.network), self.version)

    def subject(self, *, has_netns: bool) -> Subject:
        """What CHECK and DEL are told; without the namespace's path once it has gone."""
        netns = self.netns if has_netns else ""
        return Subject(self.container_id, netns, self.interface, tuple(self.arguments), self.capabilities)

    def addresses(self) -> tuple[results.Address, ...]:
        """The pod's addresses; none as long as there is no result. Raises Internal if it makes no sense."""
        if self.result is None:
            return ()
        return results.addresses(results.read(self.result, self.version), self.interface)


def entry(about: Subject, loaded: Loaded) -> Entry:
    """The entry of an ADD that is about to begin."""
    return Entry(
        container_id=about.container_id,
        netns=about.netns,
        interface=about.interface,
        version=loaded.version,
        network=dict(loaded.network.document),
        arguments=list(about.arguments),
        capabilities=dict(about.capabilities),
    )


class Cache:
    """All entries, in memory and below one directory; ``container_id`` is the key."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._entries: dict[str, Entry] = {}

    def load(self) -> None:
        """Read what earlier daemons left. A file that makes no sense is set aside: one must not stop the others."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        for name in os.listdir(self._directory):
            path = f"{self._directory}/{name}"
            if not name.endswith(_SUFFIX):
                if name.endswith(".new"):
                    os.unlink(path)  # its writer died before the rename
                continue
            try:
                found = _read(path)
            except (msgspec.DecodeError, CriError, KeyError) as error:
                log.warning("a cached CNI result is damaged and is set aside", path=path, cause=str(error))
                os.rename(path, f"{path}.damaged")
                continue
            self._entries[found.container_id] = found

    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    def get(self, container_id: str) -> Entry:
        """Raises NotFound."""
        try:
            return self._entries[container_id]
        except KeyError:
            raise NotFound(f"no CNI result of {container_id} is cached") from None

    def put(self, new: Entry) -> None:
        """Keep an entry; a daemon that dies afterwards finds it again. Raises Internal (disk full …)."""
        path = self._path(new.container_id)
        try:
            with open(f"{path}.new", "wb") as file:
                file.write(msgspec.json.encode(new))
                file.flush()
                if new.result is not None:  # addresses may outlive a power cut on the plugin's disk, so must this
                    os.fdatasync(file.fileno())
            trace("CNI entry written")
            os.rename(f"{path}.new", path)
            trace("CNI entry kept")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(f"{path}.new")
            raise Internal(f"the CNI result can't be kept in {path}: {error}", hint="has the disk room?") from error
        self._entries[new.container_id] = new

    def drop(self, container_id: str) -> None:
        """Forget an entry; a missing one is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(container_id))
        trace("CNI entry gone")
        self._entries.pop(container_id, None)

    def _path(self, container_id: str) -> str:
        return f"{self._directory}/{container_id}{_SUFFIX}"


def with_result(pending: Entry, result: dict[str, Any]) -> Entry:
    return msgspec.structs.replace(pending, result=result)


def _read(path: str) -> Entry:
    with open(path, "rb") as file:
        found = msgspec.json.decode(file.read(), type=Entry)
    if found.version not in SUPPORTED:
        raise ConfigError(f"version {found.version!r} of CNI is unknown")
    found.chain()
    found.addresses()
    return found
