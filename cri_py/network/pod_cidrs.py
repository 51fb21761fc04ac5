"""The pod CIDRs that the kubelet tells: read, and kept for a daemon that starts while the kubelet goes on.

A kubelet tells them when it learns of them and not again when the runtime was restarted.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

import structlog

from cri_py.errors import Internal, InvalidArgument

log = structlog.get_logger()
Network = IPv4Network | IPv6Network


def parse(text: str) -> tuple[Network, ...]:
    """What the kubelet tells: one network, or one of each family with a comma between. Raises InvalidArgument."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        networks = tuple(map(ip_network, parts))
    except ValueError as error:
        raise InvalidArgument(f"pod_cidr {text!r} is none: {error}", hint="e.g. 10.1.0.0/24,fd00:1::/64") from error
    if not all("/" in part for part in parts):
        raise InvalidArgument(f"pod_cidr {text!r} is an address", hint="e.g. 10.1.0.0/24,fd00:1::/64")
    return networks


def load(path: str) -> tuple[tuple[Network, ...], tuple[Network, ...]]:
    """The networks that were told last, and those of before; () if nothing was, or what is there makes no sense."""
    try:
        with open(path, "rb") as file:
            kept = json.load(file)
        return tuple(map(ip_network, kept["current"])), tuple(map(ip_network, kept["former"]))
    except FileNotFoundError:
        return (), ()
    except (ValueError, KeyError, TypeError) as error:
        log.warning("the pod CIDRs that the kubelet has told are lost", path=path, cause=str(error))
        return (), ()


def save(path: str, current: Sequence[Network], former: Sequence[Network]) -> None:
    """Raises Internal if they can't be kept."""
    try:
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump({"current": list(map(str, current)), "former": list(map(str, former))}, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.new", path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(f"{path}.new")
        raise Internal(f"the pod CIDRs can't be kept in {path}: {error}", hint="has the disk room?") from error
