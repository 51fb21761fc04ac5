"""Which proxy a URL goes through, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Pure.

The rules are those of Go (https://pkg.go.dev/golang.org/x/net/http/httpproxy), which nodes are set up for:
NO_PROXY takes addresses, networks, names with all that is below them, ``.names`` with only that, each with a port if
wanted, and ``*``; this machine is never reached through a proxy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from cri_py.images.endpoints import is_loopback


def proxy_for(url: str, environment: Mapping[str, str]) -> str:
    """The proxy's URL, or "" to go there directly."""
    parts = urlsplit(url)
    name = f"{parts.scheme}_proxy"
    proxy = environment.get(name.upper()) or environment.get(name) or ""
    host = (parts.hostname or "").rstrip(".")
    if not proxy or is_loopback(parts.netloc.rpartition("@")[2]):
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    exempt = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    if any(_fits(host, port, rule.strip().lower()) for rule in exempt.split(",")):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def _fits(host: str, port: int, rule: str) -> bool:
    if rule == "*":
        return True
    if _in_network(host, rule):
        return True
    name, colon, wanted = rule.rpartition(":")
    if colon and wanted.isdecimal() and not name.endswith(":"):
        if int(wanted) != port:
            return False
        rule = name
    rule = rule.strip("[]").removeprefix("*")
    if not rule:
        return False
    return host.endswith(rule) if rule.startswith(".") else host == rule or host.endswith(f".{rule}")


def _in_network(host: str, rule: str) -> bool:
    if "/" not in rule:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False
