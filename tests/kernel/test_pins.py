"""Pins in a directory that others use, too, each test in a mount and a network namespace of its own. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cri_py.kernel import syscalls
from cri_py.kernel.constants import CLONE_NEWNET, CLONE_NEWNS, MS_PRIVATE, MS_REC
from cri_py.network import netns
from cri_py.network.pins import Pins
from tests.kernel.test_network import named, on_thread

pytestmark = pytest.mark.root
SHARED = "/run/netns"


def on_own_mounts(test: Callable[[], None]) -> Callable[[], None]:
    """With an empty /run/netns."""

    def apart() -> None:
        syscalls.unshare(CLONE_NEWNS | CLONE_NEWNET)
        syscalls.mount("", "/", "", MS_REC | MS_PRIVATE)
        os.makedirs(SHARED, exist_ok=True)
        syscalls.mount("tmpfs", "/run", "tmpfs", 0)
        test()

    return lambda: on_thread(apart)


def pinned_by(pins: Pins, name: str) -> str:
    path = pins.path_of(named(name))
    syscalls.unshare(CLONE_NEWNET)  # another than the one before
    netns.enter_new(path)
    return path


def listed() -> list[str]:
    """What ``ip netns`` says."""
    shown = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return sorted(line.split()[0] for line in shown.splitlines())


def shown_by_ip_netns_and_let_go() -> None:
    pins = Pins(SHARED, "/run/cri_py")
    pins.make_directory()
    pins.make_directory()
    web = pinned_by(pins, "web")
    subprocess.run(["ip", "netns", "add", "strange"], check=True)
    assert listed() == sorted([os.path.basename(web), "strange"])
    assert os.path.basename(web).startswith("cri-default-web-")
    assert netns.unpin(web)
    assert listed() == ["strange"]
    subprocess.run(["ip", "netns", "delete", "strange"], check=True)


def told_apart() -> None:
    ours, others = Pins(SHARED, "/run/cri_py"), Pins(SHARED, "/run/second")
    ours.make_directory()
    kept, left, theirs = pinned_by(ours, "kept"), pinned_by(ours, "left"), pinned_by(others, "left")
    Path(f"{SHARED}/cni-1234").touch()
    assert ours.strange({kept}, set()) == [left]
    assert ours.strange(set(), {"kept"}) == [left]
    assert others.strange(set(), set()) == [theirs]
    for path in (kept, left, theirs):
        netns.unpin(path)


def test_ip_netns_lists_a_pods_namespace_and_lets_it_go() -> None:
    on_own_mounts(shown_by_ip_netns_and_let_go)()


def test_only_the_daemons_own_pins_are_strange_to_it() -> None:
    on_own_mounts(told_apart)()
