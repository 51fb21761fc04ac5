"""Programs that prepare a container from outside: OCI runtime-spec, config.md, "POSIX-platform Hooks".

Vendors' device descriptions ask for them: a hook links libraries or makes nodes in the root that the container is about
to get. They run as root of the node, in the new mount namespace, when all is mounted and before the pivot, which is
where the node's programs and the container's root are both there. So of the six stages only the three that belong here
are known: prestart, createRuntime and createContainer.
"""

from __future__ import annotations

import json
import os
import select
import signal
from typing import Any

from cri_py.errors import FailedPrecondition
from cri_py.kernel import syscalls

STAGES = ("prestart", "createRuntime", "createContainer")
_TIMEOUT_S = 10.0  # of a hook that names none: the monitor is waited for only so long
_SAID_BYTES = 2000


def run(document: dict[str, Any], bundle: str) -> None:
    """Run all hooks of the document in their order. Raises FailedPrecondition with what the first said that fails."""
    hooks = document.get("hooks", {})
    if not hooks:
        return
    state = {
        "ociVersion": document["ociVersion"],
        "id": os.path.basename(bundle),
        "status": "creating",
        "pid": int(os.readlink("/proc/self")),  # as the node's /proc has it: here we may be pid 1
        "bundle": bundle,
        "annotations": document.get("annotations", {}),
    }
    for stage in STAGES:
        for hook in hooks.get(stage, []):
            _run(hook, stage, json.dumps(state).encode())


def _run(hook: dict[str, Any], stage: str, state: bytes) -> None:
    path, deadline_s = hook["path"], hook.get("timeout") or _TIMEOUT_S
    what = f"the {stage} hook {path}"
    said = os.memfd_create("hook", os.MFD_CLOEXEC)
    given = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(given, state)
    os.lseek(given, 0, os.SEEK_SET)
    environment = dict(pair.split("=", 1) for pair in hook.get("env", []))
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in ((0, given), (1, said), (2, said))]
    try:
        pid = os.posix_spawn(path, hook.get("args") or [path], environment, file_actions=actions, setpgroup=0)
        status = _await(pid, deadline_s)
        text = os.pread(said, _SAID_BYTES, 0).decode("utf-8", "replace").strip()
    except OSError as error:
        raise FailedPrecondition(f"{what} can't be executed: {error.strerror}") from error
    finally:
        os.close(given)
        os.close(said)
    if status is None:
        raise FailedPrecondition(f"{what} did not end within {deadline_s:g} s and was killed")
    if code := os.waitstatus_to_exitcode(status):
        raise FailedPrecondition(f"{what} failed with status {code}: {text or 'it said nothing'}")


def _await(pid: int, deadline_s: float) -> int | None:
    """Its wait status; None if it was killed, with all of its process group, at the deadline."""
    pidfd = syscalls.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = bool(poll.poll(deadline_s * 1000))
    finally:
        os.close(pidfd)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return status if ended else None
