"""Hooks for after a container's end (OCI runtime-spec, runtime.md, Lifecycle), where its monitor was killed.

A monitor runs them when it is told that its container is removed. One that is gone can't, and what they are to give
back, a vendor's device for one, would stay taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cri_py.errors import CriError
from cri_py.network import program

_TIMEOUT_S: Final = 10.0  # of a hook that names none, as in a monitor
_SAID: Final = 2000


async def run(document: Mapping[str, Any], container_id: str, bundle: str) -> list[str]:
    """Run what ``document`` names as poststop, in its order; returns what has failed. None of it fails the removal."""
    state = {
        "ociVersion": document.get("ociVersion", ""),
        "id": container_id,
        "status": "stopped",
        "bundle": bundle,
        "annotations": document.get("annotations", {}),
    }
    told = [await _run(hook, json.dumps(state).encode()) for hook in document.get("hooks", {}).get("poststop", ())]
    return [note for note in told if note]


async def _run(hook: Mapping[str, Any], state: bytes) -> str:
    """What has failed, "" if nothing."""
    path, arguments = hook["path"], hook.get("args") or ()
    environment = dict(pair.split("=", 1) for pair in hook.get("env", ()))
    deadline_s = hook.get("timeout") or _TIMEOUT_S
    try:
        ended = await program.run([path, *arguments[1:]], state, deadline_s=deadline_s, environment=environment)
    except CriError as error:
        return f"the poststop hook {error.message}"
    if not ended.code:
        return ""
    return f"the poststop hook {path} failed with status {ended.code}: {ended.told[:_SAID] or 'it said nothing'}"
