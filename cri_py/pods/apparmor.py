"""AppArmor on this node: the default profile of containers, made and loaded here, and which profiles there are.

Loading needs AppArmor's own compiler (apparmor_parser). A node whose kernel has AppArmor and that lacks it runs
containers unconfined by it, and says so.
"""

from __future__ import annotations

import os
import subprocess
from typing import Final

import structlog

from cri_py.errors import FailedPrecondition, Unavailable

log = structlog.get_logger()
_ENABLED: Final = "/sys/module/apparmor/parameters/enabled"
_PROFILES: Final = "/sys/kernel/security/apparmor/profiles"
_PARSERS: Final = ("/usr/sbin/apparmor_parser", "/sbin/apparmor_parser")
_LOAD_S: Final = 60.0

# What a container with the usual capabilities has no business with, whatever its file system lets it do. Processes lie
# in /proc under their numbers, so all other names there are the kernel's own.
_RULES: Final = """\
  file,
  network,
  capability,
  umount,
  unix,

  signal (receive) peer=unconfined,
  signal (send, receive) peer={name},
  ptrace (trace, read, tracedby, readby) peer={name},

  deny mount,
  deny remount,
  deny pivot_root,

  deny /proc/* wkl,
  deny /proc/[a-z]*/** wkl,
  deny /sys/{{[^f],f[^s],fs/[^c],fs/c[^g]}}** wkl,
  deny /sys/{{firmware,kernel/security}}/** rwkl,
"""


def profile_text(name: str) -> str:
    """The default profile (apparmor.d(5)) under this name."""
    return f"profile {name} flags=(attach_disconnected,mediate_deleted) {{\n{_RULES.format(name=name)}}}\n"


def load_default(name: str, directory: str) -> str:
    """Compile the default profile and load it as ``name``, in place of an older one; blocking, some 0.1 s.

    ``directory`` takes its text. Returns the name, "" where the node doesn't confine by AppArmor. Raises Unavailable if
    the profile can't be loaded: a node that should confine containers must not run them unconfined.
    """
    if not name or not enabled():
        return ""
    parser = next((path for path in _PARSERS if os.path.exists(path)), "")
    if not parser:
        log.warning("AppArmor is on, but apparmor_parser is missing: containers run unconfined by it")
        return ""
    path = os.path.join(directory, "apparmor-profile")
    with open(path, "w") as file:
        file.write(profile_text(name))
    done = subprocess.run(
        [parser, "--skip-cache", "--replace", path],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LOAD_S,
        check=False,
    )
    if done.returncode:
        raise Unavailable(
            f"the AppArmor profile {name} can't be loaded: {done.stderr.strip()}",
            hint='set runtime.apparmor_profile = "" to go without it',
        )
    return name


def enabled() -> bool:
    """Whether the kernel enforces AppArmor profiles."""
    try:
        with open(_ENABLED) as file:
            return file.read(1) == "Y" and os.path.exists(_PROFILES)
    except OSError:
        return False


def check_loaded(name: str) -> None:
    """Raises FailedPrecondition unless the kernel has a profile of that name; blocking."""
    with open(_PROFILES) as file:
        known = {line.rpartition(" (")[0] for line in file}
    if name not in known:
        raise FailedPrecondition(
            f"the AppArmor profile {name!r} is not loaded on this node", hint="load it with apparmor_parser"
        )
