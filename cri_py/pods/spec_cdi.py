"""What CDI devices ask for, laid over an OCI document. Pure."""

from __future__ import annotations

from typing import Any, Final

from cri_py.cdi.edits import Edits, Hook, Mount
from cri_py.errors import Unimplemented

Json = dict[str, Any]
# Those that run before the container has its root; see cri_py.runtime.hooks.
_STAGES: Final = ("prestart", "createRuntime", "createContainer")


def check(edits: Edits) -> None:
    """Raises Unimplemented for what would be left out otherwise: a device without it may do anything but work."""
    if edits.net_devices:
        name = edits.net_devices[0].host_interface
        raise Unimplemented(f"a CDI device asks for the network interface {name} (netDevices), which is not supported")
    if edits.rdt:
        raise Unimplemented("a CDI device asks for Intel's resource control (intelRdt), which is not supported")
    for hook in edits.hooks:
        if hook.stage not in _STAGES:
            raise Unimplemented(f"a CDI device asks for the {hook.stage} hook {hook.path}, which is not supported")


def apply(document: Json, edits: Edits) -> None:
    """Change environment, mounts, groups and hooks of the document; device nodes are looked up and made like others."""
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
