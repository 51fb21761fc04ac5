"""What plugins are told: the environment and the standard input of each call (SPEC.md, sections 2 and 3). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cri_py.model import Sandbox
from cri_py.network.bandwidth import bandwidth
from cri_py.network.cni.configs import Loaded, PluginConfig
from cri_py.network.cni.versions import NEWEST

INTERFACE: Final = "eth0"
MAC_ANNOTATION: Final = "cri-py.io/mac"
POD_ANNOTATIONS: Final = "io.kubernetes.cri.pod-annotations"  # containerd's and CRI-O's name
_BURST_BITS: Final = 2**32 - 1  # the bandwidth plugin wants one; as peers have it, none that a pod notices


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a plugin: of the program ``type``, with the CNI_ variables of its environment and its input."""

    type: str
    command: str  # ADD, DEL, CHECK, STATUS, GC, VERSION
    variables: Mapping[str, str]
    stdin: bytes


@dataclass(frozen=True, slots=True)
class Subject:
    """What ADD, CHECK and DEL are about: a container's interface. ``netns`` is "" once it has gone."""

    container_id: str
    netns: str
    interface: str
    arguments: tuple[tuple[str, str], ...]
    capabilities: Mapping[str, Any]


def subject(sandbox: Sandbox, netns: str, pod_cidrs: Sequence[str]) -> Subject:
    """What plugins are told about a pod. Raises InvalidArgument for a bandwidth annotation that is none."""
    meta = sandbox.config.metadata
    arguments = (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", meta.namespace),
        ("K8S_POD_NAME", meta.name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox.id),
        ("K8S_POD_UID", meta.uid),
    )
    return Subject(sandbox.id, netns, INTERFACE, arguments, _capabilities(sandbox, pod_cidrs))


def call(command: str, loaded: Loaded, plugin: PluginConfig, about: Subject, previous: Any = None) -> Call:
    """ADD, DEL or CHECK of one plugin; ``previous`` is the result so far, for DEL and CHECK that of ADD, if any."""
    wanted = {key: value for key, value in about.capabilities.items() if key in plugin.capabilities}
    document = _document(loaded, plugin)
    if wanted:
        document["runtimeConfig"] = wanted
    if previous is not None:
        document["prevResult"] = previous
    variables = {
        "CNI_CONTAINERID": about.container_id,
        "CNI_NETNS": about.netns,
        "CNI_IFNAME": about.interface,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in about.arguments),
    }
    return Call(plugin.type, command, variables, msgspec.json.encode(document))


def status_call(loaded: Loaded, plugin: PluginConfig) -> Call:
    """Whether a plugin is ready for ADD."""
    return Call(plugin.type, "STATUS", {}, msgspec.json.encode(_document(loaded, plugin)))


def gc_call(loaded: Loaded, plugin: PluginConfig, valid: Iterable[tuple[str, str]]) -> Call:
    """A plugin forgets all but the ``valid`` attachments: container ids with interfaces."""
    kept = [{"containerID": container_id, "ifname": interface} for container_id, interface in sorted(valid)]
    document = {**_document(loaded, plugin), "cni.dev/valid-attachments": kept}
    return Call(plugin.type, "GC", {}, msgspec.json.encode(document))


def version_call(kind: str) -> Call:
    """Which versions a plugin supports."""
    return Call(kind, "VERSION", {}, msgspec.json.encode({"cniVersion": NEWEST}))


def _document(loaded: Loaded, plugin: PluginConfig) -> dict[str, Any]:
    kept = {key: value for key, value in plugin.document.items() if key not in ("capabilities", "cniVersions")}
    return {**kept, "cniVersion": loaded.version, "name": loaded.network.name}


def _capabilities(sandbox: Sandbox, pod_cidrs: Sequence[str]) -> dict[str, Any]:
    """All that a plugin may ask for (CONVENTIONS.md of CNI), but what would be empty."""
    config = sandbox.config
    known: dict[str, Any] = {
        "portMappings": [
            {
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol.name.lower(),
                **({"hostIP": mapping.host_ip} if mapping.host_ip else {}),
            }
            for mapping in config.port_mappings
            if mapping.host_port
        ],
        "bandwidth": _bandwidth(config.annotations),
        "dns": _dns(sandbox),
        "ipRanges": [[{"subnet": cidr}] for cidr in pod_cidrs],
        "aliases": [config.metadata.name],
        "mac": config.annotations.get(MAC_ANNOTATION, ""),
        "cgroupPath": sandbox.cgroup,
        POD_ANNOTATIONS: dict(config.annotations),
    }
    return {key: value for key, value in known.items() if value}


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    limits = bandwidth(annotations)
    rates = {"ingress": limits.ingress, "egress": limits.egress}
    return {
        key: value
        for way, rate in rates.items()
        if rate
        for key, value in ((f"{way}Rate", rate), (f"{way}Burst", _BURST_BITS))
    }


def _dns(sandbox: Sandbox) -> dict[str, list[str]]:
    dns = sandbox.config.dns
    if dns is None:
        return {}
    lists = {"servers": dns.servers, "searches": dns.searches, "options": dns.options}
    return {key: list(words) for key, words in lists.items() if words}
