"""What CDI devices ask for, laid over an OCI document. Pure."""

from __future__ import annotations

from typing import Any

from cri_py.cdi.edits import Edits, Hook, Mount, Rdt
from cri_py.errors import InvalidArgument

Json = dict[str, Any]


def check(edits: Edits, *, host_network: bool) -> None:
    """Raises InvalidArgument for an interface that would move into the network that it is in."""
    if edits.net_devices and host_network:
        name = edits.net_devices[0].host_interface
        raise InvalidArgument(
            f"a CDI device asks for the network interface {name}, but the pod is on the node's network",
            hint="give the pod a network of its own: what the node has it sees already",
        )


def apply(document: Json, edits: Edits) -> None:
    """Change the document as asked; device nodes are looked up and made like others."""
    process = document["process"]
    values = dict(entry.split("=", 1) for entry in (*process["env"], *edits.env))
    process["env"] = [f"{name}={value}" for name, value in values.items()]
    groups = process["user"]["additionalGids"]
    process["user"]["additionalGids"] = list(dict.fromkeys((*groups, *edits.groups)))
    replaced = {mount.container_path for mount in edits.mounts}
    mounts = [mount for mount in document["mounts"] if mount["destination"] not in replaced]
    mounts += [_mount(mount) for mount in edits.mounts]
    document["mounts"] = sorted(mounts, key=lambda mount: mount["destination"].count("/"))
    for hook in edits.hooks:
        document.setdefault("hooks", {}).setdefault(hook.stage, []).append(_hook(hook))
    if edits.net_devices:
        document["linux"]["netDevices"] = {each.host_interface: {"name": each.name} for each in edits.net_devices}
    if edits.rdt:
        document["linux"]["intelRdt"] = _rdt(edits.rdt)


def later_hooks(document: Json) -> str:
    """The stages that the monitor has to see to, as its request ``create`` has them."""
    hooks = document.get("hooks", {})
    return " ".join(stage for stage in ("poststart", "poststop") if hooks.get(stage))


def _rdt(rdt: Rdt) -> Json:
    words = {
        "closID": rdt.clos_id,
        "l3CacheSchema": rdt.l3_cache_schema,
        "memBwSchema": rdt.mem_bw_schema,
        "schemata": list(rdt.schemata),
        "enableMonitoring": rdt.monitoring,
    }
    return {name: value for name, value in words.items() if value}


def _hook(hook: Hook) -> Json:
    words: Json = {"path": hook.path, "args": list(hook.args or (hook.path,)), "env": list(hook.env)}
    return {**words, "timeout": hook.timeout_s} if hook.timeout_s else words


def _mount(mount: Mount) -> Json:
    bind = mount.kind in {"", "none", "bind"}
    options = list(mount.options)
    if bind and not {"bind", "rbind"}.intersection(options):
        options.insert(0, "rbind")
    return {
        "destination": mount.container_path,
        "type": "bind" if bind else mount.kind,
        "source": mount.host_path,
        "options": options,
    }
