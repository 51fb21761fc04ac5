"""What a plugin's end means: its answer, or an error in words (SPEC.md, section 5). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cri_py.errors import CriError, FailedPrecondition, Internal, Unavailable
from cri_py.network.cni.versions import OLDEST
from cri_py.network.program import Ended

_SHOWN_BYTES: Final = 400
_UNKNOWN_COMMAND: Final = 4  # what plugins older than VERSION answer to it

# Code: what it means, and what becomes of the call.
_MEANINGS: Final[Mapping[int, tuple[str, type[CriError]]]] = {
    1: ("it does not support this version of CNI", FailedPrecondition),
    2: ("it does not support a field of the configuration", FailedPrecondition),
    3: ("it does not know the container, or the container is gone", FailedPrecondition),
    4: ("it misses an environment variable, or one has a wrong value", Internal),
    5: ("it could not read or write", Internal),
    6: ("it could not decode what it was given", Internal),
    7: ("the network's configuration is wrong", FailedPrecondition),
    11: ("it asks to be tried again later", Unavailable),
    50: ("it is not available", Unavailable),
    51: ("it is not available, and pods that it has attached may have no full network", Unavailable),
}


def answer(plugin: str, command: str, ended: Ended) -> dict[str, Any]:
    """The JSON object that a plugin printed; {} of those calls that answer nothing.

    Raises what the plugin's error means, as a CriError whose message names it, its code and its words; Internal for
    a plugin that crashed or printed no JSON.
    """
    said = _object(ended.output)
    if ended.code or (said is not None and _is_error(said)):
        raise _error(plugin, command, ended, said)
    if command not in ("ADD", "VERSION"):
        return {}
    if said is None:
        raise Internal(f"CNI plugin {plugin} answered {command} with no JSON object: {_shown(ended.output)}")
    return said


def supported_versions(ended: Ended) -> frozenset[str]:
    """What a plugin answered to VERSION; one that does not know the command is as old as the first version."""
    said = _object(ended.output) or {}
    if ended.code or _is_error(said):
        if said.get("code") == _UNKNOWN_COMMAND or "unknown CNI_COMMAND" in str(said.get("msg", "")):
            return frozenset({OLDEST})
        return frozenset()
    listed = said.get("supportedVersions")
    versions = listed if isinstance(listed, list) else [said.get("cniVersion")]
    return frozenset(version for version in versions if isinstance(version, str))


def _object(output: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(output)
    except (msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_error(said: Mapping[str, Any]) -> bool:
    return bool(said.get("code")) and "msg" in said


def _error(plugin: str, command: str, ended: Ended, said: Mapping[str, Any] | None) -> CriError:
    if ended.code < 0:
        return Internal(f"CNI plugin {plugin} was killed by signal {-ended.code} on {command}")
    if said is None or not (said.get("code") or said.get("msg")):
        told = ended.errors.strip() or ended.output
        return Internal(f"CNI plugin {plugin} failed {command} with status {ended.code}: {_shown(told)}")
    code = said.get("code")
    meaning, kind = _MEANINGS.get(code, ("", Internal)) if isinstance(code, int) else ("", Internal)
    words = ": ".join(str(said[key]) for key in ("msg", "details") if said.get(key))
    head = f"CNI plugin {plugin} refused {command} with code {code}"
    return kind(": ".join(filter(None, (head, meaning, words[: _SHOWN_BYTES * 4]))))


def _shown(output: bytes) -> str:
    text = output[:_SHOWN_BYTES].decode(errors="replace")
    return repr(text) + (" …" if len(output) > _SHOWN_BYTES else "") if text else "it printed nothing"


def in_context(error: CriError, network: str, command: str) -> CriError:
    """The same error, with the network that it is about."""
    return type(error)(f"network {network}, {command}: {error.message}", hint=error.hint)
