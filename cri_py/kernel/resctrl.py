"""Intel's resource control, by its file system: who may fill how much of the caches (kernel: filesystems/resctrl).

A class of service is a directory with a file ``schemata`` that says what it gets, and a file ``tasks`` that takes those
who get it. What a process forks stays in its class. Rules: OCI runtime-spec, config-linux.md, IntelRdt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from cri_py.errors import FailedPrecondition

MOUNT: Final = "/sys/fs/resctrl"
_SCHEMAS: Final = ("l3CacheSchema", "memBwSchema")


def directory_of(rdt: Mapping[str, Any], container_id: str, mount: str = MOUNT) -> str:
    """Of the class that ``rdt``, an OCI ``linux.intelRdt``, puts the container into."""
    named = rdt.get("closID") or container_id
    return mount if named == "/" else f"{mount}/{named}"


def task_files(rdt: Mapping[str, Any], container_id: str, mount: str = MOUNT) -> list[str]:
    """The files that take a process of the container: of its class and, if it is counted, of its group."""
    directory = directory_of(rdt, container_id, mount)
    counted = [f"{directory}/mon_groups/{container_id}/tasks"] if rdt.get("enableMonitoring") else []
    return [f"{directory}/tasks", *counted]


def enter(rdt: Mapping[str, Any], container_id: str, mount: str = MOUNT) -> None:
    """Make the class where it is to be made, and put this process into it.

    Raises FailedPrecondition where the kernel has no such file system or refuses, where a class that is only named is
    not there, or where one that is has other rules than asked for.
    """
    if not os.path.exists(f"{mount}/schemata"):
        raise FailedPrecondition(
            f"intelRdt is asked for, but {mount} is not there", hint="mount -t resctrl resctrl /sys/fs/resctrl"
        )
    lines = [rdt[name] for name in _SCHEMAS if rdt.get(name)] + list(rdt.get("schemata") or ())
    directory = directory_of(rdt, container_id, mount)
    try:
        _make_class(directory, lines, named=bool(rdt.get("closID")))
        if rdt.get("enableMonitoring"):
            os.makedirs(f"{directory}/mon_groups/{container_id}", exist_ok=True)
        for file in task_files(rdt, container_id, mount):
            _write(file, "0\n")
    except OSError as error:
        raise FailedPrecondition(f"intelRdt: {error.filename or directory}: {error.strerror}") from error


def leave(rdt: Mapping[str, Any], container_id: str, mount: str = MOUNT) -> None:
    """Remove what ``enter`` has made for the container alone."""
    directory = directory_of(rdt, container_id, mount)
    with suppress(FileNotFoundError):
        os.rmdir(f"{directory}/mon_groups/{container_id}")
    if not rdt.get("closID"):
        with suppress(FileNotFoundError):
            os.rmdir(directory)


def _make_class(directory: str, lines: list[str], *, named: bool) -> None:
    if os.path.isdir(directory):
        if named and lines:
            _check_same(directory, lines)
            return
    elif named and not lines:
        raise FailedPrecondition(f"intelRdt: the class {directory} is not there", hint="make it, or give its schemata")
    else:
        os.mkdir(directory)
    for line in lines:
        _write(f"{directory}/schemata", f"{line}\n")


def _check_same(directory: str, lines: list[str]) -> None:
    with open(f"{directory}/schemata") as file:
        there = {line.strip() for line in file}
    for line in lines:
        if line.strip() not in there:
            raise FailedPrecondition(
                f"intelRdt: the class {directory} is there and has not {line!r}", hint="use another closID"
            )


def _write(path: str, text: str) -> None:
    """One write(2) to what is there."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(fd)
