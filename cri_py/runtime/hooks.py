"""Programs that are run at the turns of a container's life: OCI runtime-spec, config.md, "POSIX-platform Hooks".

Vendors' device descriptions ask for them: a hook links libraries or makes nodes in the root that the container is about
to get. When each runs, as whom, and what its failure means::

    prestart, createRuntime,  by init, as root of the node in the new mount namespace, when all is mounted
    createContainer           and before the pivot: there the node's programs and the container's root are both there
    startContainer            by init at the start, in the container and with its rights: a program of the image
    poststart                 by a child of the monitor on the node, once the program runs; start waits for it
    poststop                  the same, once the container is gone; a failure is noted, and the next one runs

A failure of any other is the end of the container.
"""

from __future__ import annotations

import json
import os
import select
import signal
from typing import Any

from cri_py.errors import FailedPrecondition
from cri_py.kernel import syscalls

BEFORE_PIVOT = ("prestart", "createRuntime", "createContainer")
LATER = ("poststart", "poststop")
_TIMEOUT_S = 10.0  # of a hook that names none: the monitor is waited for only so long
_SAID_BYTES = 2000
# What Python and the spawner ignore, a program would ignore too.
_CHANGED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


def run(document: dict[str, Any], bundle: str, stages: tuple[str, ...], status: str, pid: int = 0) -> None:
    """Run the hooks of the stages in their order. ``status``: the container's, as state(5) of OCI has it; ``pid``: its
    first process, 0 is this one as the node's /proc has it: here it may be 1.

    Raises FailedPrecondition with what the first said that fails.
    """
    found = [(stage, hook) for stage in stages for hook in document.get("hooks", {}).get(stage, ())]
    if not found:
        return
    state = _state(document, bundle, status, pid or int(os.readlink("/proc/self")))
    for stage, hook in found:
        _run(hook, stage, state)


def run_all(document: dict[str, Any], bundle: str, stage: str) -> list[str]:
    """Run the hooks of a stage where none of them can fail the container any more; returns what they failed with."""
    notes = []
    state = _state(document, bundle, "stopped", 0)
    for hook in document.get("hooks", {}).get(stage, ()):
        try:
            _run(hook, stage, state)
        except FailedPrecondition as error:
            notes.append(error.message)
    return notes


def _state(document: dict[str, Any], bundle: str, status: str, pid: int) -> bytes:
    """What a hook reads on its stdin (runtime.md, State); a stopped container has no pid."""
    state = {
        "ociVersion": document["ociVersion"],
        "id": os.path.basename(bundle),
        "status": status,
        "bundle": bundle,
        "annotations": document.get("annotations", {}),
    }
    return json.dumps({**state, "pid": pid} if pid else state).encode()


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
        pid = os.posix_spawn(
            *(path, hook.get("args") or [path], environment),
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=_CHANGED_SIGNALS,
        )
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
