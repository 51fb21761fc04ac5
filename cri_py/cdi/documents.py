"""A CDI file, JSON or YAML, as values: what each of its devices asks for. Pure.

A file is taken whole or not at all: with one word that is not understood nobody knows what its device needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cri_py.cdi import edits
from cri_py.errors import InvalidArgument

VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_VENDOR: Final = r"[A-Za-z](?:[\w.-]*[A-Za-z0-9])?"
_CLASS: Final = r"[A-Za-z](?:[\w-]*[A-Za-z0-9])?"
_DEVICE: Final = r"[A-Za-z0-9](?:[\w.:-]*[A-Za-z0-9])?"
_KIND = re.compile(f"{_VENDOR}/{_CLASS}", re.ASCII)
_NAME = re.compile(_DEVICE, re.ASCII)
_QUALIFIED = re.compile(f"({_VENDOR}/{_CLASS})=({_DEVICE})", re.ASCII)
_INTERFACE = re.compile(r"[^\s/:\0]{1,15}")
_STAGES: Final = frozenset(("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"))
_ANNOTATION: Final = "cdi.k8s.io/"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A word that is not understood may be one that the device can't do without."""


class _Node(_Strict, frozen=True):
    path: str
    hostPath: str = ""
    type: str = ""
    major: int | None = None
    minor: int | None = None
    fileMode: int | None = None
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None


class _Mount(_Strict, frozen=True):
    hostPath: str
    containerPath: str
    type: str = ""
    options: tuple[str, ...] | None = None


class _Hook(_Strict, frozen=True):
    hookName: str
    path: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    timeout: int | None = None


class _NetDevice(_Strict, frozen=True):
    hostInterfaceName: str
    name: str


class _Rdt(_Strict, frozen=True):
    closID: str = ""
    l3CacheSchema: str = ""
    memBwSchema: str = ""
    schemata: tuple[str, ...] | None = None  # since 1.1.0
    enableMonitoring: bool = False  # since 1.1.0, for the two below
    enableCMT: bool = False
    enableMBM: bool = False


class _Edits(_Strict, frozen=True):
    env: tuple[str, ...] | None = None
    deviceNodes: tuple[_Node, ...] | None = None
    mounts: tuple[_Mount, ...] | None = None
    hooks: tuple[_Hook, ...] | None = None
    additionalGids: tuple[int, ...] | None = None
    netDevices: tuple[_NetDevice, ...] | None = None
    intelRdt: _Rdt | None = None


class _Device(_Strict, frozen=True):
    name: str
    containerEdits: _Edits
    annotations: dict[str, str] | None = None


class _File(_Strict, frozen=True):
    cdiVersion: str
    kind: str
    devices: tuple[_Device, ...]
    containerEdits: _Edits | None = None
    annotations: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """One file: what all devices of it have in common, and each one's own."""

    path: str
    kind: str  # vendor/class
    common: edits.Edits
    devices: Mapping[str, edits.Edits]  # by name


def parse(text: bytes, path: str) -> Document:
    """Read a file's content; ``path`` ends in .json or .yaml. Raises InvalidArgument that says what is wrong where."""
    try:
        return _document(msgspec.convert(_load(text, path), _File), path)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error.message}", hint=error.hint) from error


def _document(file: _File, path: str) -> Document:
    if file.cdiVersion not in VERSIONS:
        raise InvalidArgument(f"cdiVersion {file.cdiVersion!r} is not known", hint=f"known: {', '.join(VERSIONS)}")
    if not _KIND.fullmatch(file.kind):
        raise InvalidArgument(f"kind {file.kind!r} is none", hint="a kind reads like vendor.com/class")
    devices: dict[str, edits.Edits] = {}
    for device in file.devices:
        if not _NAME.fullmatch(device.name) or device.name in devices:
            raise InvalidArgument(f"the device name {device.name!r} is none, or twice there")
        devices[device.name] = _edits(device.containerEdits)
    return Document(path, file.kind, _edits(file.containerEdits or _Edits()), devices)


def qualified(name: str) -> tuple[str, str]:
    """Kind and device of a name such as ``vendor.com/gpu=0``. Raises InvalidArgument."""
    found = _QUALIFIED.fullmatch(name)
    if found is None:
        raise InvalidArgument(f"the CDI device {name!r} is no name of one", hint="a name reads like vendor.com/gpu=0")
    return found[1], found[2]


def named_in(annotations: Mapping[str, str]) -> list[str]:
    """The devices that annotations ask for, as older kubelets do: cdi.k8s.io/PLUGIN_ID holds names, with commas."""
    found: list[str] = []
    for key in sorted(annotations):
        if key.startswith(_ANNOTATION):
            found += annotations[key].split(",")
    return found


