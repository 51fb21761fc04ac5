"""What ADD answers, in each version's form and in one of our own (SPEC.md, section 5, and its older versions). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any, Final

import msgspec

from cri_py.errors import Internal
from cri_py.network.cni.versions import SUPPORTED, since

Document = Mapping[str, Any]
Address = IPv4Interface | IPv6Interface

_HAS_INTERFACES: Final = "0.3.0"
_IPS_WITHOUT_VERSION: Final = "1.0.0"


class Interface(msgspec.Struct, frozen=True, omit_defaults=True):
    """An interface that a plugin made or found; ``sandbox`` is the namespace's path, "" on the node."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socketPath: str = ""
    pciID: str = ""


class Ip(msgspec.Struct, frozen=True, omit_defaults=True):
    """``address`` with the prefix of its network; ``interface`` is an index of the result's interfaces."""

    address: str
    gateway: str | None = None
    interface: int | None = None


class Route(msgspec.Struct, frozen=True, omit_defaults=True):
    dst: str
    gw: str | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    nameservers: list[str] | None = None
    domain: str = ""
    search: list[str] | None = None
    options: list[str] | None = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """A result as of the newest version."""

    interfaces: list[Interface] = []
    ips: list[Ip] = []
    routes: list[Route] = []
    dns: Dns = Dns()


def read(document: Document, version: str) -> Result:
    """A result that has the form of ``version``. Raises Internal for what isn't one."""
    if version not in SUPPORTED:
        raise Internal(f"a CNI result has the unknown version {version!r}", hint=f"known are {', '.join(SUPPORTED)}")
    try:
        if not since(version, _HAS_INTERFACES):
            return _read_oldest(document)
        present = {key: value for key, value in document.items() if value is not None}
        return msgspec.convert(present, Result)
    except msgspec.ValidationError as error:
        raise Internal(f"a CNI result of version {version} makes no sense: {error}") from error


def write(result: Result, version: str) -> dict[str, Any]:
    """A result in the form of ``version``; what that has no word for is left out."""
    if not since(version, _HAS_INTERFACES):
        return {"cniVersion": version, **_write_oldest(result)}
    document: dict[str, Any] = {key: part for key, part in msgspec.to_builtins(result).items() if part}
    if not since(version, _IPS_WITHOUT_VERSION):
        for written in document.get("ips", ()):
            written["version"] = str(ip_interface(written["address"]).version)
    if version != "1.1.0":
        _leave_out(document.get("interfaces", ()), "mtu", "socketPath", "pciID")
        _leave_out(document.get("routes", ()), "mtu", "advmss", "priority", "table", "scope")
    return {"cniVersion": version, **document}


def convert(document: Document, version: str, to: str) -> dict[str, Any]:
    """From one version's form to another's; the same version's stays as it came, unknown keys too."""
    if version == to:
        return {**document, "cniVersion": to}
    return write(read(document, version), to)


def addresses(result: Result, interface: str) -> tuple[Address, ...]:
    """The pod's addresses on ``interface``, in the result's order, each but once; all of a result without interfaces.

    Raises Internal for what is no address, and if there is none.
    """
    own = {
        index for index, found in enumerate(result.interfaces) if found.name == interface and found.sandbox
    }  # the node's end may have the same name
    found: list[Address] = []
    for ip in result.ips:
        if result.interfaces and ip.interface is not None and ip.interface not in own:
            continue
        try:
            address = ip_interface(ip.address)
        except ValueError as error:
            raise Internal(f"a CNI plugin answered with an address that is none: {error}") from error
        if address not in found:
            found.append(address)
    if not found:
        raise Internal(
            f"the CNI plugins gave no address to {interface}", hint="its chain needs a plugin with ipam that gives one"
        )
    return tuple(found)


def _read_oldest(document: Document) -> Result:
    """0.1.0 and 0.2.0: at most one address of each family, no interfaces."""
    ips, routes = [], []
    for key in ("ip4", "ip6"):
        part = document.get(key)
        if part is None:
            continue
        read_part = msgspec.convert(part, _OldestIp)
        ips.append(Ip(read_part.ip, read_part.gateway))
        routes += read_part.routes or []
    return Result(ips=ips, routes=routes, dns=msgspec.convert(document.get("dns") or {}, Dns))


class _OldestIp(msgspec.Struct, frozen=True):
    ip: str
    gateway: str | None = None
    routes: list[Route] | None = None


def _write_oldest(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, version in (("ip4", 4), ("ip6", 6)):
        first = next((ip for ip in result.ips if ip_interface(ip.address).version == version), None)
        if first is None:
            continue
        routes = [
            {"dst": route.dst, **({"gw": route.gw} if route.gw else {})}
            for route in result.routes
            if ip_interface(route.dst).version == version
        ]
        gateway = {"gateway": first.gateway} if first.gateway else {}
        document[key] = {"ip": first.address, **gateway, **({"routes": routes} if routes else {})}
    dns = msgspec.to_builtins(result.dns)
    return {**document, **({"dns": dns} if dns else {})}


def _leave_out(parts: list[dict[str, Any]], *keys: str) -> None:
    for part in parts:
        for key in keys:
            part.pop(key, None)
