"""Hooks that run outside of a container, once it runs (poststart) or is gone (poststop): OCI runtime-spec, runtime.md.

A child of the monitor's runs them and waits, so that the monitor can go on: it parses the document, which would cost
the monitor memory, and says by a pipe what has failed.
"""

from __future__ import annotations

import json
import os
import signal
from typing import NamedTuple, NoReturn

from cri_py.kernel import procfs, syscalls
from cri_py.kernel.constants import PR_SET_PDEATHSIG
from cri_py.runtime import hooks
from cri_py.runtime.child import keep_only

_SAID_BYTES = 4096


class Runner(NamedTuple):
    """The child, and the pipe by which it says what has failed."""

    pid: int
    told: int

    def said(self) -> bytes:
        """After its end: empty if all is well. Closes the pipe."""
        try:
            return os.read(self.told, _SAID_BYTES)
        except BlockingIOError:
            return b""
        finally:
            os.close(self.told)


def start(bundle: str, stage: str, pid: int) -> Runner:
    """Run the stage's hooks for the container of ``bundle``, whose first process is or was ``pid``.

    Of poststart the first failure is told, and nothing after it is run; of poststop, where no failure counts, all as
    JSON {notes}.
    """
    monitor = os.getpid()
    told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        child = syscalls.clone3(0)
        if child == 0:
            _run(bundle, stage, pid, tell, monitor)
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(tell)
    return Runner(child, told)


def _run(bundle: str, stage: str, pid: int, tell: int, monitor: int) -> NoReturn:
    """In the child."""
    said = ""
    try:
        syscalls.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == monitor:  # else it died before that
            keep_only(tell, null_stdio=True)
            document = json.loads(procfs.read(f"{bundle}/config.json"))
            if stage == "poststop":
                notes = hooks.run_all(document, bundle, stage)
                said = json.dumps({"notes": notes}) if notes else ""
            else:
                hooks.run(document, bundle, (stage,), "running", pid)
    except BaseException as error:
        said = str(error)
    finally:
        os.write(tell, said.encode("utf-8", "surrogateescape")[:_SAID_BYTES])
        os._exit(0)