def _load(text: bytes, path: str) -> Any:
    if path.endswith(".json"):
        return msgspec.json.decode(text)
    # Most nodes have no such file; who has none need not keep a parser of YAML in memory.
    import yaml  # noqa: PLC0415

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where libyaml was there when it was built
    try:
        tokens = yaml.scan(text, Loader=loader)
        if any(isinstance(token, yaml.AliasToken) for token in tokens):  # a few lines of them fill any memory
            raise InvalidArgument("YAML aliases are not taken", hint="write the values out")
        return yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader, it makes plain values only
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidArgument(" ".join(str(error).split())) from error


def _edits(asked: _Edits) -> edits.Edits:
    for assignment in asked.env or ():
        _check_assignment(assignment)
    if any(group < 0 for group in asked.additionalGids or ()):
        raise InvalidArgument("additionalGids has a number below 0")
    return edits.Edits(
        env=asked.env or (),
        nodes=tuple(map(_node, asked.deviceNodes or ())),
        mounts=tuple(map(_mount, asked.mounts or ())),
        hooks=tuple(map(_hook, asked.hooks or ())),
        groups=tuple(group for group in asked.additionalGids or () if group),  # 0 is ignored, as the spec has it
        net_devices=tuple(map(_net_device, asked.netDevices or ())),
        rdt=_rdt(asked.intelRdt) if asked.intelRdt else None,
    )


def _check_assignment(text: str) -> None:
    name, equals, _ = text.partition("=")
    if not name or not equals or "\0" in text:
        raise InvalidArgument(f"env has {text!r}", hint="write NAME=value")


def _node(node: _Node) -> edits.Node:
    _check_path("deviceNodes.path", node.path)
    if node.hostPath:
        _check_path("deviceNodes.hostPath", node.hostPath)
    if node.type not in {"", "b", "c", "u", "p"}:
        raise InvalidArgument(f"the device node {node.path} has type {node.type!r}", hint="types are b, c, u and p")
    access = node.permissions or "rwm"
    if not set(access) <= set("rwm"):
        raise InvalidArgument(f"the device node {node.path} has permissions {access!r}", hint="use letters of 'rwm'")
    numbers = (node.major, node.minor, node.fileMode, node.uid, node.gid)
    if any(number is not None and number < 0 for number in numbers):
        raise InvalidArgument(f"the device node {node.path} has a number below 0")
    return edits.Node(
        node.path, node.hostPath, node.type, node.major, node.minor, node.fileMode, access, node.uid, node.gid
    )


def _mount(mount: _Mount) -> edits.Mount:
    _check_path("mounts.containerPath", mount.containerPath)
    if mount.type in {"", "none", "bind"}:
        _check_path("mounts.hostPath", mount.hostPath)
    return edits.Mount(mount.hostPath, mount.containerPath, mount.type, mount.options or ())


def _hook(hook: _Hook) -> edits.Hook:
    if hook.hookName not in _STAGES:
        raise InvalidArgument(f"there is no hook {hook.hookName!r}", hint=f"hooks are {', '.join(sorted(_STAGES))}")
    _check_path("hooks.path", hook.path)
    for assignment in hook.env or ():
        _check_assignment(assignment)
    if (hook.timeout or 0) < 0:
        raise InvalidArgument(f"the hook {hook.path} has the timeout {hook.timeout}")
    return edits.Hook(hook.hookName, hook.path, hook.args or (), hook.env or (), hook.timeout or 0)


def _net_device(device: _NetDevice) -> edits.NetDevice:
    for field, name in (("hostInterfaceName", device.hostInterfaceName), ("name", device.name)):
        if not _INTERFACE.fullmatch(name) or name in {".", ".."}:
            raise InvalidArgument(f"netDevices.{field} is {name!r}", hint="a name has 1 to 15 characters without '/'")
    return edits.NetDevice(device.hostInterfaceName, device.name)


def _rdt(asked: _Rdt) -> edits.Rdt:
    schemata = asked.schemata or ()
    if any("\n" in line for line in (asked.l3CacheSchema, asked.memBwSchema, *schemata)):
        raise InvalidArgument("intelRdt has a schema of several lines", hint="give each as one of schemata")
    if asked.closID != "/" and ("/" in asked.closID or asked.closID in {".", ".."} or "\n" in asked.closID):
        raise InvalidArgument(f"intelRdt.closID is {asked.closID!r}", hint="a class is one name, or '/'")
    monitoring = asked.enableMonitoring or asked.enableCMT or asked.enableMBM
    return edits.Rdt(asked.closID, asked.l3CacheSchema, asked.memBwSchema, schemata, monitoring)


def _check_path(field: str, path: str) -> None:
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidArgument(f"{field} has {path!r}", hint="use absolute paths without '..'")
