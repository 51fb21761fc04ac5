"""The order of calls: ADD forwards, DEL backwards, each with what the one before has answered (SPEC.md, section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from cri_py.errors import CriError
from cri_py.network.cni import results
from cri_py.network.cni.answers import answer, in_context
from cri_py.network.cni.calls import Call, Subject, call, gc_call, status_call
from cri_py.network.cni.configs import Loaded
from cri_py.network.cni.versions import RESULT_TO_DEL, STATUS_AND_GC, since
from cri_py.network.program import Ended


class PluginRunner(Protocol):
    """Runs a plugin's program to its end."""

    async def run(self, call: Call) -> Ended:
        """Raises Unavailable, DeadlineExceeded, ResourceExhausted; then the plugin's processes were killed."""
        ...


async def add(runner: PluginRunner, loaded: Loaded, about: Subject) -> dict[str, Any]:
    """Attach; returns the chain's result in the form of the network's version.

    Raises the first plugin's error that fails; what the plugins before it made is for :func:`delete`.
    """
    previous: dict[str, Any] | None = None
    for plugin in loaded.network.plugins:
        said = await _say(runner, loaded, call("ADD", loaded, plugin, about, previous))
        try:
            previous = results.convert(said, _version_of(said, loaded.version), loaded.version)
            results.read(previous, loaded.version)
        except CriError as error:
            raise in_context(error, loaded.network.name, f"ADD by {plugin.type}") from error
    assert previous is not None, "a network has a plugin"
    return previous


async def delete(runner: PluginRunner, loaded: Loaded, about: Subject, result: Mapping[str, Any] | None) -> None:
    """Detach. Every plugin is called, also behind one that fails, so that as little as possible stays; raises the first
    error. ``result`` is what ADD answered, None if it did not get so far."""
    previous = result if since(loaded.version, RESULT_TO_DEL) else None
    failed: CriError | None = None
    for plugin in reversed(loaded.network.plugins):
        try:
            await _say(runner, loaded, call("DEL", loaded, plugin, about, previous))
        except CriError as error:
            failed = failed or error
    if failed is not None:
        raise failed


async def check(runner: PluginRunner, loaded: Loaded, about: Subject, result: Mapping[str, Any]) -> None:
    """Whether all is as ADD left it; nothing is asked where the version or the network has no CHECK."""
    if loaded.network.disable_check or not since(loaded.version, RESULT_TO_DEL):
        return
    for plugin in loaded.network.plugins:
        await _say(runner, loaded, call("CHECK", loaded, plugin, about, result))


async def status(runner: PluginRunner, loaded: Loaded) -> None:
    """Whether the plugins are ready for ADD; raises what the first says that is not."""
    if since(loaded.version, STATUS_AND_GC):
        for plugin in loaded.network.plugins:
            await _say(runner, loaded, status_call(loaded, plugin))


async def collect(runner: PluginRunner, loaded: Loaded, valid: Iterable[tuple[str, str]]) -> None:
    """GC: the plugins forget all but the ``valid`` attachments. Every plugin is called; raises the first error."""
    if loaded.network.disable_gc or not since(loaded.version, STATUS_AND_GC):
        return
    kept = tuple(valid)
    failed: CriError | None = None
    for plugin in loaded.network.plugins:
        try:
            await _say(runner, loaded, gc_call(loaded, plugin, kept))
        except CriError as error:
            failed = failed or error
    if failed is not None:
        raise failed


async def _say(runner: PluginRunner, loaded: Loaded, said: Call) -> dict[str, Any]:
    try:
        return answer(said.type, said.command, await runner.run(said))
    except CriError as error:
        raise in_context(error, loaded.network.name, said.command) from error


def _version_of(said: Mapping[str, Any], asked: str) -> str:
    """The form of an answer: as it says itself, else as it was asked for."""
    version = said.get("cniVersion")
    return version if isinstance(version, str) and version else asked
