"""The text of the three files that every pod gets: /etc/hosts, /etc/hostname, /etc/resolv.conf. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cri_py.errors import InvalidArgument
from cri_py.model import DnsConfig, NamespaceMode, Sandbox

_LOCAL_HOSTS: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def sandbox_hostname(sandbox: Sandbox, node_hostname: str) -> str:
    """What hostname(1) says in the pod.

    On the host's network it is the node's name, because the UTS namespace is the host's too; a pod that names none
    gets the first 12 digits of its id rather than the node's name.
    """
    if sandbox.config.namespaces.network is NamespaceMode.NODE:
        return node_hostname
    return sandbox.config.hostname or sandbox.id[:12]


def hosts_text(hostname: str, ips: Sequence[str], node_text: str | None = None) -> str:
    """/etc/hosts: localhost and a line per address of the pod; on the host's network ``node_text``, the node's own."""
    if node_text is not None:
        return node_text
    return _LOCAL_HOSTS + "".join(f"{ip}\t{hostname}\n" for ip in ips)


def hostname_text(hostname: str) -> str:
    return f"{hostname}\n"


def resolv_conf_text(dns: DnsConfig | None, node_text: str) -> str:
    """/etc/resolv.conf of what the kubelet asks for, all of it: how many servers count is the C library's business.

    Without a word from the kubelet it is ``node_text``, the node's own. Raises InvalidArgument for an entry that would
    not stay on its line.
    """
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return node_text
    for field, entries in (("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)):
        for entry in entries:
            if not entry or any(character.isspace() or character == "\0" for character in entry):
                raise InvalidArgument(
                    f"dns_config.{field} has {entry!r}", hint="an entry is one word, without spaces and line breaks"
                )
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)
